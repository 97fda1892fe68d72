"""Whatever stands in a file of records is data: an odd one is named and left out, and stops no command."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import script
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ham.errors import printable
from ham.files import RESULTS
from ham.report import grid, plan, records, study, table_files
from ham.report.grid_page import page as grid_page
from ham.report.node_report import page as node_page
from ham.report.node_rows import build_report
from ham.report.odd_files import InvalidRecord, find_files
from ham.report.spec import RunSpec
from ham.report.study_page import comma_separated
from ham.report.study_page import page as study_page
from ham.report.study_results import results as study_results

RUN = RunSpec("cifar100", 0)
GOOD = [RunSpec("cifar100_ham", seed) for seed in range(3)]
NODE = RunSpec("node/cora_gcn", 0)
COMMANDS = {name: script(name) for name in ("collect", "tables", "figures", "index", "study", "node_report")}
BOM, DEEP = "\ufeff", "[" * 200 + "]" * 200


def put(*path: str, to: Any) -> Callable[[dict[str, Any]], Any]:
    """A change of one value of a summary."""

    def change(summary: dict[str, Any]) -> Any:
        place = summary
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return summary

    return change


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    """A summary without a field."""
    return lambda summary: {name: value for name, value in summary.items() if name != key}


def raw(change: Callable[[str], str | bytes]) -> Callable[[dict[str, Any]], Any]:
    """A change of the text of a summary."""
    return lambda summary: change(json.dumps(summary))


ODD: dict[str, Callable[[dict[str, Any]], Any]] = {  # 40 kinds
    "empty": raw(lambda text: ""),
    "torn": raw(lambda text: text[: len(text) // 2]),
    "NUL bytes": raw(lambda text: b"\0" * 100),
    "a list": lambda summary: [summary],
    "a text": lambda summary: "done",
    "null": lambda summary: None,
    "nested 200 levels": raw(lambda text: DEEP),
    "nested 100,000 levels": raw(lambda text: "[" * 100_000),
    "invalid UTF-8": raw(lambda text: text.encode().replace(b"AMD", b"\xff\xfe")),
    "a byte order mark": raw(lambda text: (BOM + text).encode()),
    "a key twice": raw(lambda text: text[:-1] + ', "seed": 0}'),
    "an integer of 5,000 digits": raw(lambda text: text.replace('"seed": 0', f'"seed": {"9" * 5000}')),
    "an integer of 4,000 digits": put("sparsity", "kept", to=10**4000),
    "a huge metric": put("metrics", "train_loss", to=10**400),
    "1e400": raw(lambda text: text.replace("75.0", "1e400")),
    "nan": put("metrics", "train_loss", to=float("nan")),
    "inf": put("timing", "seconds", to=float("inf")),
    "a text number": put("sparsity", "total", to="100"),
    "a metric as text": put("metrics", "top1_last", to="75.0"),
    "a metric above 100": put("metrics", "top1_best", to=100.5),
    "a bool as a seed": put("seed", to=False),
    "a seed as a float": put("seed", to=0.0),
    "a negative seed": put("seed", to=-1),
    "a negative count": put("sparsity", "kept", to=-1),
    "an int as a name": put("exp", to=100),
    "a list as provenance": put("provenance", to=[]),
    "a list as metrics": put("metrics", to=[75.0]),
    "no sparsity": drop("sparsity"),
    "no hardware": put("provenance", "hardware", to=None),
    "an int as a processor": put("provenance", "hardware", "cpu", to=7),
    "an int as a commit": put("provenance", "commit", to=12345678),
    "a text as a number of ranks": put("provenance", "ranks", to="two"),
    "an odd earlier part": put("provenance", "resumed_from", to=["once"]),
    "a line break in a name": put("cell", to="Table 6\n| x |"),
    "an escape sequence": put("provenance", "hardware", "cpu", to="\x1b[31mAMD"),
    "a surrogate": raw(lambda text: text.replace("AMD EPYC", "\\ud800")),
    "a link as a name": put("cell", to="[x](javascript:alert(1))"),
    "50 MB": raw(lambda text: text[:-1] + ', "more": "' + "x" * 50_000_000 + '"}'),
    "ranks that did not agree": put("ranks", to={"world_size": 4, "agreed": False}),
    "ranks as a list": put("ranks", to=[4, True]),
}


def write(path: Path, content: Any) -> Path:
    """Write bytes, a text or a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], str]]:
    """`call(command, ...)`: exit status, lines of stderr, stdout."""

    def run(command: str, *argv: object) -> tuple[int, list[str], str]:
        capsys.readouterr()
        status = COMMANDS[command].main(list(map(str, argv)))
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err and "Traceback" not in err
        return status, err.splitlines(), out

    return run


def test_forty_odd_runs_beside_three_good_ones(
    tmp_path: Path, finish_run: Callable, make_summary: Callable, call: Callable
) -> None:
    """collect.py records the good ones and names each of the others once, with its reason."""
    assert len(ODD) == 40
    for run in GOOD:
        finish_run(run)
    places = {}
    for number, (kind, change) in enumerate(ODD.items()):
        folder = tmp_path / "runs" / f"copy{number}" / "cifar100" / "seed0"
        write(folder / "summary.json", change(copy.deepcopy(make_summary(RUN))))
        places[kind] = str(folder)
    status, lines, out = call("collect", tmp_path / "runs", "--results", tmp_path / "results")
    assert status == 1 and "new records: 3, already recorded: 0, left out: 40" in out
    assert len(lines) == 40
    for kind, place in places.items():
        (line,) = (line for line in lines if f" {place}: " in line)
        reason = line.partition(f"{place}: ")[2]
        assert len(reason) > 15 and line.isprintable() and len(line) < 1200, kind
    assert set(records.read_all(results=tmp_path / "results")[0]) == set(GOOD)


@pytest.mark.parametrize("command", ["tables", "figures", "index"])
def test_odd_records_stop_no_report(
    command: str, tmp_path: Path, write_record: Callable, make_summary: Callable, call: Callable
) -> None:
    """The three good ones are shown, and each other one is named once."""
    results = tmp_path / "results"
    for run in GOOD:
        write_record(results, run)
    for number, change in enumerate(ODD.values()):
        odd = change(records.record(copy.deepcopy(make_summary(RUN))))
        write(results / "runs" / "cifar100" / f"seed{number}.json", odd)
    status, lines, _ = call(command, "--results", results)
    assert status == 1 and len(lines) == 40 and all(map(str.isprintable, lines))
    for number in range(40):
        assert sum(f"seed{number}.json: " in line for line in lines) == 1
    shown = {"tables": "tables/table07.md", "figures": "figures/figure11.png", "index": "README.md"}[command]
    assert (results / shown).exists()
    if command == "tables":
        assert "75.00 ± 0.00 (n = 3)" in (results / shown).read_text()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["100", "`|\n", "\x1b[31m", "](javascript:x)", "\\input{x}", "x" * 20_000, 10**4200]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def mutated(content: Any, value: Any, draw: random.Random) -> Any:
    """The content with another value, or none, at a random place."""
    content = copy.deepcopy(content)
    place, chosen = content, None
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.2:
            chosen = key
            break
        place = place[key]
    if chosen is None:
        return value
    if draw.random() < 0.15:
        del place[chosen]
    else:
        place[chosen] = value
    return content


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    run=st.sampled_from([RUN, NODE, RunSpec("node/cora_gcn_ham", 0), RunSpec("dense", 1, demo="digits")]),
    value=VALUES,
    seed=st.integers(0, 2**32),
)
def test_a_record_with_any_value_anywhere_is_rendered_or_named(
    run: RunSpec, value: Any, seed: int, tmp_path: Path, make_summary: Callable
) -> None:
    results = tmp_path / "results"
    shutil.rmtree(results, ignore_errors=True)
    path = records.path_of(run, results)
    try:
        write(path, mutated(records.record(make_summary(run)), value, random.Random(seed)))
    except ValueError:  # an integer that json cannot write
        return
    loaded, problems = records.read_all(run.demo, results)
    assert len(loaded) + len(problems) == 1
    assert all(line.startswith(str(path)) and line.isprintable() and len(line) < 1500 for line in problems)
    for record in loaded.values():
        assert record.run == run
        for name in (name for name in plan.tables() if run.exp in {c.exp for c in plan.table(name).cells}):
            assert table_files.render_table(name, loaded, run.demo)
        summaries = {run: record.content}
        if run == NODE:
            report = build_report_of(summaries)
            assert node_page(report, [], "records").count("| cora | GCN | 1 of 5 |") == 1


def build_report_of(summaries: dict[RunSpec, dict[str, Any]]) -> Any:
    """The report of node classification on these summaries."""
    from ham.report import node_rows

    before = node_rows._read_summaries
    node_rows._read_summaries = lambda *_: (summaries, set())
    try:
        return build_report()
    finally:
        node_rows._read_summaries = before


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES, seed=st.integers(0, 2**32))
def test_a_record_of_a_study_with_any_value_anywhere_is_rendered_or_named(
    value: Any, seed: int, tmp_path: Path, make_summary: Callable, make_epochs: Callable
) -> None:
    """The epochs too, which curves and the page show; and a run that diverged."""
    results, planned = tmp_path / "results", study.study("cifar16")
    run, draw = planned.trial("SGD", 0.05), random.Random(seed)
    summary, lines = records.record(make_summary(run)), make_epochs(run)
    which = draw.randrange(3)
    if which == 2:
        lost = make_summary(run, status="diverged", reason="the loss is not finite", epochs=1)
        path, content = records.diverged_path(records.path_of(run, results)), records.divergence_record(lost)
    else:
        path, content = records.path_of(run, results), summary
    shutil.rmtree(results, ignore_errors=True)
    try:
        write(path, mutated(content, value, draw) if which else content)
        if which < 2:
            lines = lines if which else mutated(lines, value, draw)
            text = "".join(f"{json.dumps(line)}\n" for line in lines) if isinstance(lines, list) else "x"
            write(records.metrics_path(path), text)
    except ValueError:
        return
    loaded, problems = records.read_all("cifar16", results)
    diverged, more = records.read_diverged("cifar16", results)
    assert len(loaded) + len(diverged) + len({*problems, *more}) == 1
    assert all(line.isprintable() and str(path)[:-5] in line for line in [*problems, *more])
    result = study_results(planned, loaded, diverged)
    assert "\x1b" not in study_page(result) + comma_separated(result)
    for record in loaded.values():
        assert all(isinstance(line.get("train_loss"), float | int | None) for line in record.epochs())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES, seed=st.integers(0, 2**32))
@example(value="", seed=76312)
def test_a_grid_with_any_value_anywhere_is_rendered_or_named(value: Any, seed: int, tmp_path: Path) -> None:
    committed = next(grid.FOLDER.glob("*.json"))
    path = tmp_path / committed.name
    try:
        write(path, mutated(json.loads(committed.read_text()), value, random.Random(seed)))
    except ValueError:
        return
    grids, problems = grid.read_all(tmp_path)
    assert len(grids) + len(problems) == 1 and all(map(str.isprintable, problems))
    assert grid_page(grids).count("## cora") == len(grids)


def test_a_record_of_a_study_without_its_epochs_is_named(
    tmp_path: Path, write_record: Callable, call: Callable
) -> None:
    run = study.study("cifar16").trial("SGD", 0.05)
    path = records.metrics_path(write_record(tmp_path, run))
    path.unlink()
    status, lines, _ = call("study", "cifar16", "--results", tmp_path)
    assert (status, lines) == (1, [f"study.py: left out {path}: it is missing: collect the run again"])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"theta": 1}', "null", '"x"', "[" * 10_000, "\0", '{"a": NaN}']
)
def test_odd_data_of_the_theory_are_named_and_the_other_figure_drawn(
    text: str, tmp_path: Path, call: Callable
) -> None:
    folder = tmp_path / "theory"
    write(folder / "figure01.json", text)
    shutil.copy(RESULTS / "theory" / "figure02b.json", folder)
    others = [] if text else ["2b"]  # one drawing is enough
    status, lines, _ = call("figures", "--theory", "--figure", "1", *others, "--results", tmp_path)
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith(f"figures.py: left out {folder / 'figure01.json'}: ")
    drawn = {path.name for path in tmp_path.glob("figures/*")}
    assert drawn == {f"figure{other.zfill(3)}.{ending}" for other in others for ending in ("pdf", "png")}


MARKUP = (
    "a | b",
    "`code`",
    "two\nlines",
    "\x1b[2J",
    "[x](javascript:alert(1))",
    "<script>",
    "\\input{/etc/passwd}",
    "$x$",
    "**bold**",
    "_x_",
    "\u202eevil",
    "caf\u00e9",
    "x" * 400,
)


@pytest.mark.parametrize("text", MARKUP)
def test_no_markup_of_a_stranger_is_accepted(text: str, make_summary: Callable) -> None:
    """Names that pages show, the processor, the graph and the reason of a divergence are plain words."""
    places = [(RUN, ("cell",)), (RUN, ("provenance", "hardware", "cpu")), (NODE, ("graph", "name"))]
    for run, place in places:
        with pytest.raises(InvalidRecord, match=f"{place[-1]} is not in plain words") as error:
            records.check(put(*place, to=text)(copy.deepcopy(make_summary(run))))
        assert str(error.value).isprintable()
    lost = make_summary(RUN, status="diverged", reason=text, epochs=1)
    with pytest.raises(InvalidRecord, match="reason is not in plain words"):
        records.check_divergence(lost)


def test_words_that_runs_write_are_accepted(make_summary: Callable) -> None:
    for cpu in ("", "Intel(R) Xeon(R) CPU @ 2.20GHz", "AMD EPYC 7B13", "Neoverse-N1", "POWER9, altivec"):
        assert records.check(put("provenance", "hardware", "cpu", to=cpu)(make_summary(RUN))) == RUN
    for reason in ("the loss is not finite at step 204", "layer1.0.conv1.weight is not finite at step 3"):
        assert records.check_divergence(make_summary(RUN, status="diverged", reason=reason, epochs=0)) == RUN
    assert records.check(make_summary(RUN, cell="Figure 5, dense m * w with decay")) == RUN


@pytest.mark.parametrize(
    ("ranks", "is_valid"),
    [
        ({"world_size": 1, "agreed": True}, True),
        ({"world_size": 4, "agreed": True}, True),
        ({"world_size": 4, "agreed": False}, False),
        ({"world_size": 4}, False),
        ({"world_size": 4, "agreed": 1}, False),
        ({"world_size": 0, "agreed": True}, False),
        ({"world_size": "4", "agreed": True}, False),
        ({"world_size": True, "agreed": True}, False),
        ({}, False),
    ],
)
def test_ranks_must_have_agreed(ranks: dict, is_valid: bool, make_summary: Callable) -> None:
    """The record keeps the key, so that an archive of the run is judged alike."""
    summary = make_summary(RUN, ranks=ranks)
    summary["provenance"]["ranks"] = ranks.get("world_size", 4) if is_valid else 4
    if isinstance(ranks.get("world_size"), bool):
        summary["provenance"]["ranks"] = 1
    if is_valid:
        assert records.check(summary) == RUN and records.record(summary)["ranks"] == ranks
    else:
        with pytest.raises(InvalidRecord, match="its ranks did not agree"):
            records.check(summary)


def test_the_number_of_ranks_must_be_that_of_the_provenance(make_summary: Callable) -> None:
    for summary in (make_summary(RUN), make_summary(RUN, ranks={"world_size": 2, "agreed": True})):
        summary["provenance"]["ranks"] = 4
        with pytest.raises(InvalidRecord, match="its ranks did not agree"):
            records.check(summary)


# folders and links


def test_links_between_runs_and_seeds_are_followed_once(
    tmp_path: Path, finish_run: Callable, call: Callable
) -> None:
    """A linked experiment, a linked seed, a second link to a run that is there, a loop, and a dead link."""
    folders = [finish_run(run) for run in GOOD]
    away = tmp_path / "away"
    away.mkdir()
    runs = tmp_path / "runs"
    for place, link in ((folders[0], "a"), (folders[1], "b")):
        place.rename(away / link)
    (folders[0]).symlink_to(away / "a")
    finish_run(RUN).parent.rename(away / "c")
    (runs / "cifar100").symlink_to(os.path.relpath(away / "c", runs))
    folders[1].symlink_to(away / "b")
    (runs / "a_copy").symlink_to(runs / "cifar100_ham")
    (runs / "cifar100_ham" / "loop").symlink_to(runs)
    (runs / "gone").symlink_to(tmp_path / "nowhere")
    status, lines, out = call("collect", runs, "--results", tmp_path / "results")
    assert "new records: 4, already recorded: 0, left out: 1" in out and status == 1
    assert lines == [
        f"collect.py: left out {runs / 'gone'}: it cannot be read (No such file or directory): "
        "check the folder"
    ]
    loaded, problems = records.read_all(results=tmp_path / "results")
    assert set(loaded) == {RUN, *GOOD} and not problems


def test_linked_folders_of_records_are_read(tmp_path: Path, write_record: Callable) -> None:
    write_record(tmp_path / "results", RUN)
    folder = tmp_path / "results" / "runs" / "cifar100"
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "away")
    (tmp_path / "away" / "loop").symlink_to(folder)
    assert set(records.read_all(results=tmp_path / "results")[0]) == {RUN}


@pytest.mark.parametrize("given", ["absolute", "relative"])
def test_a_record_in_a_wrong_place_is_named_with_its_place(
    given: str, tmp_path: Path, write_record: Callable, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One folder too high, too deep, under another name: also where a table needs none of them."""
    write_record(tmp_path / "results", NODE)
    right = records.path_of(NODE, tmp_path / "results")
    records.metrics_path(right).unlink()
    wrong = ("seed0.json", "node/seed0.json", "node/cora_gcn/old/seed0.json", "cora_gcn/seed0.json")
    for name in wrong:
        shutil.copy(right, write(tmp_path / "results" / "runs" / name, {}))
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results" if given == "absolute" else Path("results")
    for argv in ([], ["--table", "4"]):
        status, lines, _ = call("tables", *argv, "--results", results)
        assert status == 1 and len(lines) == len(wrong)
        for line, name in zip(sorted(lines), sorted(wrong), strict=True):
            assert line == (
                f"tables.py: left out {results / 'runs' / name}: it is in a wrong place: move it to "
                f"{results / 'runs' / 'node' / 'cora_gcn' / 'seed0.json'}, or remove it if that exists"
            )


def test_a_result_outside_a_run_directory_is_named(
    tmp_path: Path, finish_run: Callable, call: Callable
) -> None:
    folder = finish_run(RUN)
    shutil.copy(folder / "summary.json", folder.parent)
    status, lines, _ = call("collect", tmp_path / "runs", "--results", tmp_path / "results")
    assert status == 1
    assert lines == [
        f"collect.py: left out {folder.parent}: it is not in a run directory <exp>/seed<k>: move it there"
    ]


@pytest.mark.parametrize("command", ["tables", "figures", "index", "study"])
def test_a_wrong_folder_of_results_is_one_line_with_the_cure(
    command: str, tmp_path: Path, write_record: Callable, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path / "results", RUN)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    cures = {
        "none": "it does not exist: check its name",
        "file": "it is a file: give a folder",
        "file/x": "it cannot be opened (Not a directory): give another folder",
        "link": "it is a link to nothing: remove it or give another folder",
        "loop": "it cannot be opened (Too many levels of symbolic links): give another folder",
        "results/runs": "holds records itself: give the folder above it",
        "results/runs/cifar100": "holds records itself: give the folder above it",
        ".": "has no records: give results",
    }
    chosen = ["cifar16"] if command == "study" else []
    for folder, cure in cures.items():
        status, lines, _ = call(command, *chosen, "--results", folder)
        assert (status, len(lines)) == (2, 1) and lines[0].endswith(cure), folder
    (tmp_path / "empty").mkdir()
    assert call(command, *chosen, "--results", "empty")[1][0].endswith(
        "--results empty has no records yet: scripts/collect.py adds them"
    )
    if command != "index":
        status, lines, _ = call(command, *chosen, "--results", "results", "--to", "file")
        assert (status, len(lines)) == (2, 1) and lines[0].endswith("it is a file: give a folder")


def test_a_wrong_folder_of_runs_is_one_line(tmp_path: Path, call: Callable) -> None:
    (tmp_path / "file").touch()
    for folder, cure in (("none", "it does not exist"), ("file", "it is a file: give a folder")):
        status, lines, _ = call("node_report", "--runs", tmp_path / folder)
        assert (status, len(lines)) == (2, 1) and cure in lines[0]
    (tmp_path / "empty").mkdir()
    status, lines, out = call("collect", tmp_path / "empty", "--results", tmp_path / "results")
    assert (status, lines) == (0, []) and f"{tmp_path / 'empty'}: no run has finished there" in out
    (tmp_path / "no records").mkdir()
    assert call("collect", tmp_path / "empty", "--results", tmp_path / "no records")[:2] == (0, [])
    status, lines, _ = call("collect", tmp_path / "empty", "--results", tmp_path / "file")
    assert (status, len(lines)) == (2, 1) and "it is a file: give a folder" in lines[0]


def test_a_pipe_does_not_stop_a_search(tmp_path: Path, finish_run: Callable, call: Callable) -> None:
    folder = tmp_path / "runs" / "cifar100" / "seed0"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "summary.json")
    (folder.parent / "seed1" / "summary.json").mkdir(parents=True)
    finish_run(GOOD[0])
    start = time.monotonic()
    status, lines, out = call("collect", tmp_path / "runs", "--results", tmp_path / "results")
    assert status == 1 and "new records: 1" in out and time.monotonic() - start < 30
    assert [line.partition(": left out ")[2] for line in lines] == [
        f"{folder.parent / name}: summary.json is not a regular file: remove it"
        for name in ("seed0", "seed1")
    ]


def test_odd_names_of_folders_are_escaped(tmp_path: Path, finish_run: Callable, call: Callable) -> None:
    """Line breaks, control characters, and bytes that are no UTF-8."""
    names = [b"two\nlines", b"\x1b[31m", b"\xff\xfe", "\u202e".encode(), b"a`|b"]
    for name in names:
        folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "runs"), name))) / "seed0"
        write(folder / "summary.json", "{}")
    status, lines, out = call("collect", tmp_path / "runs", "--results", tmp_path / "results")
    assert status == 1 and len(lines) == len(names) and all(map(str.isprintable, [*lines, *out.splitlines()]))
    (out + "".join(lines)).encode()  # a terminal can print it


@pytest.mark.parametrize("text", ["a\nb", "\x1b[0m", "\udcff", "\u2028", "x" * 10**6, "\0", "plain"])
def test_a_message_is_one_printable_line(text: str) -> None:
    assert str(InvalidRecord(text)).isprintable() and len(printable(text)) < 1100
    assert "plain" in printable("plain")


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    write(tmp_path / "open" / "a.json", {})
    scan = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, who can read all
    files, problems = find_files(tmp_path, lambda path: path.suffix == ".json")
    assert files == [tmp_path / "open" / "a.json"]
    assert problems == [f"{tmp_path / 'locked'}: it cannot be read (Permission denied): check the folder"]


# runs that diverged


def test_a_cell_whose_seeds_all_diverged_says_so(
    tmp_path: Path, make_summary: Callable, call: Callable
) -> None:
    """In every format; a cell that never ran still says "not run"."""
    for seed in range(3):
        lost = make_summary(
            RunSpec("snip_ham_s90", seed), status="diverged", reason="the loss is inf", epochs=3
        )
        records.write_divergence(RunSpec("snip_ham_s90", seed), lost, tmp_path)
    lost = make_summary(RunSpec("snip_s90", 1), status="diverged", reason="the loss is inf", epochs=3)
    records.write_divergence(RunSpec("snip_s90", 1), lost, tmp_path)
    assert call("tables", "--table", "10", "--results", tmp_path)[:2] == (0, [])
    for ending in ("md", "tex"):
        text = (tmp_path / "tables" / f"table10.{ending}").read_text()
        assert text.count("diverged (3 of 3)") == 1 and text.count("diverged (1 of 3)") == 1
        assert "not run" in text and "seed 2 (the loss is inf)" in text.replace("\n", " ")
