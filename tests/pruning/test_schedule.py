from __future__ import annotations

from fractions import Fraction
from math import cos, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.acdc import phases
from pruning.schedule import RAMPS, Constant, Cosine, Cubic, Linear, Phases, Step


def test_the_cubic_schedule_is_equation_1_of_zhu_and_gupta_at_its_pruning_steps():
    """s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 for t = t0, t0 + dt, ..., t0 + n dt, by hand."""
    t0, n, dt = 40, 5, 12
    schedule = Cubic(final=0.8, initial=0.05, begin=t0, end=t0 + n * dt)
    expected = [Fraction(4, 5) - Fraction(3, 4) * Fraction(n - k, n) ** 3 for k in range(n + 1)]
    found = [schedule(t0 + k * dt) for k in range(n + 1)]
    assert found == pytest.approx([float(value) for value in expected], abs=1e-15)
    assert expected[1] == Fraction(416, 1000)  # 0.8 - 0.75 * 0.512: half of the way in a fifth of the time
    assert (found[0], found[-1]) == (0.05, 0.8)
    assert (schedule(0), schedule(10_000)) == (0.05, 0.8)


def test_the_other_ramps_by_hand():
    linear, cosine = Linear(0.9, 10, 20), Cosine(0.9, 10, 20)
    assert linear(12) == pytest.approx(0.18)
    assert cosine(12) == pytest.approx(0.9 - 0.9 * (1 + cos(0.2 * pi)) / 2)
    assert cosine(15) == pytest.approx(0.45)


@given(
    st.sampled_from(list(RAMPS.values())),
    *[st.floats(0, 0.99)] * 2,
    st.floats(0, 1),
    st.floats(0, 1),
    st.lists(st.floats(-1, 3), min_size=2),
)
def test_ramps_are_monotone_and_end_exactly(ramp, initial, final, begin, length, times):
    schedule = ramp(final=final, initial=initial, begin=begin, end=begin + length)
    values = [schedule(time) for time in sorted(times)]
    rising = sorted(values) if final >= initial else sorted(values, reverse=True)
    assert values == pytest.approx(rising, abs=1e-12)
    assert schedule(begin + length) == final
    assert all(min(initial, final) - 1e-12 <= value <= max(initial, final) + 1e-12 for value in values)


def test_constant_and_one_shot_schedules():
    assert [Constant(0.5)(time) for time in (0, 7)] == [0.5, 0.5]
    assert [Step(0.9, at=3)(time) for time in (0, 2, 3, 4)] == [0, 0, 0.9, 0.9]


def test_acdc_as_a_schedule_of_epochs():
    """Dense 0-9, sparse 10-14, dense 15-19, ..., dense 75-84, sparse 85-99 (the authors' configs)."""
    schedule = Phases(0.9, phases(100))
    assert [schedule(epoch) for epoch in (0, 9, 10, 14, 15, 75, 84, 85, 99)] == [
        *(0, 0, 0.9, 0.9, 0, 0, 0, 0.9, 0.9)
    ]
    assert schedule(100) == 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cubic(90, 0, 1), r"sparsity must be in \[0, 1\), got 90; did you mean 0\.9\?"),
        (lambda: Linear(0.9, 5, 4), "a schedule must not end before it begins: begin=5, end=4"),
        (lambda: Step(1.0, at=0), r"sparsity must be in \[0, 1\), got 1"),
        (lambda: Phases(0.9, ["sparse", "warm"]), "phases must be a list of 'dense' and 'sparse'.*"),
    ],
)
def test_wrong_schedules_raise(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_the_bounds_of_schedules_are_part_of_them():
    assert Step(0.9, at=3, initial=0.5)(2) == 0.5
    assert Linear(0.9, 2, 2)(1.9) == 0.0 and Linear(0.9, 2, 2)(2) == 0.9  # at once
    assert Linear(0.9, 1, 3, initial=0.5)(1) == Linear(0.9, 1, 3, initial=0.5)(0) == 0.5
    assert Linear(0.8, 1, 3)(2) == pytest.approx(0.4)
    assert Linear(0.9, 1, 3, initial=0.1)(1) == 0.1  # 0.9 + (0.1 - 0.9) is 0.0999...
    assert Constant(0.0)(1) == 0.0


@pytest.mark.parametrize(
    ("time", "sparsity"), [(-1, 0), (0, 0), (0.9, 0), (1, 0.5), (1.9, 0.5), (2, 0), (9, 0)]
)
def test_a_phase_lasts_its_epoch_and_the_outer_ones_for_ever(time, sparsity):
    assert Phases(0.5, ["dense", "sparse", "dense"])(time) == sparsity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(1.0), r"sparsity must be in \[0, 1\), got 1"),
        (lambda: Step(0.5, at=0, initial=1.0), r"sparsity must be in \[0, 1\), got 1"),
        (lambda: Cubic(0.5, 0, 1, initial=-0.5), r"sparsity must be in \[0, 1\), got -0\.5"),
        (lambda: Phases(1.0, ["sparse"]), r"sparsity must be in \[0, 1\), got 1"),
        (lambda: Phases(0.5, []), "phases must be a list of 'dense' and 'sparse', one for each epoch"),
    ],
)
def test_every_sparsity_of_a_schedule_is_checked(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
