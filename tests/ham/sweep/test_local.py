"""scripts/sweep.py --local: order, failures, signals, time slices, the archive; mostly with a stand-in."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import script
from sweep_files import DEPENDENT, SOURCE, commit

from ham.files import ROOT
from ham.report.spec import RunSpec
from ham.sweep import commands, local
from ham.sweep.local import LocalSweep
from ham.sweep.manifests import STOPPED_LINE, last_log_line
from ham.sweep.schedule import Ending, Failures, Outcome
from ham.sweep.status import RunStatus, Status, Sweeps

SCRIPT = ROOT / "scripts" / "sweep.py"
Sweep = Callable[..., tuple[int, str, str]]
DENSE, SAM, STR, RIGL, SNIP = (
    RunSpec(name, 0, demo="tiny") for name in ("dense", "dense_sam", "str_s90", "rigl_s90", "snip_s90")
)
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

sys.path[:0] = [{tests!r}]
from sweep_files import metrics, summary
from ham.report.spec import RunSpec


def stop(*_):
    raise SystemExit


def main(argv):
    values = dict(text.lstrip("+").split("=", 1) for text in argv)
    run = RunSpec(values["exp"], int(values["seed"]), demo=values["demo"])
    folder = run.folder(Path(values["runs_dir"]))
    folder.mkdir(parents=True, exist_ok=True)
    with open(Path(values["runs_dir"]) / "calls", "a") as file:
        print(run.exp, os.getpid(), os.environ.get("OMP_NUM_THREADS"), file=file)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("{{}}\\n")
    mode = json.loads({modes!r}).get(run.exp)
    if mode == "diverges":
        print("train.py: diverged; the checkpoint is last.pt", file=sys.stderr)
        return 1
    if mode == "no data":
        print("train.py: digits are missing: run prepare", file=sys.stderr)
        return 2
    if mode == "vanishes":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "raises":
        raise RuntimeError("a defect")
    if mode == "flaky" and len((folder / "metrics.jsonl").read_text()) < 4:
        return 1
    if mode == "obeys":
        signal.signal(signal.SIGTERM, stop)
        try:
            time.sleep(60)
        except SystemExit:
            return 85
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    facts = {{"argv": [text for text in sys.argv[1:]]}}
    (folder / "metrics.jsonl").write_text(metrics(run))
    (folder / "provenance.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text("data:\\n  root: /data\\nruns_dir: /home/me/runs\\nseed: 0\\n")
    (folder / "masks.pt").touch()
    (folder / "summary.json").write_text(json.dumps(summary(run)))
    return 0
"""


@pytest.fixture
def behave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`behave(dense="diverges")`: train.py is a stand-in in which these experiments behave so."""

    def write(**modes: str) -> None:
        text = STAND_IN.format(tests=str(ROOT / "tests"), modes=json.dumps(modes))
        (tmp_path / "train.py").write_text(text)

    monkeypatch.setattr(local, "TRAIN", tmp_path / "train.py")
    write()
    return write


@pytest.fixture
def run(sweeps: Sweeps, behave: Callable[..., None]) -> Callable[..., int]:
    """`run(DENSE, ...)`: run these; returns the exit status."""

    def run_all(*todo: RunSpec, jobs: int = 2, seconds: float | None = None) -> int:
        return LocalSweep(list(todo), sweeps, jobs=jobs, seconds=seconds).run()

    return run_all


def calls(sweeps: Sweeps) -> list[list[str]]:
    """Experiment, process and OMP_NUM_THREADS of each run that was started."""
    path = sweeps.runs / "calls"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


# order, processes, failures


def test_short_runs_share_processes_in_the_order_given(run: Callable[..., int], sweeps: Sweeps) -> None:
    assert run(STR, SAM, DENSE, jobs=1) == 0
    (a, b, c) = calls(sweeps)
    assert [a[0], b[0], c[0]] == ["str_s90", "dense_sam", "dense"]
    assert a[1] == b[1] == c[1] and a[2] == "1"
    assert all(sweeps.state(done) == RunStatus(Status.DONE) for done in (STR, SAM, DENSE))


def test_long_runs_have_a_process_each(
    run: Callable[..., int], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "is_short", lambda run: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(SAM, DENSE, jobs=1) == 0
    a, b = calls(sweeps)
    assert a[1] != b[1] and a[2] == b[2] == "None"  # a single run has torch's own number of threads


def test_long_runs_side_by_side_share_the_cores(
    run: Callable[..., int], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "is_short", lambda run: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(SAM, DENSE, jobs=2) == 0
    assert [call[2] for call in calls(sweeps)] == [str(max(1, len(os.sched_getaffinity(0)) // 2))] * 2


@pytest.mark.parametrize("jobs", [1, 2, 64, 10**6, 10**30])
def test_no_worker_is_started_without_work(
    run: Callable[..., int], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(local, "is_short", lambda run: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = threading.active_count()
    most = []
    monkeypatch.setattr(LocalSweep, "_watch", lambda self, threads: most.append(len(threads)))
    assert run(DENSE, jobs=jobs) == 0
    assert most == [1] and threading.active_count() == before
    assert [call[2] for call in calls(sweeps)] == ["None"]  # alone, it has torch's own number of threads


def test_a_run_that_was_stopped_has_not_failed(sweeps: Sweeps) -> None:
    log = sweeps.local_log(SAM)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"epoch 1/4\n{STOPPED_LINE}\n")
    assert sweeps.state(SAM).kind is Status.NOT_LAUNCHED
    log.write_text("epoch 1/4\ntrain.py: diverged\n")
    assert sweeps.state(SAM).kind is Status.FAILED


def test_a_long_run_does_not_inherit_the_process_of_a_short_one(
    run: Callable[..., int], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "is_short", lambda run: run != SAM)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run(DENSE, SAM, STR, RIGL, jobs=1) == 0
    assert [call[2] for call in calls(sweeps)] == ["1", "3", "1", "1"]
    processes = [call[1] for call in calls(sweeps)]
    assert len({*processes}) == 3 and processes[2] == processes[3]


def test_a_dependent_waits_for_its_source_and_not_for_others(run: Callable[..., int], sweeps: Sweeps) -> None:
    assert run(DEPENDENT, DENSE, SOURCE, jobs=1) == 0
    assert [call[0] for call in calls(sweeps)] == ["dense", "acdc_s90", "mask_acdc_s90"]


def test_a_failed_source_takes_its_dependents_with_it(
    run: Callable[..., int], behave: Callable[..., None], sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(acdc_s90="diverges")
    assert run(SOURCE, DEPENDENT, DENSE) == 1
    assert {call[0] for call in calls(sweeps)} == {"acdc_s90", "dense"}
    failed = capsys.readouterr().err
    assert f"failed: {SOURCE}: train.py: diverged; the checkpoint is last.pt (exit status 1)" in failed
    assert f"failed: {DEPENDENT}: not started, since {SOURCE} failed, whose masks it takes" in failed


def test_a_process_that_dies_or_raises_stops_nobody(
    run: Callable[..., int], behave: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    behave(dense="vanishes", dense_sam="raises")
    assert run(DENSE, SAM, STR, jobs=1) == 1
    out, err = capsys.readouterr()
    assert f"failed: {SAM}: RuntimeError: a defect (exit status 1)" in err
    assert re.search(rf"failed: {re.escape(str(DENSE))}: .*\(exit status -9\)", err)
    assert f"{STR}: top1_last 50.00, top1_best 50.00, 1 s  [1/3, about 0 s left]" in out


def test_missing_data_is_status_2_after_the_others_ran_and_printed_once(
    run: Callable[..., int], behave: Callable[..., None], sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(dense="no data", dense_sam="no data", str_s90="diverges")
    assert run(DENSE, SAM, STR, RIGL, jobs=1) == 2
    assert sweeps.state(RIGL).kind is Status.DONE
    failed = [line for line in capsys.readouterr().err.splitlines() if "missing" in line]
    reason = "train.py: digits are missing: run prepare (exit status 2)"
    assert failed == [f"failed: {DENSE}: {reason}", f"failed: 1 run more: {reason}"]
    assert run(DENSE, SAM, seconds=30) == 2
    assert len(calls(sweeps)) == 6, "a slice does not try them twice"
    assert not Failures(sweeps).reasons(DENSE), "they may run once the data are there"


def test_an_earlier_log_is_not_the_reason_of_a_failure(
    run: Callable[..., int], behave: Callable[..., None], sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(dense="vanishes")
    sweeps.logs.mkdir(parents=True)
    sweeps.local_log(DENSE).write_text("train.py: words of another day\n")
    assert run(DENSE) == 1
    assert "another day" not in capsys.readouterr().err
    assert last_log_line(sweeps.local_log(DENSE), 10**6).startswith("it added nothing to")


# times, threads and exit statuses, without processes


@pytest.mark.parametrize(
    ("seconds", "stop", "kill"), [(None, float("inf"), float("inf")), (40, 130, 137.5), (400, 470, 492.5)]
)
def test_a_slice_stops_a_quarter_of_its_time_and_at_most_30_seconds_before_its_end(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch, seconds: float | None, stop: float, kill: float
) -> None:
    """Runs that do not save are killed after three quarters of the remaining time."""
    monkeypatch.setattr(local.time, "monotonic", lambda: 100.0)
    slice_ = LocalSweep([DENSE], sweeps, jobs=1, seconds=seconds)
    assert (slice_._stop_at, slice_._kill_at) == (stop, kill)


def test_a_run_that_failed_in_an_earlier_slice_starts_last(sweeps: Sweeps) -> None:
    Failures(sweeps).add(DENSE, "diverged")
    assert LocalSweep([DENSE, SAM], sweeps, jobs=1, seconds=9)._schedule.remaining() == [SAM, DENSE]
    assert LocalSweep([DENSE, SAM], sweeps, jobs=1)._schedule.remaining() == [DENSE, SAM]


@pytest.mark.parametrize(
    ("jobs", "short", "set_", "threads"),
    [
        (2, False, False, {"OMP_NUM_THREADS": "4"}),
        (3, False, False, {"OMP_NUM_THREADS": "3"}),
        (1, False, False, {}),
        (2, False, True, {}),
        (2, True, False, {"OMP_NUM_THREADS": "1"}),
        (1, True, True, {"OMP_NUM_THREADS": "1"}),
    ],
)
def test_a_process_has_its_share_of_the_cores(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch, jobs: int, short: bool, set_: bool, threads: dict
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    monkeypatch.setattr(local, "is_short", lambda run: short)
    monkeypatch.setattr(local, "Worker", lambda *arguments: arguments)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_:
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
    sweep = LocalSweep([DENSE, SAM, STR], sweeps, jobs=jobs)
    assert sweep._new_worker(DENSE) == (local.TRAIN, threads, short)


DONE, FAILED, REFUSED, BUSY = (
    *(Outcome(Ending.DONE), Outcome(Ending.FAILED, 1), Outcome(Ending.FAILED, 2)),
    Outcome(Ending.BUSY),
)


@pytest.mark.parametrize(
    ("ends", "signalled", "status"),
    [
        ([DONE, DONE], 0, 0),
        ([DONE, BUSY], 0, 0),
        ([DONE, FAILED], 0, 1),
        ([REFUSED, FAILED], 0, 2),
        ([FAILED, Outcome(Ending.STOPPED, 85)], 0, 85),
        ([FAILED], 0, 85),
        ([REFUSED, DONE], 130, 130),
        ([DONE], 85, 85),
    ],
)
def test_the_exit_status_distinguishes_a_stop_from_failures(
    sweeps: Sweeps, ends: list[Outcome], signalled: int, status: int
) -> None:
    sweep = LocalSweep([DENSE, SAM], sweeps, jobs=1)
    for end in ends:
        sweep._schedule.finish(sweep._schedule.take(), end)
    if signalled:
        sweep._stop_signal = signal.SIGTERM
        sweep._stop(signalled)
        sweep._stop(1)  # the first one counts
    assert sweep._exit_status() == status


def test_the_last_reason_of_a_run_that_is_left_out_is_printed(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    for reason in ("first", "second"):
        Failures(sweeps).add(DENSE, reason)
    assert LocalSweep([DENSE], sweeps, jobs=1, seconds=9).run() == 1
    cure = f"delete {sweeps.folder}/failures.json, or omit --seconds, to try it again"
    line = f"failed: {DENSE}: left out: second; it failed 2 times: {cure}\n"
    assert capsys.readouterr() == ("", line)


class Signalled:
    """A worker that notes what it is sent."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def signal(self, number: int) -> None:
        self.numbers.append(number)


def test_active_runs_are_asked_once_to_save_and_then_killed(sweeps: Sweeps) -> None:
    sweep, worker = LocalSweep([DENSE, SAM], sweeps, jobs=1), Signalled()
    sweep._active.add(worker)
    sweep._stop(85)
    sweep._stop(85)
    assert worker.numbers == [signal.SIGTERM] and sweep._schedule.take() is None
    sweep._kill()
    assert worker.numbers == [signal.SIGTERM, signal.SIGKILL]


@pytest.mark.parametrize(
    ("outcome", "seconds", "again"),
    [
        (FAILED, 9, [True, False]),
        (FAILED, None, [False, False]),
        (REFUSED, 9, [False, False]),
        (BUSY, 9, [False, False]),
    ],
)
def test_a_failed_run_is_tried_once_more_within_a_slice(
    sweeps: Sweeps, outcome: Outcome, seconds: float | None, again: list[bool]
) -> None:
    sweep = LocalSweep([DENSE], sweeps, jobs=1, seconds=seconds)
    assert [sweep._may_retry(DENSE, outcome) for _ in again] == again


def test_a_run_that_diverged_is_not_tried_again(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweeps, "state", lambda *_, **__: RunStatus(Status.DIVERGED))
    assert not LocalSweep([DENSE], sweeps, jobs=1, seconds=9)._may_retry(DENSE, FAILED)
    assert Failures(sweeps).reasons(DENSE) == []


@pytest.mark.parametrize(
    ("status", "stopped", "ending", "last"),
    [
        (0, 0, Ending.DONE, "epoch 1"),
        (85, 0, Ending.STOPPED, STOPPED_LINE),
        (-9, 85, Ending.STOPPED, STOPPED_LINE),
        (-9, 0, Ending.FAILED, "epoch 1"),
        (1, 85, Ending.FAILED, "epoch 1"),
    ],
)
def test_only_a_run_that_saved_or_was_killed_by_its_sweep_counts_as_stopped(
    sweeps: Sweeps, status: int, stopped: int, ending: Ending, last: str
) -> None:
    sweep = LocalSweep([DENSE], sweeps, jobs=1)
    sweeps.logs.mkdir(parents=True)
    sweeps.local_log(DENSE).write_text("of another day")

    class Worker:
        def run(self, argv: list[str], log: Path) -> int:
            assert sweep._active == {self} and argv == [*sweeps.argv(DENSE), "compute.threads=1"]
            with log.open("a") as file:
                file.write("\nepoch 1")
            sweep._stop_status = stopped
            return status

    outcome = sweep._train(DENSE, Worker())
    reason = f"epoch 1 (exit status {status})" if ending is Ending.FAILED else ""
    assert outcome == Outcome(ending, status, reason) and sweep._active == set()
    assert last_log_line(sweeps.local_log(DENSE)) == last


def test_a_run_that_is_taken_after_a_stop_does_not_start(sweeps: Sweeps) -> None:
    sweep = LocalSweep([DENSE], sweeps, jobs=1)
    sweeps.logs.mkdir(parents=True)
    sweep._stop(85)
    assert sweep._train(DENSE, Signalled()) == Outcome(Ending.STOPPED) and sweep._active == set()


def test_what_follows_a_run_is_called_where_it_ended_well(sweeps: Sweeps) -> None:
    called: list[bool] = []
    sweep = LocalSweep([DENSE, SAM], sweeps, jobs=1, after_run=lambda: called.append(True))
    sweep._finish(DENSE, FAILED)
    assert called == []
    sweep._finish(SAM, DONE)
    assert called == [True]


# several sweeps of one folder


def test_a_run_that_another_process_trains_is_left_to_it(
    sweep: Sweep, behave: Callable[..., None], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "has_changes", lambda: False)
    folder = SOURCE.folder(sweeps.runs)
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        choice = ("--exp acdc_s90 mask_acdc_s90 dense", "--seeds 0", "--demo tiny", "--local")
        status, out, _ = sweep(*choice)
    assert [call[0] for call in calls(sweeps)] == ["dense"] and status == 85
    assert out.endswith("2 runs left to other processes or SLURM: repeat this command when they have ended\n")
    assert sweep(*choice)[0] == 0


def test_a_run_that_was_locked_after_it_was_chosen_is_no_failure(
    run: Callable[..., int], behave: Callable[..., None], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(dense="no data")  # train.py ends with 2 if the directory is locked
    known = iter([RunStatus(Status.NOT_LAUNCHED), RunStatus(Status.RUNNING)])
    monkeypatch.setattr(Sweeps, "state", lambda *_, **__: next(known))
    assert run(DENSE) == 0


def test_what_another_sweep_has_done_meanwhile_is_not_run_again(
    run: Callable[..., int], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sweeps, "state", lambda *_, **__: RunStatus(Status.DONE))
    assert run(DENSE) == 0 and not calls(sweeps)


# signals and time slices


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 85), (signal.SIGHUP, 85), (signal.SIGINT, 130)]
)
def test_a_signal_has_the_active_runs_save_and_starts_no_more(
    run: Callable[..., int], behave: Callable[..., None], sweeps: Sweeps, number: int, status: int
) -> None:
    behave(dense="obeys", dense_sam="obeys")
    before = signal.getsignal(number)

    def send() -> None:
        deadline = time.monotonic() + 60
        while len(calls(sweeps)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)  # until they have their handlers
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert run(DENSE, SAM, STR, seconds=100) == status
    sender.join()
    assert {call[0] for call in calls(sweeps)} == {"dense", "dense_sam"}
    assert signal.getsignal(number) is before
    assert not Failures(sweeps).reasons(DENSE)


def test_a_slice_that_ends_asks_to_save_and_kills_who_does_not(
    run: Callable[..., int], behave: Callable[..., None], sweeps: Sweeps
) -> None:
    behave(dense="deaf", dense_sam="obeys")
    start = time.monotonic()
    assert run(DENSE, SAM, STR, seconds=4) == 85
    assert time.monotonic() - start < 6
    assert not Failures(sweeps).reasons(DENSE), "a killed run has not failed"
    behave()
    assert run(DENSE, SAM, STR, seconds=60) == 0


def test_a_run_that_fails_twice_is_left_out_of_slices(
    run: Callable[..., int], behave: Callable[..., None], sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(dense="diverges", dense_sam="flaky", acdc_s90="vanishes")
    assert run(SOURCE, DEPENDENT, DENSE, SAM, STR, seconds=100) == 1
    assert [call[0] for call in calls(sweeps)].count("dense") == 2
    assert {sweeps.state(done).kind for done in (SAM, STR)} == {Status.DONE}
    assert (
        Failures(sweeps).reasons(DENSE)
        == ["train.py: diverged; the checkpoint is last.pt (exit status 1)"] * 2
    )
    before = calls(sweeps)
    capsys.readouterr()
    assert run(SOURCE, DEPENDENT, DENSE, seconds=100) == 1
    assert calls(sweeps) == before
    err = capsys.readouterr().err
    assert f"failed: {DENSE}: left out: train.py: diverged" in err
    assert f"failed: {DEPENDENT}: left out: the run whose masks it takes failed" in err
    (sweeps.folder / "failures.json").unlink()
    behave()
    assert run(DENSE, seconds=100) == 0, "without the file they are tried again"


WATCH = """
import sys
from pathlib import Path
from ham.report.spec import RunSpec
from ham.sweep import local
from ham.sweep.status import Sweeps

local.TRAIN = Path(sys.argv[1])
todo = [RunSpec(name, 0, demo="tiny") for name in ("dense", "dense_sam")]
local.LocalSweep(todo, Sweeps(Path(sys.argv[2])), jobs=2).run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_workers_stop_when_the_sweep_is_killed(
    behave: Callable[..., None], sweeps: Sweeps, tmp_path: Path
) -> None:
    behave(dense="obeys", dense_sam="obeys")
    command = [sys.executable, "-c", WATCH, str(tmp_path / "train.py"), str(sweeps.runs)]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        await_true(lambda: len(calls(sweeps)) == 2)
        workers = [int(pid) for _, pid, _ in calls(sweeps)]
        assert all(is_alive(pid) for pid in workers)
    finally:
        parent.kill()
        parent.wait()
    await_true(lambda: not any(is_alive(pid) for pid in workers))


def await_true(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Does a process run, and is not a zombie that nobody waits for?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# the archive


def archived(path: Path) -> dict[str, str]:
    """The files of an archive by name."""
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read().decode() for member in archive}


@pytest.fixture
def clean_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The code has no changes."""
    monkeypatch.setattr(commands, "has_changes", lambda: False)
    return


@pytest.mark.usefixtures("clean_code")
def test_the_archive_holds_the_finished_runs_without_paths_and_collect_reads_it(
    sweep: Sweep, behave: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(dense_sam="diverges")
    archive = tmp_path / "out" / "runs.tar.gz"
    choice = ("--exp dense dense_sam", "--seeds 5", "--demo digits", "--local")
    assert sweep(*choice, f"--pack {archive}")[0] == 1
    files = archived(archive)
    names = ("summary.json", "provenance.json", "metrics.jsonl", "config.yaml")
    assert set(files) == {f"dense-digits/seed5/{name}" for name in names}
    assert files["dense-digits/seed5/config.yaml"] == "data:\n  root: ''\nruns_dir: ''\nseed: 0\n"
    for place in (str(tmp_path), str(ROOT), os.uname().nodename, str(Path.home())):
        assert not any(place in text for text in files.values())
    results = tmp_path / "collected"
    assert script("collect").main([str(archive), "--demo=digits", f"--results={results}"]) == 0
    assert (results / "demo" / "dense" / "seed5.json").exists()


@pytest.mark.usefixtures("clean_code", "behave")
def test_committed_records_are_neither_run_nor_packed(sweep: Sweep, tmp_path: Path) -> None:
    commit(RunSpec("dense", 0, demo="digits"))
    choice = (f"--exp dense --seeds 0 1 --demo digits --local --pack {tmp_path}/a.tar.gz",)
    status, out, _ = sweep(*choice)
    assert status == 0
    assert out.splitlines()[0] == "1 done, 1 not launched" and out.splitlines()[-1] == "2 done"
    assert {name.split("/")[1] for name in archived(tmp_path / "a.tar.gz")} == {"seed1"}
    assert sweep(*choice, "--again")[1].splitlines()[-1] == "2 done"
    assert {name.split("/")[1] for name in archived(tmp_path / "a.tar.gz")} == {"seed0", "seed1"}


# real training


def command(tmp_path: Path, *argv: str, jobs: int = 2) -> list[str]:
    own = ["--local", f"--runs={tmp_path / 'runs'}", f"--jobs={jobs}", "--seeds=0"]
    return [sys.executable, str(SCRIPT), *own, *argv]


@pytest.mark.slow
def test_sources_run_first_and_failures_are_reported(tmp_path: Path) -> None:
    choice = ("--table=10", "--demo=tiny", "--only", "mask_acdc_s90", "synflow_s90")
    line = command(tmp_path, *choice, jobs=1)  # of one process: torch is imported once
    broken = tmp_path / "runs" / "synflow_s90-tiny"
    broken.parent.mkdir()
    broken.touch()  # where a folder has to be
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "1 done, 1 failed"
    (failure,) = re.findall(r"failed: .*", done.stderr)
    assert failure.startswith("failed: synflow_s90 seed 0 (tiny): train.py: cannot write runs to")
    assert (tmp_path / "runs" / "mask_acdc_s90-tiny" / "seed0" / "summary.json").exists()
    broken.unlink()
    line[line.index("--local")] = "--dry-run"
    shown = subprocess.run(line, capture_output=True, text=True).stdout
    assert "2 cells x 1 seed: 1 done, 1 failed\n" in shown
    assert re.search(r"^total +1 ", shown, re.MULTILINE), "the failed run is launched again"


@pytest.mark.slow
def test_ctrl_c_saves_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    only = ("--only", "acdc_ham_s80", "acdc_ham_s95", "--seeds", "7")  # a seed that has no record
    line = command(tmp_path, "--table=4", "--demo=digits", *only, jobs=1)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "runs" / "acdc_ham_s80-digits" / "seed7" / "last.pt"
    await_true(last.exists, 90)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "sweep.py: stopped; start the same command again to resume"
    (log,) = (tmp_path / "runs" / ".sweeps" / "logs").glob("local-*")
    assert "stopped by SIGTERM" in log.read_text()
