"""A note on how many questions a fine-tuned language model answers, before training and after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from . import plan
from .records import Record
from .schema import is_number
from .spec import RunSpec

NOTE = (
    "Correct answers of all questions, before training and after it, with 95 % intervals (Wilson's) which "
    "cover the choice of the questions and not that of the seed: {runs}."
)
_Z = NormalDist().inv_cdf(0.975)


def wilson(correct: int, questions: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927), as fractions.

    Raises:
        ValueError: the number of questions is 0, or less than that of the correct answers.
    """
    if not 0 <= correct <= questions or not questions:
        raise ValueError(f"{correct} correct answers of {questions} questions")
    fraction, z2 = correct / questions, _Z**2
    center = fraction + z2 / (2 * questions)
    half = _Z * math.sqrt(fraction * (1 - fraction) / questions + z2 / (4 * questions**2))
    low, high = ((center + sign * half) / (1 + z2 / questions) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def answers_note(table: plan.Table, records: Mapping[RunSpec, Record], demo: str = "") -> str:
    """A sentence with the counts of each run of a table; "" where no run has answers.

    Args:
        table: table of the plan.
        records: run -> record.
        demo: the scale.
    """
    runs = [run for run in table.runs(demo=demo) if run in records and records[run].content.get("answers")]
    return NOTE.format(runs="; ".join(_counts(run, records[run].content) for run in runs)) if runs else ""


def _counts(run: RunSpec, record: Mapping[str, Any]) -> str:
    answers, metrics = record["answers"], record["metrics"]
    questions = sum(task["questions"] for task in answers.values())
    after = _count_text(sum(task["correct"] for task in answers.values()), questions)
    accuracies = {name: metrics.get(f"before_{name}") for name in answers}
    earlier = ""
    if all(is_number(fraction) and 0 <= fraction <= 100 for fraction in accuracies.values()):
        before = sum(round(accuracies[name] * task["questions"] / 100) for name, task in answers.items())
        earlier = f"{_count_text(before, questions)}, then "
    unanswered = sum(task.get("unanswered", 0) for task in answers.values())
    unreadable = f" ({unanswered} have no readable answer, which counts as wrong)" if unanswered else ""
    return f"{run.exp}, seed {run.seed}: {earlier}{after} of {questions}{unreadable}"


def _count_text(correct: int, questions: int) -> str:
    low, high = (100 * end for end in wilson(correct, questions))
    return f"{correct} ({100 * correct / questions:.1f} %, {low:.1f} to {high:.1f})"
