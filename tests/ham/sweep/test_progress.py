"""What a sweep on this machine prints of each run, of failures, and of the time that is left."""

from __future__ import annotations

from typing import Any

import pytest
from sweep_files import finish, metrics

from ham.report.spec import RunSpec
from ham.sweep import progress
from ham.sweep.progress import LocalReport
from ham.sweep.schedule import Ending, Outcome, Schedule
from ham.sweep.status import Sweeps

RUNS = [RunSpec("dense", seed, demo="tiny") for seed in range(4)]
EPOCHS = RUNS[0].info.epochs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """`clock[0]` is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_time_left_is_shared_by_the_jobs(
    sweeps: Sweeps, clock: list[float], jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report, schedule = LocalReport(sweeps, jobs, 4), Schedule(RUNS)
    assert report.eta_line([]) == "about 0 s left" and report.eta_line(RUNS) == "time left unknown"
    run = schedule.take()
    report.start(run)
    clock[0] += 10.0
    finish(run, sweeps, metrics={"top1_last": 12.345, "top1_best": 50.0}, timing={"seconds": 9.6})
    report.end(run)
    outcome = Outcome(Ending.DONE)
    schedule.finish(run, outcome)
    report.print_outcome(run, outcome, schedule)
    left = f"about {30 // jobs} s left"
    assert capsys.readouterr().out == f"{run}: top1_last 12.35, top1_best 50.00, 10 s  [1/4, {left}]\n"
    report.print_end(schedule)
    assert capsys.readouterr() == (f"3 runs left to do, {left}\n", "")


def test_only_epochs_since_its_start_count_for_the_pace_of_a_run(sweeps: Sweeps, clock: list[float]) -> None:
    report, run = LocalReport(sweeps, 1, 4), RUNS[0]
    folder = run.folder(sweeps.runs)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(metrics(run).splitlines(keepends=True)[0])
    report.start(run)
    clock[0] += 8.0
    (folder / "metrics.jsonl").write_text(metrics(run))
    report.end(run)
    assert report.eta_line(RUNS[1:2]) == f"about {8 * EPOCHS / (EPOCHS - 1):.0f} s left"


def test_a_run_that_lost_epochs_has_no_pace(sweeps: Sweeps, clock: list[float]) -> None:
    report, run = LocalReport(sweeps, 1, 4), RUNS[0]
    folder = finish(run, sweeps)
    report.start(run)
    clock[0] += 8.0
    (folder / "metrics.jsonl").unlink()
    report.end(run)
    assert report.eta_line(RUNS[1:2]) == "time left unknown"


def ended(report: LocalReport, ending: Ending, reason: str = "") -> Schedule:
    """All runs end so, and are printed."""
    schedule = Schedule(RUNS)
    for run in RUNS:
        schedule.take()
        schedule.finish(run, Outcome(ending, 0, reason))
        report.print_outcome(run, schedule.outcomes[run], schedule)
    report.print_end(schedule)
    return schedule


def test_a_reason_that_runs_share_is_printed_once_with_their_number(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    report = LocalReport(sweeps, 1, 4)
    report.print_failure(RUNS[0], "alone")
    ended(report, Ending.FAILED, "no data")
    lines = [f"failed: {RUNS[0]}: alone", f"failed: {RUNS[0]}: no data", "failed: 3 runs more: no data"]
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (Ending.BUSY, [f"{run}: another process trains it" for run in RUNS]),
        (
            Ending.STOPPED,
            [
                *(f"{run}: stopped after 0 of {EPOCHS} epochs" for run in RUNS),
                "4 runs left to do, time left unknown",
            ],
        ),
        (Ending.DONE, [f"{run}: done  [{n}/4, {{}}]" for n, run in enumerate(RUNS, start=1)]),
    ],
)
def test_runs_that_another_process_has_are_named_and_those_that_stopped_are_counted(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str], ending: Ending, expected: list[Any]
) -> None:
    ended(LocalReport(sweeps, 1, 4), ending)
    left = ["time left unknown"] * 3 + ["about 0 s left"]
    expected = [line.format(left[n % 4]) for n, line in enumerate(expected)]
    assert capsys.readouterr() == ("".join(f"{line}\n" for line in expected), "")
