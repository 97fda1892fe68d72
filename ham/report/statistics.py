"""Means over seeds; differences of means with intervals and tests; Holm's correction; power."""

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
    """Difference of two means; its 95 % interval and its test if both standard deviations are known.

    Args:
        value: first mean minus second mean.
        interval: lower and upper bound.
        p: the two-sided p of the test against 0; below 0.05 exactly where the interval excludes 0.
    """

    value: float
    interval: tuple[float, float] | None
    p: float | None = None

    def __str__(self) -> str:
        """As `+0.20 [-0.30, +0.70]`."""
        interval = " [{:+.2f}, {:+.2f}]".format(*map(_clean, self.interval)) if self.interval else ""
        return f"{_clean(self.value):+.2f}{interval}"

    @property
    def is_clear(self) -> bool:
        """True if the interval excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def _clean(value: float) -> float:
    """Remove the rounding error of a sum, which would print as -0.00."""
    return round(value, 9) + 0.0


def difference(ours: Sample, theirs: Sample) -> Difference:
    """Our mean minus theirs, with Welch's interval and test.

    d +- t(0.975, df) sqrt(v1 + v2), v = std^2 / n, df = (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1)):
    Welch, Biometrika 34 (1947). There is none if a standard deviation is unknown or both are 0.
    """
    value = ours.mean - theirs.mean
    if ours.std is None or theirs.std is None or ours.std == theirs.std == 0:
        return Difference(value, None)
    parts = [(sample.variance_of_mean, sample.n - 1) for sample in (ours, theirs)]
    total = sum(v for v, _ in parts)
    degrees = 1 / sum((v / total) ** 2 / free for v, free in parts)
    return _t_test(value, math.sqrt(total), degrees)


def mean_of(differences: Sequence[float]) -> Difference:
    """Mean of paired differences with Student's interval, d +- t(0.975, n - 1) std / sqrt(n), and test.

    There is none for a single difference, and if all are equal: equal differences come from the metric's
    resolution, not from certainty.
    """
    sample = Sample.of(differences)
    if sample.std is None or sample.std < 1e-9:
        return Difference(sample.mean, None)
    return _t_test(sample.mean, math.sqrt(sample.variance_of_mean), sample.n - 1)


def _t_test(value: float, error: float, degrees: float) -> Difference:
    """A difference with its standard error: interval and p by Student's t."""
    from scipy.special import stdtr  # takes half a second, which a table without intervals does not need

    half = student_quantile(degrees) * error
    return Difference(value, (value - half, value + half), float(2 * stdtr(degrees, -abs(value) / error)))


def student_quantile(degrees: float, level: float = CONFIDENCE) -> float:
    """The t that Student's abs(t) is below with probability `level`."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p of m tests, in the order given.

    That of the i-th smallest p is the maximum over j <= i of min(1, (m - j + 1) p_j). Rejecting where it is
    at most alpha keeps the probability of any false rejection at alpha, whatever the dependence of the
    tests: Holm, Scandinavian Journal of Statistics 6 (1979).

    Raises:
        ValueError: a p is not in [0, 1].
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"a p value must be in [0, 1], got {wrong[0]}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def paired_power(effect: float, std: float, n: int, alpha: float = 1 - CONFIDENCE) -> float:
    """Probability that the two-sided paired t-test at level alpha finds a mean difference of `effect`.

    For normal differences, t = (Z + d) / S with d = sqrt(n) effect / std, Z standard normal and S the sample
    standard deviation over std. The expectation over S of P(abs(t) > critical | S) is summed over a grid of
    log S; scipy's noncentral t is nan for many d.

    Args:
        effect: the true mean of the paired differences.
        std: their standard deviation, in the same unit, above 0.
        n: number of pairs, at least 2.
        alpha: level of the test, in (0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (std > 0 and n >= 2 and 0 < alpha < 1):
        raise ValueError(f"std > 0, n >= 2 and 0 < alpha < 1 are needed, got {std}, {n} and {alpha}")
    degrees, shift = n - 1, math.sqrt(n) * effect / std
    critical = student_quantile(degrees, 1 - alpha)
    low, high, points = -30 / degrees - 8 / math.sqrt(degrees), min(2.2, 8 / math.sqrt(degrees)), 1000
    total = power = 0.0
    for point in range(points + 1):
        log_s = low + (high - low) * point / points
        density = math.exp(degrees * (log_s - math.expm1(2 * log_s) / 2))  # of log S, times a constant
        total += density
        power += density * sum(_normal_tail(math.exp(log_s) * critical - d) for d in (shift, -shift))
    return power / total


def _normal_tail(z: float) -> float:
    """P(Z > z) of a standard normal Z."""
    return math.erfc(z / math.sqrt(2)) / 2


def detectable_difference(std: float, n: int, power: float = 0.8, alpha: float = 1 - CONFIDENCE) -> float:
    """The mean of n paired differences, of standard deviation `std`, that `paired_power` is `power` at.

    Raises:
        ValueError: power is not between alpha and 1, or an argument of `paired_power` is out of its range.
    """
    if not alpha < power < 1:
        raise ValueError(f"power must be between alpha = {alpha:g} and 1, got {power}")
    from scipy.optimize import brentq

    low, high = 0.0, std
    while paired_power(high, std, n, alpha) < power:
        low, high = high, 2 * high
    return float(brentq(lambda effect: paired_power(effect, std, n, alpha) - power, low, high, xtol=1e-12))
