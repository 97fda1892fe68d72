"""Means, standard deviations and Welch's interval, by hand and against scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ham.report.statistics import Difference, Sample, difference, mean_of

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
@settings(deadline=None)
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
