"""Means over seeds, and differences of two means with their confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """Mean, sample standard deviation (ddof 1; None if it is unknown) and number of runs."""

    mean: float
    std: float | None
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Sample:
        """The sample of at least one value."""
        return Sample(
            statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
        )

    @staticmethod
    def of_paper(printed: Sequence[float], runs: int) -> Sample:
        """The sample of a cell of the paper: its mean, its +- if printed, and its number of runs."""
        return Sample(printed[0], printed[1] if len(printed) > 1 else None, runs)

    @property
    def variance_of_mean(self) -> float:
        """std^2 / n. Raises ValueError if the standard deviation is unknown."""
        if self.std is None:
            raise ValueError("a single run has no standard deviation")
        return self.std**2 / self.n


@dataclass(frozen=True)
class Difference:
    """Difference of two means, with its 95 % interval if both standard deviations are known."""

    value: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        """As `+0.20 [-0.30, +0.70]`."""
        interval = " [{:+.2f}, {:+.2f}]".format(*map(_clean, self.interval)) if self.interval else ""
        return f"{_clean(self.value):+.2f}{interval}"

    @property
    def is_clear(self) -> bool:
        """Does the interval exclude 0?"""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def _clean(value: float) -> float:
    """Remove the rounding error of a sum, which would print as -0.00."""
    return round(value, 9) + 0.0


def difference(ours: Sample, theirs: Sample) -> Difference:
    """Our mean minus theirs, with Welch's interval.

    d +- t(0.975, df) sqrt(v1 + v2), v = std^2 / n, df = (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1)):
    Welch, Biometrika 34 (1947). The interval is None if a standard deviation is unknown or both are 0.
    """
    value = ours.mean - theirs.mean
    if ours.std is None or theirs.std is None or ours.std == theirs.std == 0:
        return Difference(value, None)
    parts = [(sample.variance_of_mean, sample.n - 1) for sample in (ours, theirs)]
    total = sum(v for v, _ in parts)
    degrees = 1 / sum((v / total) ** 2 / free for v, free in parts)
    half = _student_quantile(degrees) * math.sqrt(total)
    return Difference(value, (value - half, value + half))


def mean_of(differences: Sequence[float]) -> Difference:
    """Mean of paired differences with Student's interval, d +- t(0.975, n - 1) std / sqrt(n).

    The interval is None for a single difference, and if all are equal: equal differences come from the
    metric's resolution, not from certainty.
    """
    sample = Sample.of(differences)
    if sample.std is None or sample.std < 1e-9:
        return Difference(sample.mean, None)
    half = _student_quantile(sample.n - 1) * math.sqrt(sample.variance_of_mean)
    return Difference(sample.mean, (sample.mean - half, sample.mean + half))


def _student_quantile(degrees: float) -> float:
    """The two-sided quantile of Student's t at `CONFIDENCE`."""
    from scipy.special import stdtrit  # takes half a second, which a table without intervals does not need

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
