"""The note on correct answers: Wilson's interval, and counts of all questions before and after training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ham.report import plan
from ham.report.answers import answers_note, wilson
from ham.report.records import RESULTS, Record
from ham.report.schema import results


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_that_of_scipy(counts):
    interval = binomtest(*counts).proportion_ci(method="wilson")
    assert wilson(*counts) == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="correct answers of"):
        wilson(*counts)


def test_the_interval_lies_within_0_and_1_in_spite_of_rounding():
    for questions in range(1, 200):
        assert wilson(0, questions)[0] >= 0 and wilson(questions, questions)[1] <= 1


def test_the_note_sums_the_questions_of_all_tasks():
    table = plan.table("table11")
    run = next(run for run in table.runs(demo="smollm") if run.exp == "lora_llama1b_ham" and run.seed == 1)
    answers = {
        "boolq": {"correct": 3, "questions": 4, "unanswered": 0},
        "piqa": {"correct": 1, "questions": 6, "unanswered": 5},
    }
    metrics = {"before_boolq": 25.0, "before_piqa": 0.0}
    records = {run: Record(run, {"answers": answers, "metrics": metrics}, Path())}
    note = answers_note(table, records, "smollm")
    # by hand: n = 10, z^2 = 3.8415; (0.4 + .19207 -+ 1.96 sqrt(.024 + .009604)) / 1.38415
    assert "lora_llama1b_ham, seed 1: 1 (10.0 %, 1.8 to 40.4), then 4 (40.0 %, 16.8 to 68.7) of 10 " in note
    assert "of 10 (5 have no readable answer, which counts as wrong)." in note
    del metrics["before_piqa"]
    assert "seed 1: 4 (40.0 %, 16.8 to 68.7) of 10 " in answers_note(table, records, "smollm")


def note_of_one_task(task, metrics):
    table = plan.table("table11")
    run = next(run for run in table.runs(demo="smollm"))
    record = Record(run, {"answers": {"boolq": task}, "metrics": metrics}, Path())
    return answers_note(table, {run: record}, "smollm")


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0 (0.0 %"), (50.0, "2 (50.0 %"), (100.0, "4 (100.0 %")]
    + [(share, "") for share in (-0.1, 100.1, "50", None, float("nan"))],
)
def test_only_a_percentage_is_shown_as_the_share_before_training(share, shown):
    note = note_of_one_task({"correct": 3, "questions": 4}, {"before_boolq": share})
    assert f"seed 0: {shown}" in note and (", then 3 (75.0 %" in note) == bool(shown)


@pytest.mark.parametrize("unanswered", [{}, {"unanswered": 0}])
def test_a_note_says_nothing_of_unreadable_answers_where_there_are_none(unanswered):
    note = note_of_one_task({"correct": 3, "questions": 4} | unanswered, {})
    assert note.endswith("(75.0 %, 30.1 to 95.4) of 4.")


def test_other_tables_have_no_such_note():
    table = plan.table("table17")
    assert answers_note(table, {run: Record(run, {"metrics": {}}, Path()) for run in table.runs()}) == ""


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ({"correct": 3, "questions": 2}, "more correct answers than questions"),
        ({"correct": 3}, "questions"),
        ({"correct": 0, "questions": 0}, "questions"),
        ({"correct": -1, "questions": 2}, "correct"),
        ({"correct": 1.0, "questions": 2}, "correct"),
        ([], "answers"),
    ],
)
def test_a_record_with_odd_answers_is_refused(task, problem):
    content = json.loads((RESULTS / "smollm" / "lora_llama1b" / "seed0.json").read_text())
    rule = results((), is_node=False)
    assert rule(content, "record") == ""
    content["answers"]["boolq"] = task
    assert problem in rule(content, "record")
