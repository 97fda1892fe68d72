"""Which run is next, what ends with it, and how often runs have failed."""

from __future__ import annotations

import json

import pytest
from sweep_files import DEPENDENT, SOURCE

from ham.report.spec import RunSpec
from ham.sweep import schedule
from ham.sweep.schedule import MAX_FAILURES, Ending, Failures, Outcome, Schedule
from ham.sweep.status import Sweeps

DENSE, SAM = (RunSpec(name, 0, demo="tiny") for name in ("dense", "dense_sam"))
DONE, FAILED, STOPPED, BUSY = (Outcome(ending) for ending in Ending)


def test_a_source_comes_before_its_dependent_and_others_keep_their_order() -> None:
    plan = Schedule([DEPENDENT, DENSE, SOURCE])
    assert [plan.take(), plan.take()] == [DENSE, SOURCE]
    assert plan.remaining()[0] == DEPENDENT and {*plan.remaining()} == {DEPENDENT, DENSE, SOURCE}
    assert plan.finish(DENSE, DONE) == [] and plan.finish(SOURCE, DONE) == []
    assert plan.take() == DEPENDENT
    plan.finish(DEPENDENT, DONE)
    assert plan.take() is None and plan.remaining() == []
    assert plan.outcomes == {DENSE: DONE, SOURCE: DONE, DEPENDENT: DONE}


@pytest.mark.parametrize(("end", "left"), [(FAILED, []), (STOPPED, [SOURCE]), (BUSY, [])])
def test_a_source_that_is_not_done_takes_its_dependents_out(end: Outcome, left: list[RunSpec]) -> None:
    plan = Schedule([SOURCE, DEPENDENT, DENSE])
    assert plan.take() == SOURCE
    assert plan.finish(SOURCE, end) == [DEPENDENT]
    assert plan.remaining() == [DENSE, *left]
    assert plan.take() == DENSE
    plan.finish(DENSE, DONE)
    assert plan.take() is None


def test_a_run_that_is_tried_again_comes_last_and_keeps_its_dependents() -> None:
    plan = Schedule([SOURCE, DEPENDENT, DENSE])
    plan.take()
    assert plan.finish(SOURCE, FAILED, retry=True) == []
    assert [plan.take(), plan.take()] == [DENSE, SOURCE]


def test_nothing_is_taken_after_a_stop() -> None:
    plan = Schedule([DENSE, SAM])
    plan.stop()
    assert plan.take() is None and plan.remaining() == [DENSE, SAM]


def test_failures_outlive_the_process_and_hold_up_dependents(sweeps: Sweeps) -> None:
    assert MAX_FAILURES == 2
    todo = [DENSE, SOURCE, DEPENDENT, SAM]
    failures = Failures(sweeps)
    assert failures.reasons(SOURCE) == [] and failures.exhausted(todo) == []
    assert [failures.add(SOURCE, "first"), failures.add(DENSE, "other")] == [1, 1]
    assert Failures(sweeps).exhausted(todo) == []
    assert failures.add(SOURCE, "second") == 2
    assert Failures(sweeps).reasons(SOURCE) == ["first", "second"]
    assert Failures(sweeps).exhausted(todo) == [SOURCE, DEPENDENT]
    known = json.loads((sweeps.folder / "failures.json").read_text())
    key = f"acdc_s90-tiny/seed0 {SOURCE.info.config_hash[:8]}"
    assert known[key] == ["first", "second"] and len(known) == 2
    assert not (sweeps.folder / "failures.lock.owner").exists(), "the lock is released"


def test_a_locked_file_of_failures_is_waited_for(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [BlockingIOError(), schedule.lock_file]
    waited: list[float] = []

    def lock_file(path: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, BlockingIOError):
            raise answer
        return answer(path)

    monkeypatch.setattr(schedule, "lock_file", lock_file)
    monkeypatch.setattr(schedule.time, "sleep", waited.append)
    assert Failures(sweeps).add(DENSE, "first") == 1
    assert len(waited) == 1 and 0 < waited[0] < 1
