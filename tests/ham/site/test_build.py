"""The committed pages are those of the records, link each other, and can be read by everyone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

import pytest
from commands import script
from site_pages import Element, parse
from tracing import is_traced

from ham.files import RESULTS, ROOT
from ham.report.records import DEMOS, metrics_path, path_of, record
from ham.report.spec import RunSpec, lock
from ham.site import build, library, pages, sources
from ham.site.sources import page_of

SITE = RESULTS / "site"
COMMAND = script("report")
LIBRARY_BYTES = 950_000  # of assets/vega-lite.js, which is not committed
INPUTS = ("input", "select")


@pytest.fixture(scope="session")
def parsed(committed: dict[str, str]) -> dict[str, Element]:
    return {page: parse(text) for page, text in committed.items()}


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes seconds to write."""
    monkeypatch.setattr(library, "write", lambda folder: folder.mkdir(parents=True, exist_ok=True))


def test_the_committed_pages_are_of_the_committed_records(committed: dict[str, str]) -> None:
    for page, text in sorted(committed.items()):
        path = SITE / page
        is_fresh = path.exists() and path.read_text(encoding="utf-8") == text
        assert is_fresh, f"results/site/{page} is stale: run make report"
    known = {SITE / page for page in committed}
    old = sorted(str(path.relative_to(SITE)) for path in set(SITE.rglob("*.html")) - known)
    assert not old, f"results/site/{old[0]} is of no record: run make report"
    for own in (pages.ROOT / "assets").iterdir():
        copy = SITE / "assets" / own.name
        assert copy.read_bytes() == own.read_bytes(), f"{copy.relative_to(ROOT)} is stale: run make report"


def test_the_library_is_not_committed_and_the_site_stays_below_3_megabytes(committed: dict[str, str]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "results/site"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert not [line for line in listed.stdout.splitlines() if line.endswith(library.NAME)]
    assert sum(len(text.encode()) for text in committed.values()) + LIBRARY_BYTES < 3e6


def test_the_pages_do_not_depend_on_where_the_records_are(committed: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(RESULTS, copy, ignore=shutil.ignore_patterns("site", "figures"))
    assert build.render_site(copy) == (committed, [])


# Links and structure


def test_every_link_leads_to_a_page_and_a_place_in_it(parsed: dict[str, Element]) -> None:
    ids = {page: {own.attrs.get("id") for own in root.all()} for page, root in parsed.items()}
    missing = set()
    for page, root in parsed.items():
        for link in root.all("a", "script", "link"):
            target, place = urldefrag(link.attrs.get("href") or link.attrs.get("src") or "")
            if target == "data:,":
                continue
            path = (
                (Path("/") / Path(page).parent / target).resolve().relative_to("/") if target else Path(page)
            )
            assert ":" not in target and not target.startswith("/"), target
            if str(path).startswith("assets/"):
                assert path.name == library.NAME or (pages.ROOT / path).is_file()
            elif str(path) not in parsed:
                missing.add(str(path))
            else:
                assert not place or place in ids[str(path)], (page, target, place)
    assert not missing


def test_every_page_has_what_screen_readers_need(parsed: dict[str, Element]) -> None:
    for page, root in parsed.items():
        (html,), (title,) = root.all("html"), root.all("title")
        assert html.attrs["lang"] == "en" and title.text.endswith(" - HAM")
        assert [len(root.all(tag)) for tag in ("h1", "main", "nav")] == [1, 1, 1], page
        levels = [int(own.tag[1]) for own in root.all("h1", "h2", "h3")]
        assert all(after <= before + 1 for before, after in pairwise(levels)), page
        assert all(table.all("caption") or page == "tables.html" for table in root.all("table")), page
        assert all(own.attrs.get("scope") for own in root.all("th")), page
        assert all(own.attrs.get("type") == "button" and own.text for own in root.all("button")), page
        labeled = [own for label in root.all("label") for own in label.all(*INPUTS)]
        assert len(labeled) == len(root.all(*INPUTS)), page
        scrolled = [own for own in root.all("div") if "scroll" in own.classes]
        assert all(own.attrs.get("tabindex") == "0" and own.attrs.get("aria-label") for own in scrolled), page
        ids = [own.attrs["id"] for own in root.all() if "id" in own.attrs]
        assert len(ids) == len({*ids}), page


def test_a_page_has_a_name_of_its_own_for_every_configuration() -> None:
    runs = [
        RunSpec(exp, 0, tuple(overrides), demo)
        for demo in ("", *DEMOS)
        for exp, *overrides in map(str.split, lock()[demo])
    ]
    names = {page_of(run) for run in runs}
    hashes = {(run.exp, run.demo, run.overrides and run.info.config_hash[:8]) for run in runs}
    assert len(names) == len(hashes)
    assert all(re.fullmatch(r"runs/[\w-]+\.html", name) for name in names)


# Writing


def test_pages_that_no_longer_exist_are_removed_and_files_of_others_are_kept(
    tmp_path: Path, write_record: Callable[..., Path], no_library: None
) -> None:
    results, site = tmp_path / "results", tmp_path / "site"
    path = write_record(results, RunSpec("acdc_s90", 0))
    assert build.write_site(results, site)[1] == []
    page = site / "runs" / "acdc_s90.html"
    (site / "mine.html").write_text("<p>not ours</p>")
    assert page.exists()
    shutil.rmtree(path.parent)
    build.write_site(results, site)
    assert not page.exists() and (site / "mine.html").exists() and (site / "index.html").exists()


@pytest.mark.parametrize("place", [".", "site/..", "results", "foreign"])
def test_a_folder_of_something_else_is_refused_and_left_as_it_was(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_record: Callable[..., Path],
    no_library: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    write_record(results, RunSpec("acdc_s90", 0))
    assert COMMAND.main(["--results", str(results), "--to", str(tmp_path / "site")]) == 0
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.html").write_text("<p>not ours</p>")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert COMMAND.main(["--results", str(results), "--to", place]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give a folder of its own" in line or "give another folder" in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_repository_is_no_place_for_pages(no_library: None, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (ROOT, ROOT.parent):
        assert COMMAND.main(["--to", str(place)]) == 2
        assert "holds the repository: give a folder of its own" in capsys.readouterr().err


def test_the_library_and_the_pages_are_written_and_pages_that_are_the_same_stay_untouched(
    tmp_path: Path, write_record: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(library, "write", asked.append)
    results, site = tmp_path / "results", tmp_path / "new" / "site"
    write_record(results, RunSpec("acdc_s90", 0))
    written, problems = build.write_site(results, site)
    assert problems == [] and asked == [site / "assets"]
    assert sorted(written) == sorted(site.rglob("*.html"))
    assert (site / "assets" / "site.css").read_bytes() == (pages.ROOT / "assets" / "site.css").read_bytes()
    for path in written:
        os.utime(path, ns=(1, 1))
    (site / "index.html").write_text(f"{pages.GENERATOR} of an older version")
    build.write_site(results, site)
    assert {path.name for path in written if path.stat().st_mtime_ns != 1} == {"index.html"}
    assert (site / "index.html").read_text() == build.render_site(results)[0]["index.html"]


def test_a_page_that_cannot_be_read_is_left_alone(
    tmp_path: Path, write_record: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, no_library: None
) -> None:
    write_record(tmp_path / "results", RunSpec("acdc_s90", 0))
    site = tmp_path / "site"
    build.write_site(tmp_path / "results", site)
    for name in ("closed.html", "open.html"):
        shutil.copy(site / "index.html", site / name)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and Path(path).stem != "closed")
    build.write_site(tmp_path / "results", site)
    assert (site / "closed.html").exists() and not (site / "open.html").exists()


def test_a_record_counts_where_the_same_run_also_diverged() -> None:
    runs = [
        RunSpec("acdc_s90", 1, demo="digits"),
        RunSpec("acdc_s90", 0, demo="digits"),
        RunSpec("acdc_s90", 0),
    ]
    empty = {demo: {} for demo in sources.SETTINGS}
    records = empty | {"digits": dict.fromkeys(runs[:1], "record"), "": {runs[2]: "other"}}
    diverged = empty | {"digits": dict.fromkeys(runs[:2], "nan")}
    found = sources.Sources(records, diverged).groups
    assert [(run.demo, run.seed) for run in found] == [("", 0), ("digits", 0)]
    own = found[runs[1]]
    assert (own.records, own.diverged) == ({1: "record"}, {0: "nan"})
    assert own.page == page_of(runs[0]) == "runs/acdc_s90-digits.html" and own.title == "acdc_s90"


@pytest.mark.parametrize(
    "name", ["folder.html", "dangling.html", "linked.html", "saved.html", "runs/deep/page.html"]
)
def test_html_of_others_in_the_folder_is_left_alone(
    name: str, tmp_path: Path, write_record: Callable[..., Path], no_library: None
) -> None:
    write_record(tmp_path / "results", RunSpec("acdc_s90", 0))
    site = tmp_path / "site"
    build.write_site(tmp_path / "results", site)
    other = site / name
    other.parent.mkdir(parents=True, exist_ok=True)
    if name.startswith("folder"):
        other.mkdir()
    elif name.startswith("dangling"):
        other.symlink_to("nowhere")
    elif name.startswith("linked"):
        other.symlink_to("index.html")
    else:
        other.write_text("<p>not ours</p>" if name == "saved.html" else (site / "index.html").read_text())
    build.write_site(tmp_path / "results", site)
    assert os.path.lexists(other)


def test_an_invalid_record_is_named_and_left_out(
    tmp_path: Path, write_record: Callable[..., Path], no_library: None, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    write_record(results, RunSpec("acdc_s90", 0))
    assert COMMAND.main(["--results", str(results)]) == 0
    write_record(results, RunSpec("acdc_ham_s90", 0)).write_text("{")
    capsys.readouterr()
    assert COMMAND.main(["--results", str(results)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report.py: left out ") and "acdc_ham_s90/seed0.json" in line
    assert {own.name for own in (results / "site" / "runs").iterdir()} == {"acdc_s90.html"}


@pytest.mark.parametrize(
    ("argv", "cure"),
    [
        (["--results", "TMP/nowhere"], "it does not exist: check its name"),
        (["--results", "TMP/file"], "it is a file: give a folder"),
        (["--to", "TMP/file"], "it is a file: give a folder"),
        (["--to", "TMP/file/site"], "give a"),
        (["--results", "TMP/records"], "give the folder above it"),
    ],
)
def test_wrong_use_ends_in_one_line(
    argv: list[str], cure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_library: None
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "seed0.json").write_text("{}")
    assert COMMAND.main([word.replace("TMP", str(tmp_path)) for word in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report.py: ") and cure in line


@pytest.mark.parametrize(
    ("module", "package"),
    [("jinja2", "jinja2"), ("vl_convert", "vl-convert-python"), ("markupsafe", "jinja2")],
)
def test_a_missing_package_is_one_line_with_the_cure(module: str, package: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['report.py', '--to', {str(tmp_path)!r}]; "
        "import runpy; runpy.run_path('scripts/report.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"report.py: {package} is missing: pip install -e '.[site]'\n"


def test_the_library_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vl_convert = pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    calls = []
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda code: calls.append(code) or "var vegaEmbed;")
    folder = tmp_path / "new" / "assets"
    path = library.write(folder)
    first = path.read_text()
    assert path == folder / "vega-lite.js" and calls == ["window.vegaEmbed = vegaEmbed;"]
    mark, bundle = first.splitlines()
    assert vl_convert.__version__ in mark and mark[:3] == "// " and bundle == "var vegaEmbed;"
    assert library.write(folder) == path and len(calls) == 1
    path.write_text("// of another version\n")
    library.write(folder)
    assert path.read_text() == first and len(calls) == 2


@pytest.mark.slow
def test_a_thousand_records_take_less_than_20_seconds(
    tmp_path: Path, make_summary: Callable[..., Any], make_epochs: Callable[..., Any], no_library: None
) -> None:
    """Of processor time, since other processes may run; the library is written once only."""
    exps = [exp for exp in lock()["digits"] if " " not in exp]
    runs = [RunSpec(exp, seed, demo=demo) for demo in ("digits", "") for exp in exps for seed in range(5)]
    for run in runs[:1000]:
        path = path_of(run, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record(make_summary(run))))
        lines = ({key: value for key, value in line.items() if key != "layers"} for line in make_epochs(run))
        metrics_path(path).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    start = time.process_time()
    written, problems = build.write_site(tmp_path, tmp_path / "site")
    assert time.process_time() - start < (60 if is_traced() else 20)
    rows = parse((tmp_path / "site" / "runs.html").read_text()).all("tbody")[0].all("tr")
    assert (len(rows), problems) == (1000, []) and len(written) > 200


def test_the_makefile_writes_the_pages() -> None:
    rules: dict[str, Any] = dict(
        re.findall(r"^(\w+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    assert "scripts/report.py" in rules["report"] and "scripts/report.py" in rules["results"]
