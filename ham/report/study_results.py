"""The results of a study: what its records say about the arms and contrasts that its plan names."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ham.errors import printable

from .records import Record, metrics_path
from .spec import PlanError, RunSpec
from .statistics import Difference, Sample, detectable_difference, holm, mean_of
from .study import Claim, Contrast, Outcomes, Part, Study, rate_of

ALPHA = 0.05
"""Level of the tests."""

CHANCE = 1.0
"""Accuracy in percent that replaces that of a run that diverged, in a second computation."""


@dataclass(frozen=True)
class ArmResult:
    """The runs of an arm in one part.

    Args:
        name: the arm.
        rate: learning rate of the arm; None until tuning has ended.
        records: seed -> record.
        diverged: seed -> reason, of runs without a result.
    """

    name: str
    rate: float | None
    records: Mapping[int, Record]
    diverged: Mapping[int, str]

    @cached_property
    def accuracies(self) -> dict[int, float]:
        """Seed -> top-1 accuracy of the last epoch, in percent."""
        return {seed: record.metric("top1_last") for seed, record in self.records.items()}

    @cached_property
    def sample(self) -> Sample | None:
        """Over the seeds; None without any."""
        return Sample.of(list(self.accuracies.values())) if self.records else None

    def mean_of(self, metric: str) -> float | None:
        """The mean over the seeds of a metric in the last epoch that has it; None without any."""
        values = [
            [line[metric] for line in record.epochs() if line.get(metric) is not None]
            for record in self.records.values()
        ]
        last = [own[-1] for own in values if own]
        return statistics.mean(last) if last else None


@dataclass(frozen=True)
class ContrastResult:
    """A contrast of a part.

    Args:
        contrast: the arms to compare.
        differences: seed -> accuracy of the arm minus that of the reference, in points.
        with_chance: result with `CHANCE` for runs that diverged.
        adjusted: p after Holm's correction over the contrasts of the part; None until the part is complete.
            It is 1 where all differences are equal.
        adjusted_with_chance: adjusted p of `with_chance`.
    """

    contrast: Contrast
    differences: Mapping[int, float]
    with_chance: Mapping[int, float]
    adjusted: float | None = None
    adjusted_with_chance: float | None = None

    @property
    def sign(self) -> int:
        """1 or -1 if the mean is above or below 0 and significant in both computations, else 0."""
        means = (self.mean, mean_of(list(self.with_chance.values())) if self.with_chance else None)
        tests = zip(means, (self.adjusted, self.adjusted_with_chance), strict=True)
        signs = {0 if m is None or p is None or p > ALPHA else (1 if m.value > 0 else -1) for m, p in tests}
        return signs.pop() if len(signs) == 1 else 0

    @cached_property
    def mean(self) -> Difference | None:
        """Mean difference with its interval and p; None without a pair."""
        return mean_of(list(self.differences.values())) if self.differences else None

    @cached_property
    def std(self) -> float | None:
        """Sample standard deviation of the differences; None with fewer than two."""
        values = list(self.differences.values())
        return statistics.stdev(values) if len(values) > 1 else None

    def detectable(self, alpha: float = 0.05) -> float | None:
        """The difference that a paired t-test at level `alpha` finds with probability 0.8."""
        return detectable_difference(self.std, len(self.differences), alpha=alpha) if self.std else None


@dataclass(frozen=True)
class PartResult:
    """A part of a study; it is complete once every run has a record or has diverged."""

    part: Part
    arms: Mapping[str, ArmResult]
    contrasts: tuple[ContrastResult, ...]

    @property
    def ended(self) -> int:
        """Number of runs that have a record or have diverged."""
        return sum(len(arm.records) + len(arm.diverged) for arm in self.arms.values())

    @property
    def planned(self) -> int:
        """Number of runs of the plan."""
        return len(self.part.arms) * len(self.part.seeds)

    @property
    def is_complete(self) -> bool:
        """True if all runs have ended."""
        return self.ended == self.planned

    def processors(self) -> dict[int, set[str]]:
        """Seed -> the processors of its runs."""
        by_seed: dict[int, set[str]] = {}
        for arm in self.arms.values():
            for seed, record in arm.records.items():
                by_seed.setdefault(seed, set()).update(_processors(record))
        return by_seed


@dataclass(frozen=True)
class Trial:
    """A tuning run that has ended; `accuracy` is None if it diverged."""

    rate: float
    accuracy: float | None


@dataclass(frozen=True)
class StudyResult:
    """A study's plan and its results so far."""

    study: Study
    trials: Mapping[str, list[Trial]]
    rates: Mapping[str, float | None]
    parts: Mapping[str, PartResult]

    def verdict(self, claim: Claim) -> str:
        """`supported`, `contradicted`, `inconclusive`, or `not decided yet` before its part is complete."""
        results = [
            (part, contrast)
            for part in self.parts.values()
            for contrast in part.contrasts
            if contrast.contrast in claim.contrasts
        ]
        if not all(part.is_complete for part, _ in results):
            return "not decided yet"
        signs = [contrast.sign for _, contrast in results]
        if signs.count(1) >= claim.needed:
            return "supported"
        return "contradicted" if signs.count(-1) >= claim.needed else "inconclusive"


def with_epochs(records: Mapping[RunSpec, Record]) -> tuple[dict[RunSpec, Record], list[str]]:
    """The records of a study that have their epochs, and a line for each that lacks them."""
    kept = {run: record for run, record in records.items() if metrics_path(record.path).exists()}
    missing = [metrics_path(record.path) for run, record in records.items() if run not in kept]
    return kept, [printable(f"{path}: it is missing: collect the run again") for path in missing]


def results(study: Study, records: Mapping[RunSpec, Record], diverged: Mapping[RunSpec, str]) -> StudyResult:
    """The results of a study from the records of its scale.

    Args:
        study: the plan.
        records: run -> record.
        diverged: run -> reason, of runs that diverged.

    Raises:
        InvalidRecord: a record lacks the accuracy.
    """
    outcomes = dict.fromkeys(diverged) | {run: record.metric("top1_last") for run, record in records.items()}
    trials = {
        arm: [Trial(rate_of(run), outcomes[run]) for run in study.trials(arm, outcomes) if run in outcomes]
        for arm in study.tuned_arms
    }
    rates = {arm: _rate(study, arm, outcomes) for arm in study.arms}
    parts = {name: _part(study, part, rates, records, diverged) for name, part in study.parts.items()}
    return StudyResult(study, trials, rates, parts)


def _rate(study: Study, arm: str, outcomes: Outcomes) -> float | None:
    """The chosen rate; None before, and where every tuning run of the arm diverged."""
    try:
        return study.rate(arm, outcomes)
    except PlanError:
        return None


def _part(
    study: Study,
    part: Part,
    rates: Mapping[str, float | None],
    records: Mapping[RunSpec, Record],
    diverged: Mapping[RunSpec, str],
) -> PartResult:
    arms = {}
    for name in part.arms:
        rate = rates[name]
        runs = {} if rate is None else {seed: study.run(name, rate, seed) for seed in part.seeds}
        arms[name] = ArmResult(
            name,
            rate,
            {seed: records[run] for seed, run in runs.items() if run in records},
            {seed: diverged[run] for seed, run in runs.items() if run in diverged and run not in records},
        )
    contrasts = tuple(_contrast(contrast, arms, part.seeds) for contrast in part.contrasts)
    result = PartResult(part, arms, contrasts)
    return PartResult(part, arms, _adjust(contrasts)) if result.is_complete else result


def _contrast(contrast: Contrast, arms: Mapping[str, ArmResult], seeds: tuple[int, ...]) -> ContrastResult:
    arm, reference = arms[contrast.arm], arms[contrast.reference]

    def differences(left: Mapping[int, float], right: Mapping[int, float]) -> dict[int, float]:
        return {seed: left[seed] - right[seed] for seed in seeds if seed in left and seed in right}

    filled = (side.accuracies | dict.fromkeys(side.diverged, CHANCE) for side in (arm, reference))
    return ContrastResult(contrast, differences(arm.accuracies, reference.accuracies), differences(*filled))


def _adjust(contrasts: tuple[ContrastResult, ...]) -> tuple[ContrastResult, ...]:
    """With Holm's correction over the contrasts; one without a test counts as p = 1."""
    plain = holm([_p(c.differences) for c in contrasts])
    filled = holm([_p(c.with_chance) for c in contrasts])
    return tuple(
        replace(contrast, adjusted=p, adjusted_with_chance=other)
        for contrast, p, other in zip(contrasts, plain, filled, strict=True)
    )


def _p(differences: Mapping[int, float]) -> float:
    test = mean_of(list(differences.values())) if differences else None
    return 1.0 if test is None or test.p is None else test.p


def _processors(record: Record) -> set[str]:
    """The processors of a run and of the parts that it resumed from."""
    provenance = record.content["provenance"]
    parts = (provenance, *provenance.get("resumed_from", []))
    return {str(part.get("hardware", {}).get("cpu")) for part in parts}
