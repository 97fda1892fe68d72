"""Seconds per epoch, the time that is left, and how it is written."""

from __future__ import annotations

import json

import pytest

from ham.report.spec import RunSpec
from ham.sweep.pace import Pace, duration, measured_pace, seconds_left
from ham.sweep.status import Sweeps

DENSE, SAM, PAPER = (
    RunSpec("dense", 0, demo="tiny"),
    RunSpec("dense_sam", 0, demo="tiny"),
    RunSpec("dense", 0),
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (89, "1 min"),
        (91, "2 min"),
        (300, "5 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_durations_have_a_unit_for_each_size(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_pace_is_the_seconds_of_all_runs_over_their_epochs() -> None:
    pace = Pace()
    pace.add(DENSE, 10.0, 2)
    pace.add(DENSE, 20.0, 4)
    assert pace.of(DENSE) == 30.0 / 6
    pace.add(SAM, 44.0, 4)
    assert pace.of(SAM) == 11.0 and pace.of_any(SAM) == 11.0
    assert pace.of_any(PAPER) == (5.0 + 11.0) / 2, "the mean over the kinds"


def test_a_run_that_did_no_epoch_has_no_pace() -> None:
    pace = Pace()
    pace.add(DENSE, 10.0, 0)
    assert pace.of(DENSE) is None and pace.of_any(DENSE) is None


@pytest.mark.parametrize(("seconds", "known"), [(0.5, True), (0.0, False), (-0.5, False)])
def test_any_time_above_0_in_a_summary_counts(sweeps: Sweeps, seconds: float, known: bool) -> None:
    folder = DENSE.folder(sweeps.runs)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"timing": {"seconds": seconds}}))
    assert measured_pace([DENSE], sweeps).of(DENSE) == (seconds / DENSE.info.epochs if known else None)


def test_an_epoch_that_a_log_has_twice_does_not_count(sweeps: Sweeps) -> None:
    folder = DENSE.folder(sweeps.runs)
    folder.mkdir(parents=True)
    times = (("10:00:00", 1), ("10:00:09", 1), ("10:00:12", 2))
    lines = (f"2026-01-01 {when}  epoch {done}/10  x\n" for when, done in times)
    (folder / "train.log").write_text("2026-99-01 10:00:00  epoch 1/10  x\n" + "".join(lines))
    assert measured_pace([DENSE], sweeps).of(DENSE) == pytest.approx(3 * 10 / DENSE.info.epochs)


def test_more_epochs_than_planned_leave_no_time(sweeps: Sweeps) -> None:
    folder = DENSE.folder(sweeps.runs)
    folder.mkdir(parents=True)
    lines = (f'{{"epoch": {epoch}}}\n' for epoch in range(DENSE.info.epochs + 3))
    (folder / "metrics.jsonl").write_text("".join(lines))
    other = RunSpec("dense", 1, demo="tiny")
    assert seconds_left([DENSE, other], sweeps, lambda run: 10.0) == (10.0 * DENSE.info.epochs, 0)
    assert seconds_left([DENSE, other], sweeps, lambda run: None) == (0.0, 2)
