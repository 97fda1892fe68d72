"""Outcomes of the tuning runs of a study, made up."""

from __future__ import annotations

from ham.report.spec import RunSpec
from ham.report.study import study

PLAN = study("cifar16")


def tuned(arm: str, accuracies: dict[float, float | None]) -> dict[RunSpec, float | None]:
    """Outcomes of an arm's tuning runs by learning rate."""
    return {PLAN.trial(arm, rate): accuracy for rate, accuracy in accuracies.items()}


def all_tuned(rates: dict[str, float]) -> dict[RunSpec, float | None]:
    """Outcomes of all tuning runs, after which these are the rates; each must be one of the first three."""
    outcomes: dict[RunSpec, float | None] = {}
    for arm in PLAN.tuned_arms:
        outcomes |= tuned(arm, {rate: 60.0 if rate == rates[arm] else 50.0 for rate in PLAN.tuning.rates})
        outcomes[PLAN.trials(arm, outcomes)[-1]] = 10.0
    return outcomes
