"""Means, intervals, tests, Holm's correction and power, by hand and against scipy."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ham.report.statistics import (
    Difference,
    Sample,
    detectable_difference,
    difference,
    holm,
    mean_of,
    paired_power,
)

values = st.lists(st.integers(0, 10000).map(lambda cents: cents / 100), min_size=2, max_size=6)


def test_mean_and_sample_standard_deviation_by_hand() -> None:
    assert Sample.of([76.0, 77.0, 78.0]) == Sample(77.0, 1.0, 3)
    assert Sample.of([98.0, 99.0]) == Sample(98.5, math.sqrt(0.5), 2)
    assert Sample.of([75.25]) == Sample(75.25, None, 1)
    assert Sample.of_paper((76.66, 0.12), 3) == Sample(76.66, 0.12, 3)
    assert Sample.of_paper((52.9,), 1) == Sample(52.9, None, 1)


def test_welch_by_hand() -> None:
    equal = difference(Sample(77.0, 1.0, 3), Sample(76.5, 1.0, 3))  # v = 1/3 each: df = 4, t = 2.776445
    assert equal.value == 0.5
    assert equal.interval == pytest.approx((0.5 - 2.776445 * 0.8164966, 0.5 + 2.776445 * 0.8164966), abs=1e-5)
    # v = 4/2 and 9/3: df = 25 / (4/1 + 9/2) = 2.941, between t(3) = 3.182 and t(2) = 4.303: t = 3.21876
    half = 3.21876 * math.sqrt(5)
    uneven = difference(Sample(10.0, 2.0, 2), Sample(8.0, 3.0, 3))
    assert uneven.interval == pytest.approx((2 - half, 2 + half), abs=1e-4)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(values, values)
def test_welch_is_scipys(ours: list[float], theirs: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = Sample.of(ours), Sample.of(theirs)
    assume(first.std > 0 or second.std > 0)
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert difference(first, second).interval == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sample(77.0, None, 1), Sample(76.0, 0.1, 3)),
        (Sample(77.0, 0.1, 3), Sample(76.0, None, 3)),
        (Sample(77.0, 0.0, 3), Sample(76.0, 0.0, 3)),
    ],
    ids=["one run", "no printed spread", "no spread at all"],
)
def test_without_spreads_there_is_no_interval(ours: Sample, theirs: Sample) -> None:
    assert difference(ours, theirs).value == 1.0
    assert difference(ours, theirs).interval is None


def test_paired_differences_by_hand() -> None:
    """0.2, 0.4, 0.0: mean 0.2, standard deviation 0.2, t(2) = 4.302653, half width 0.496828."""
    mean = mean_of([0.2, 0.4, 0.0])
    assert mean.interval == pytest.approx((0.2 - 0.496828, 0.2 + 0.496828), abs=1e-5)
    assert str(mean) == "+0.20 [-0.30, +0.70]" and not mean.is_clear
    assert mean_of([0.2, 0.3, 0.2]).is_clear and mean_of([-0.2, -0.3, -0.2]).is_clear
    assert mean_of([0.4]) == Difference(0.4, None) == mean_of([0.4, 0.4])  # equal: the metric's resolution
    assert str(mean_of([0.1, 0.2, -0.3])).startswith("+0.00 [")  # the sum's residue is -1.9e-17


@pytest.mark.parametrize(
    ("interval", "is_clear"),
    [((0.0, 1.0), False), ((-1.0, 0.0), False), ((-1.0, 1.0), False), (None, False)]
    + [((0.1, 1.0), True), ((-1.0, -0.1), True)],
)
def test_an_interval_that_ends_at_0_does_not_exclude_it(
    interval: tuple[float, float] | None, is_clear: bool
) -> None:
    assert Difference(0.5, interval).is_clear == is_clear


def test_a_single_run_has_no_variance_and_its_difference_no_interval_in_words() -> None:
    assert Sample(1.0, 2.0, 4).variance_of_mean == 1.0
    with pytest.raises(ValueError, match="a single run has no standard deviation"):
        _ = Sample(1.0, None, 1).variance_of_mean
    assert str(Difference(-1e-12, None)) == "+0.00" and str(Difference(-0.125, (-1, 0.75))).startswith("-0.1")


def test_p_by_hand() -> None:
    """t(1) is Cauchy's: P(abs(t) > 1) = 1/2. 0 and 2: mean 1, standard error 1."""
    assert mean_of([0.0, 2.0]).p == pytest.approx(0.5, abs=1e-12)
    welch = difference(Sample(2.0, 1.0, 2), Sample(1.0, 1.0, 2))  # df = 2, t = 1: P = 1 - 1 / sqrt(3)
    assert welch.p == pytest.approx(1 - 1 / math.sqrt(3), abs=1e-12)
    assert mean_of([0.4]).p is mean_of([0.4, 0.4]).p is None


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(values, values)
def test_p_is_scipys(ours: list[float], theirs: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    assume(Sample.of(ours).std > 0)
    welch = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    assert difference(Sample.of(ours), Sample.of(theirs)).p == pytest.approx(float(welch), rel=1e-6, abs=1e-9)
    assert mean_of(ours).p == pytest.approx(float(stats.ttest_1samp(ours, 0).pvalue), rel=1e-6, abs=1e-9)


@given(values.map(lambda own: [value - 50 for value in own]))
def test_an_interval_excludes_0_where_p_is_below_5_percent(own: list[float]) -> None:
    mean = mean_of(own)
    assume(mean.p is not None and abs(mean.p - 0.05) > 1e-9)
    assert mean.is_clear == (mean.p < 0.05)


# Holm's correction


def test_holm_by_hand() -> None:
    """Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 = 0.02, 0.03, 0.06, 0.04: the last is raised to 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]  # 2 x 0.5, then at least that
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.3]) == [0.3] and holm([]) == []


def test_holm_takes_the_ends_of_the_unit_interval() -> None:
    assert holm([0.0, 1.0]) == [0.0, 1.0]


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        holm([0.2, wrong])


probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(probabilities, st.randoms(use_true_random=False))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p: list[float], random: Random) -> None:
    adjusted = holm(p)
    assert all(own <= a <= min(1.0, len(p) * own) for own, a in zip(p, adjusted, strict=True))
    assert all(a <= b for (_, a), (_, b) in pairwise(sorted(zip(p, adjusted, strict=True))))
    places = list(range(len(p)))
    random.shuffle(places)
    assert holm([p[place] for place in places]) == [adjusted[place] for place in places]


@given(probabilities)
def test_holm_rejects_what_closed_testing_rejects(p: list[float]) -> None:
    """Holm is the closed test of Bonferroni's: the largest min(1, size x smallest p) of all sets with it."""
    sets = [own for size in range(len(p)) for own in combinations(range(len(p)), size + 1)]
    bonferroni = {own: min(1.0, len(own) * min(p[i] for i in own)) for own in sets}
    closed = [max(value for own, value in bonferroni.items() if i in own) for i in range(len(p))]
    assert holm(p) == pytest.approx(closed)


# Power of the paired test


def test_power_by_hand() -> None:
    """Without an effect it is the level. For 34 pairs half a standard deviation apart 0.8077775."""
    for n in (2, 5, 40):
        assert paired_power(0, 1.3, n, alpha=0.01) == pytest.approx(0.01, abs=1e-9)
    assert paired_power(0.5, 1, 34) == pytest.approx(0.8077775, abs=1e-6)
    assert paired_power(-1.5, 3, 34) == pytest.approx(0.8077775, abs=1e-6)
    assert detectable_difference(3, 34, power=0.8077775) == pytest.approx(1.5, abs=1e-5)
    with pytest.raises(ValueError, match="n >= 2"):
        paired_power(1, 1, 1)
    with pytest.raises(ValueError, match=r"between alpha = 0\.05 and 1"):
        detectable_difference(1, 5, power=0.05)


@pytest.mark.parametrize(
    "arguments", [(1, 0, 5, 0.05), (1, -1, 5, 0.05), (1, 1, 1, 0.05), (1, 1, 5, 0.0), (1, 1, 5, 1.0)]
)
def test_power_needs_a_spread_two_pairs_and_a_level_between_0_and_1(arguments: tuple) -> None:
    _, std, n, alpha = arguments
    with pytest.raises(ValueError, match=rf"are needed, got {std}, {n} and {alpha}$"):
        paired_power(*arguments)


@pytest.mark.parametrize("power", [0.04, 0.05, 1.0, 1.5])
def test_the_power_to_reach_lies_between_the_level_and_1(power: float) -> None:
    with pytest.raises(ValueError, match=rf"between alpha = 0\.05 and 1, got {power}"):
        detectable_difference(1, 5, power)


def test_the_detectable_difference_is_that_of_80_percent_at_5_percent_by_default() -> None:
    assert detectable_difference(1, 34) == detectable_difference(1, 34, 0.8, 0.05)
    assert paired_power(0.5, 1, 34) == paired_power(0.5, 1, 34, 0.05)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 300])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_power_is_that_of_scipys_noncentral_t(n: int, alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    critical = stats.t.isf(alpha / 2, n - 1)
    for shift in (0.1, 1.0, 2.5, 4.0, 12.0):
        tails = stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, n - 1, -shift)  # mirrored
        assert paired_power(2 * shift / math.sqrt(n), 2, n, alpha) == pytest.approx(tails, abs=1e-8)


@settings(max_examples=8)
@given(st.floats(0.01, 10), st.integers(2, 40), st.floats(0.1, 0.99))
def test_the_detectable_difference_has_the_power(std: float, n: int, power: float) -> None:
    found = detectable_difference(std, n, power)
    assert paired_power(found, std, n) == pytest.approx(power, abs=1e-6)
    assert detectable_difference(std, n + 1, power) < found
    assert detectable_difference(2 * std, n, power) == pytest.approx(2 * found, rel=1e-6)
