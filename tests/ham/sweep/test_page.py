"""scripts/sweep.py --status --html: the page of a sweep, and how it estimates the time that is left."""

from __future__ import annotations

import fcntl
import html
import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep_files import DEPENDENT, SOURCE, finish, stand_in

from ham.report.spec import RunSpec
from ham.site import sweep as page_of_sweep
from ham.site.sweep import page
from ham.sweep.pace import Pace, duration, measured_pace, seconds_left
from ham.sweep.resources import resources
from ham.sweep.status import Sweeps

Sweep = Callable[..., tuple[int, str, str]]
EVIL = "<script>alert(1)</script> & \"quotes\" 'single' <img src=x onerror=alert(2)> </pre></style>"
DENSE = RunSpec("dense", 0, demo="tiny")
TABLE = ("--table=10", "--seeds=0", "--demo=tiny", "--only=mask_acdc_s90")


def log_of(run: RunSpec, sweeps: Sweeps, text: str) -> Path:
    folder = run.folder(sweeps.runs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.log").write_text(text)
    return folder


def text_of(page: str) -> str:
    """What a reader sees, with single spaces."""
    body = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_the_page_shows_parts_runs_epochs_and_logs(sweep: Sweep, sweeps: Sweeps, tmp_path: Path) -> None:
    folder = log_of(SOURCE, sweeps, "one\ntwo\nthree\nfour\n")
    (folder / "metrics.jsonl").write_text('{"epoch": 0}\n')
    file = tmp_path / "new" / "sweep.html"
    before = datetime.now(UTC).replace(microsecond=0)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert sweep(*TABLE, "--status", f"--html={file}")[0] == 0
    text = text_of(file.read_text())
    written = datetime.fromisoformat(re.search(r"Written at (\S+ \S+) UTC", text)[1]).replace(tzinfo=UTC)
    assert before <= written <= datetime.now(UTC)
    assert "1 running 1 not launched" in text
    assert "table10 0 of 1 0 of 1 1 not launched" in text
    assert "their masks 0 of 1 0 of 1 1 running" in text
    epochs = SOURCE.info.epochs
    assert f"{SOURCE} running 1 of {epochs} epochs 1 of {epochs} by another process two three four" in text
    assert "Failed runs None." in text
    assert not [path for path in file.parent.iterdir() if path != file]


def test_a_failed_run_is_shown_and_gives_status_1(sweep: Sweep, sweeps: Sweeps, tmp_path: Path) -> None:
    log_of(DEPENDENT, sweeps, "starts\nout of memory\n")
    file = tmp_path / "sweep.html"
    status, out, _ = sweep(*TABLE, "--status", f"--html={file}")
    assert status == 1 and "failed" in out
    text = text_of(file.read_text())
    assert f"Failed runs {DEPENDENT} failed 0 of" in text and "starts out of memory" in text
    assert "Active runs None." in text


def test_a_page_of_strangers_texts_has_no_markup_of_theirs(sweep: Sweep, tmp_path: Path) -> None:
    """Logs, the name of the folder of runs, and what SLURM says."""
    for runs in (tmp_path / EVIL.replace("/", "|"), tmp_path / "runs"):
        sweeps = Sweeps(runs)
        log_of(DEPENDENT, sweeps, f"{EVIL}\n\x1b[31m{EVIL}\x00\n")
        finish(SOURCE, sweeps, config_hash=EVIL, timing=EVIL)
        states = sweeps.survey([DEPENDENT])
        sweeps.queue_error = EVIL
        content = page(sweeps, {"table10": [DEPENDENT], EVIL: [SOURCE]}, states, datetime.now(UTC))
        body = content.partition("<body>")[2]
        assert body.count("<script>") == content.count("</script>") == 1
        assert content.count("</style>") == 1 and "<img" not in content
        assert text_of(content).count("<img src=x onerror=alert(2)>") >= 4
        assert "\x1b" not in content and "\x00" not in content
        assert "\\x1b[31m" in text_of(content)


@pytest.mark.parametrize("mode", [[], ["--dry-run"], ["--local"], ["--submit"], ["--brief"]])
def test_a_page_without_status_is_an_error_in_one_line(sweep: Sweep, tmp_path: Path, mode: list[str]) -> None:
    status, out, err = sweep(*TABLE, *mode, f"--html={tmp_path / 'sweep.html'}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("sweep.py: --html") and "give it with --status" in err
    assert not (tmp_path / "sweep.html").exists()


@pytest.mark.parametrize(
    "place", [".", "/dev/null", "file/sweep.html", "link/sweep.html", "/dev/full", "file", "thesis.tex"]
)
def test_a_place_that_cannot_hold_the_page_is_an_error_in_one_line(
    sweep: Sweep, no_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    stand_in(no_slurm, "squeue", "")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("thesis.tex").write_text("ours")
    Path("link").symlink_to("nowhere")
    status, out, err = sweep(*TABLE, "--status", f"--html={place}")
    assert (status, out) == (2, "") and Path("thesis.tex").read_text() == "ours"
    line = err.splitlines()[-1]
    assert line.startswith("sweep.py: --html") and re.search(r"give (another|a) ", line)


@pytest.mark.parametrize("package", ["jinja2", "markupsafe"])
def test_a_missing_package_is_one_line_with_the_cure(
    sweep: Sweep, no_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    stand_in(no_slurm, "squeue", "")
    (tmp_path / "runs").mkdir(exist_ok=True)
    for name in [name for name in sys.modules if name.startswith("ham.site")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = sweep(*TABLE, "--status", f"--html={tmp_path / 'sweep.html'}")
    assert result == (2, "", "sweep.py: --html needs jinja2: pip install -e '.[site]'\n")


def test_the_page_replaces_the_old_one_at_once(sweep: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "sweep.html"
    sweep(*TABLE, "--status", f"--html={file}")
    old = file.read_text() + "<!-- old -->"
    file.write_text(old)
    with file.open() as reader:
        sweep(*TABLE, "--status", f"--html={file}")
        assert reader.read() == old
    assert file.read_text().startswith("<!doctype html>") and "<!-- old -->" not in file.read_text()


def test_the_page_is_written_into_new_folders_of_any_depth(sweep: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "new" / "deep" / "sweep.html"
    assert sweep(*TABLE, "--status", f"--html={file}")[0] == 0 and file.is_file()


def test_the_last_lines_of_the_latest_log_are_shown_or_why_it_cannot_be_read(tmp_path: Path) -> None:
    for name, text in (("old", "one\n"), ("new", "two\nthree\nfour\nfive\n")):
        (tmp_path / name).write_text(text)
    logs = {"both": [tmp_path / "old", tmp_path / "new"], "none": [], "folder": [tmp_path]}
    shown = {
        name: page_of_sweep._log(DENSE, SimpleNamespace(existing_logs=lambda run, paths=paths: paths))
        for name, paths in logs.items()
    }
    assert shown["both"] == ["three", "four", "five"] and shown["none"] == []
    (line,) = shown["folder"]
    assert line.startswith("its log cannot be read: ")


def test_the_page_reloads_itself_and_needs_no_other_file(sweep: Sweep, tmp_path: Path) -> None:
    sweep(*TABLE, "--status", f"--html={tmp_path / 'sweep.html'}")
    content = (tmp_path / "sweep.html").read_text()
    assert re.search(r'<noscript><meta http-equiv="refresh" content="60"></noscript>', content)
    assert "location.reload()" in content and 'href="#paused"' in content and 'id="paused"' in content
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)|url\(|@import""", content)


@pytest.mark.parametrize(
    ("log", "seconds"),
    [
        ("2026-01-01 10:00:00  epoch 1/10  x\n2026-01-01 10:01:00  epoch 2/10  x\n", 600),
        # stopped for a day, and resumed after epoch 2
        (
            "2026-01-01 10:00:00  epoch 1/4  x\n2026-01-01 10:01:00  epoch 2/4  x\n"
            "2026-01-02 10:00:00  epoch 3/4  x\n2026-01-02 10:01:00  epoch 4/4  x\n",
            240,
        ),
        # the log shows every fifth epoch; the run starts again
        (
            "2026-01-01 10:00:00  epoch 1/20  x\n2026-01-01 10:00:05  epoch 6/20  x\n"
            "2026-01-01 11:00:00  epoch 1/20  x\n2026-01-01 11:00:05  epoch 6/20  x\n",
            20,
        ),
        ("2026-01-01 10:00:00  step 5/100  x\nnoise\n2026-01-01 10:00:10  step 10/100  x\n", 200),
        ("2026-01-01 10:00:00  epoch 1/10  x\n", None),
        ("2026-99-01 10:00:00  epoch 1/0  x\n2026-01-01 10:00:00  epoch 1/0  x\n", None),
        ("", None),
    ],
)
def test_the_pace_of_a_run_by_its_log(sweeps: Sweeps, log: str, seconds: float | None) -> None:
    log_of(DENSE, sweeps, log)
    pace = measured_pace([DENSE], sweeps).of(DENSE)
    assert pace == (None if seconds is None else pytest.approx(seconds / DENSE.info.epochs))


@pytest.mark.parametrize("timing", [None, {}, {"seconds": "1"}, {"seconds": True}, {"seconds": -1.0}, [1]])
def test_an_odd_time_in_a_summary_does_not_count(sweeps: Sweeps, timing: object) -> None:
    finish(DENSE, sweeps, timing=timing)
    assert measured_pace([DENSE], sweeps).of(DENSE) is None


def test_the_pace_is_of_runs_that_cost_the_same(sweeps: Sweeps) -> None:
    finish(DENSE, sweeps, timing={"seconds": 8.0})
    pace = measured_pace([DENSE], sweeps)
    assert pace.of(RunSpec("dense_ham", 3, demo="tiny")) == 8.0 / DENSE.info.epochs
    for other in (RunSpec("dense", 0), RunSpec("dense_sam", 0, demo="tiny"), RunSpec("cifar100", 0)):
        assert pace.of(other) is None
        assert pace.of_any(other) == 8.0 / DENSE.info.epochs
    assert Pace().of_any(DENSE) is None


def test_the_time_left_counts_the_epochs_that_are_left(sweeps: Sweeps) -> None:
    folder = log_of(DENSE, sweeps, "")
    (folder / "metrics.jsonl").write_text('{"epoch": 0}\n')
    runs = [DENSE, RunSpec("dense", 0)]
    seconds, unknown = seconds_left(runs, sweeps, lambda run: 10.0 if run == DENSE else None)
    assert (seconds, unknown) == (10 * (DENSE.info.epochs - 1), 1)


def time_left(sweeps: Sweeps, runs: list[RunSpec]) -> str:
    content = page(sweeps, {"x": runs}, sweeps.survey(runs), datetime.now(UTC))
    return html.unescape(re.search("<p>Time left: (.*?)</p>", content)[1])


def test_the_speed_that_is_assumed_is_of_an_epoch() -> None:
    """ImageNet has 1,281,167 training images; no speed is assumed of a tiny run."""
    images_per_second = resources()["imagenet_rn50"].images_per_second
    seconds = page_of_sweep._assumed_pace(RunSpec("dense", 0))
    assert seconds == pytest.approx(1_281_167 / images_per_second)
    assert page_of_sweep._assumed_pace(DENSE) is None


def test_beside_a_single_run_the_others_follow_one_after_the_other(sweeps: Sweeps) -> None:
    runs = [RunSpec("dense", seed, demo="tiny") for seed in range(3)]
    finish(runs[0], sweeps, timing={"seconds": 60.0})
    folder = log_of(runs[1], sweeps, "")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        estimate = time_left(sweeps, runs)
    assert estimate == (
        f"about {duration(120)} with runs one after the other, "
        "by the pace of runs that ended or are running (2 runs)."
    )


def test_the_page_names_the_source_of_the_time_left(sweeps: Sweeps) -> None:
    tiny, paper = [RunSpec("dense", seed, demo="tiny") for seed in range(4)], RunSpec("dense", 0)
    assert time_left(sweeps, tiny) == "unknown, because no run like the 4 runs left has been timed."
    hours = re.fullmatch(
        r"at least (.*) with runs one after the other, by the speed that slurm/resources.yaml assumes "
        r"\(1 run\)\. 4 runs more: unknown\.",
        time_left(sweeps, [paper, *tiny]),
    )
    assert hours and re.fullmatch(r"\d+ h \d+ min", hours[1])
    finish(tiny[0], sweeps, timing={"seconds": 60.0})
    folders = [log_of(run, sweeps, "") for run in tiny[1:3]]
    locks = [(folder / "lock").open("w") for folder in folders]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folders[0] / "metrics.jsonl").write_text(
        "".join(f"{json.dumps({'epoch': epoch})}\n" for epoch in range(tiny[0].info.epochs))
    )
    assert time_left(sweeps, tiny) == (  # one has done all its epochs
        f"about {duration(60)} with runs 2 side by side as now, "
        "by the pace of runs that ended or are running (3 runs)."
    )
    for lock in locks:
        lock.close()
    ended = Sweeps(sweeps.runs.with_name("ended"))
    for run in tiny:
        finish(run, ended)
    assert time_left(ended, tiny) == "none, because no run is left."
