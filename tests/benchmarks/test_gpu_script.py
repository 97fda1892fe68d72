"""benchmarks/gpu.sh: slices that stop, go on and end, with runs scaled down and with stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import cells
import on_gpu
import pytest
from study import Cell, Study

from ham.report import plan

ROOT = Path(__file__).resolve().parents[2]
KEPT = {"summary.json", "metrics.jsonl", "provenance.json", "config.yaml"}


def archived(path: Path) -> dict[str, str]:
    """The files of an archive by name."""
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read().decode() for member in archive}


def test_slices_stop_go_on_and_end_and_a_failing_cell_stops_nobody(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    names = "cifar100_ham,nonsense"
    options = ["--tiny", "--jobs", "2", "--epochs", "16", "--runs", str(runs), "--experiments", names]

    def piece(seconds: float) -> subprocess.CompletedProcess[str]:
        command = [
            ROOT / "benchmarks" / "gpu.sh",
            "cells",
            *options,
            "--seeds",
            "0",
            "--seconds",
            str(seconds),
        ]
        environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable}
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert time.monotonic() - began < seconds + 5
        return done

    seconds = 8.0
    while not list(runs.glob("*/seed0/last.pt")):  # a busy machine may need more time to begin
        stopped = piece(seconds)
        assert stopped.returncode == 85, stopped.stderr
        seconds *= 1.3
    assert "stopped (status 85)" in stopped.stdout
    begun = next(runs.glob("*/seed0/last.pt")).parent
    assert not (begun / "summary.json").exists()
    assert not archived(out / "cells.tar.gz")

    finished = piece(200)
    assert finished.returncode == 1, finished.stderr  # the cell that is none
    assert "nonsense/seed0                  failed 2 times: train.py: " in finished.stdout
    assert "1 of 2 runs done, 0 epochs left" in finished.stdout
    info = json.loads((begun / "provenance.json").read_text())
    assert len(info["resumed_from"]) == 1

    again = piece(60)
    assert again.returncode == 1 and "begins" not in again.stdout

    assert {path.name for path in out.iterdir()} == {"cells.tar.gz"}
    files = archived(out / "cells.tar.gz")
    assert set(files) == {f"cifar100_ham/seed0/{name}" for name in KEPT}
    for name, text in files.items():
        for place in (str(ROOT), str(tmp_path), os.uname().nodename, str(Path.home())):
            assert place not in text, name
    assert len(files["cifar100_ham/seed0/metrics.jsonl"].splitlines()) == 16


STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

told = dict(text.lstrip("+").split("=", 1) for text in sys.argv[1:])
folder = Path(told["runs_dir"]) / told["exp"] / ("seed" + told["seed"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "metrics.jsonl", "a") as file:
    file.write("{}\\n")
if told["exp"] == "diverges":
    print(" 50%|  | 66/88 [0<0]\\rtrain.py: diverged; the checkpoint is /a/b/last.pt", file=sys.stderr)
    sys.exit(1)
if told["exp"] == "vanishes":
    os.kill(os.getpid(), signal.SIGKILL)
if told["exp"] == "flaky" and len((folder / "metrics.jsonl").read_text()) < 4:
    sys.exit(1)
if told["exp"] == "obeys":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(85))
    time.sleep(60)
if told["exp"] == "deaf":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    time.sleep(60)
facts = {"argv": sys.argv[1:]}
summary = {"metrics": {"top1_last": 78.125}, "sparsity": {"layers": {}}, "provenance": facts}
(folder / "provenance.json").write_text(json.dumps(facts))
(folder / "config.yaml").write_text("data:\\n  root: /data\\nruns_dir: /home/me/runs\\nseed: 0\\n")
(folder / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A repository whose runs are stand-ins."""
    (tmp_path / "train.py").write_text(STAND_IN)
    return tmp_path


def study(room: Path, *names: str, seeds: tuple[int, ...] = (0,), records: Path | None = None) -> Study:
    wanted = tuple(Cell(name, seed) for seed in seeds for name in names)
    return Study(wanted, Path("runs/gpu"), epochs=2, records=records, root=room)


def carry_out(wanted: Study, room: Path, seconds: float = 30, grace: float = 1) -> int:
    deadline = time.monotonic() + seconds
    return cells.train(wanted, jobs=2, deadline=deadline, grace=grace, out=room / "out")


def test_failures_are_tried_twice_told_and_then_left_out(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = study(room, "diverges", "vanishes", "flaky", "good")
    assert carry_out(wanted, room) == 1
    said = capsys.readouterr().out
    assert (
        "diverges/seed0                  failed 2 times: train.py: diverged; the checkpoint is last.pt"
        in said
    )
    assert "vanishes/seed0                  failed 2 times: exit status -9" in said
    assert "flaky/seed0                     done, top-1 78.12 %" in said
    assert "good/seed0                      done" in said
    assert carry_out(wanted, room) == 1
    assert "begins" not in capsys.readouterr().out
    (room / "runs" / "gpu" / "failures.json").unlink()
    assert wanted.missing() == [Cell("diverges", 0), Cell("vanishes", 0)]


def test_a_run_that_does_not_stop_is_killed_in_time(room: Path) -> None:
    began = time.monotonic()
    assert carry_out(study(room, "deaf", "good"), room, seconds=3, grace=1) == 85
    assert time.monotonic() - began < 5
    assert not (room / "runs" / "gpu" / "failures.json").exists()
    assert set(archived(room / "out" / "cells.tar.gz")) == {f"good/seed0/{name}" for name in KEPT}


def test_a_signal_ends_a_slice_early_and_its_runs_may_save(room: Path) -> None:
    began = time.monotonic()
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    timer.start()
    assert carry_out(study(room, "obeys"), room, seconds=60) == 85
    assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (room / "runs" / "gpu" / "failures.json").exists()


def test_what_comes_back_names_no_place(room: Path) -> None:
    assert carry_out(study(room, "good"), room) == 0
    files = archived(room / "out" / "cells.tar.gz")
    assert files["good/seed0/config.yaml"] == "data:\n  root: ''\nruns_dir: ''\nseed: 0\n"
    assert json.loads(files["good/seed0/provenance.json"]) == {"argv": ["+exp=good", "seed=0"]}


def test_a_committed_record_is_not_trained_again(room: Path) -> None:
    record = room / "results" / "good" / "seed0.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"metrics": {"top1_last": 77.0}}))
    wanted = study(room, "good", seeds=(0, 1), records=room / "results")
    assert wanted.missing() == [Cell("good", 1)]
    assert carry_out(wanted, room) == 0
    assert set(archived(room / "out" / "cells.tar.gz")) == {f"good/seed1/{name}" for name in KEPT}


def test_two_slices_do_not_meet(room: Path) -> None:
    with cells._locked(room / "runs" / "gpu"), pytest.raises(cells.UsageError, match="another slice"):
        carry_out(study(room, "good"), room)


def test_the_order_makes_whole_columns_and_every_cell_is_an_experiment() -> None:
    wanted = on_gpu.full(on_gpu._parser().parse_args([]))
    column = [cell.exp for cell in wanted.cells[:8]]
    assert set(column) == {cell.exp for cell in plan.table("7").cells} and len(set(column)) == 8
    assert wanted.epochs == 150
    assert [cell.seed for cell in wanted.cells] == [0] * 8 + [1] * 8 + [2] * 8


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["cells"], "python scripts/prepare_data.py cifar100 --to absent"),
        (["train"], "no stage is called train: choose from tests, bench, cells"),
        (["cells", "--jobs", "0"], "--jobs and --seconds must be above 0"),
    ],
)
def test_wrong_use_is_status_2_and_says_what_to_do(
    argv: list[str],
    line: str,
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HAM_DATA", "absent")
    try:
        status = on_gpu.main(argv)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert line in capsys.readouterr().err


def test_images_in_another_form_have_a_cure_of_their_own(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAM_DATA", "data")
    with pytest.raises(cells.UsageError, match=r"cifar100 --to data \[--from DIR_OR_TARGZ\]"):
        on_gpu.require_data(room)
    (room / "shared" / "data" / "cifar100").mkdir(parents=True)
    (room / "shared" / "bin").mkdir()
    (room / "shared" / "bin" / "make_cifar100.py").touch()
    cure = "run python shared/bin/make_cifar100.py data && python scripts/prepare_data.py cifar100 --to data"
    with pytest.raises(cells.UsageError, match=cure):
        on_gpu.require_data(room)
    (room / "data" / "cifar-100-python").mkdir(parents=True)
    on_gpu.require_data(room)


def test_code_without_history_wants_to_be_told_its_commit(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(room.parent))
    monkeypatch.delenv("HAM_COMMIT", raising=False)
    with pytest.raises(cells.UsageError, match="set HAM_COMMIT"):
        on_gpu.require_commit(room)
    monkeypatch.setenv("HAM_COMMIT", "0" * 40)
    on_gpu.require_commit(room)


def test_gpu_tests_that_are_all_skipped_are_no_success(tmp_path: Path) -> None:
    status = on_gpu.tests(tmp_path, 120)
    said = (tmp_path / "tests.txt").read_text()
    assert status == (0 if " passed" in said else 1)
    assert str(ROOT) not in said
