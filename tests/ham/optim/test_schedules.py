"""Learning-rate factors against hand-worked values and numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from ham.optim import cosine, linear, multistep, triangular


@pytest.mark.parametrize(
    ("step", "lr"),
    [(0, 0.05), (12510, 0.15), (25020, 0.25), (75060, 0.125), (125099, 2.4978e-6), (125100, 0.0)],
)
def test_triangular_on_imagenet(step, lr):
    """100 epochs of 1251 steps, peak .25 (Table 5)."""
    assert 0.25 * triangular(125_100)(step) == pytest.approx(lr, rel=1e-4)


def test_triangular_through_a_scheduler():
    total, optimizer = 50, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    scheduler = LambdaLR(optimizer, triangular(total))
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = 0.25 * np.interp(range(total), [0, 10, total], [0.2, 1, 0])
    np.testing.assert_allclose(seen, expected, rtol=1e-12)
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("total", [5, 7, 100, 14_550])
@pytest.mark.parametrize(("warmup", "start"), [(0.2, 0.2), (0.5, 0.0), (0.31, 1.0)])
def test_triangular_is_linear_interpolation(total, warmup, start):
    factor = triangular(total, warmup=warmup, start=start)
    expected = np.interp(range(total + 1), [0, int(warmup * total), total], [start, 1, 0])
    np.testing.assert_allclose([factor(k) for k in range(total + 1)], expected, rtol=1e-12, atol=1e-15)


def test_triangular_peak_on_cifar():
    """150 epochs of 97 steps."""
    factor = triangular(14_550)
    assert max(range(14_551), key=factor) == 2910
    assert factor(2910) == 1


@pytest.mark.parametrize(
    ("total", "expected"), [(1, [1, 0, 0]), (2, [1, 0.5, 0, 0]), (3, [1, 2 / 3, 1 / 3, 0, 0])]
)
def test_triangular_with_few_steps_starts_at_the_peak(total, expected):
    assert [triangular(total)(k) for k in range(total + 2)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),
        (5, 0.55),
        (10, 1.0),
        (32.5, 0.5 * (1 + math.sqrt(0.5))),  # a quarter of the way down
        (55, 0.5),
        (77.5, 0.5 * (1 - math.sqrt(0.5))),
        (100, 0.0),
        (101, 0.0),
    ],
)
def test_cosine_with_warmup(step, expected):
    assert cosine(100, warmup=0.1, start=0.1)(step) == pytest.approx(expected, abs=1e-12)


def test_cosine_without_warmup_equals_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    factor = cosine(20)
    for k in range(21):
        assert factor(k) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, 1 / 6255),
        (6254, 6254 / 6255),
        (6255, 1.0),  # 5 epochs
        (37_529, 1.0),
        (37_530, 0.1),  # epoch 30
        (87_569, 0.1),
        (87_570, 0.01),  # epoch 70; in floats 0.7 * 125,100 is 87,569.99
        (112_589, 0.01),
        (112_590, 0.001),  # epoch 90
        (125_100, 0.001),
    ],
)
def test_multistep_is_rigls_schedule(step, expected):
    """100 epochs of 1251 steps: 5 epochs of warmup, a tenth of the rate at epochs 30, 70 and 90."""
    assert multistep(125_100, warmup=0.05)(step) == pytest.approx(expected, rel=1e-12)


@given(
    st.integers(1, 400),
    st.lists(st.integers(1, 100), unique=True, max_size=4).map(sorted),
    st.sampled_from([0.1, 0.5, 1.0]),
)
def test_multistep_without_warmup_equals_torch(total, percent, gamma):
    """torch's milestones are steps: the first step at or after the share."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    steps = [-(-p * total // 100) for p in percent]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, gamma)
    factor = multistep(total, milestones=[p / 100 for p in percent], gamma=gamma)
    optimizer.step()  # torch warns without it
    for k in range(min(total, 50) + 1):
        assert factor(k) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        scheduler.step()


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (50, 0.5), (100, 1.0), (150, 0.5), (199, 0.01), (200, 0.0), (201, 0.0)]
)
def test_linear_with_100_warmup_steps(step, expected):
    assert linear(200, warmup_steps=100)(step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("schedule", [cosine, linear, triangular])
def test_tiny_runs_stay_between_0_and_1_and_end_at_0(schedule, total):
    factors = [schedule(total)(k) for k in range(total + 1)]
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert all(0 <= f <= 1 for f in factors)


@pytest.mark.parametrize(
    ("schedule", "total", "keywords", "message"),
    [
        (triangular, 0, {}, "total_steps must be positive, got 0"),
        (cosine, -3, {}, "total_steps must be positive, got -3"),
        (triangular, 10, {"warmup": 1.5}, r"warmup must be in \[0, 1\], got 1.5"),
        (triangular, 10, {"start": -0.1}, r"start must be in \[0, 1\]"),
        (cosine, 10, {"warmup": math.nan}, r"warmup must be in \[0, 1\]"),
        (cosine, 10, {"start": 2.0}, r"start must be in \[0, 1\]"),
        (linear, 0, {}, "total_steps must be positive, got 0"),
        (linear, 10, {"warmup_steps": -1}, "warmup_steps must not be negative, got -1"),
        (multistep, 0, {}, "total_steps must be positive, got 0"),
        (multistep, 10, {"warmup": 1.5}, r"warmup must be in \[0, 1\], got 1.5"),
        (
            multistep,
            10,
            {"milestones": [30, 70, 90]},
            r"fractions .* got \[30, 70, 90\]; epoch 30 of 100 is 0.3",
        ),
        (multistep, 10, {"milestones": [math.nan]}, r"milestones must be fractions of the steps in \[0, 1\]"),
        (multistep, 10, {"milestones": [0.5, 0.5]}, r"must rise and begin after warmup=0, got \[0.5, 0.5\]"),
        (multistep, 10, {"warmup": 0.4}, r"must rise and begin after warmup=0.4, got \[0.3, 0.7, 0.9\]"),
        (multistep, 10, {"gamma": 0.0}, r"gamma must be in \(0, 1\], got 0"),
        (multistep, 10, {"gamma": 10.0}, r"gamma must be in \(0, 1\], got 10"),
    ],
)
def test_bad_input_is_refused(schedule, total, keywords, message):
    with pytest.raises(ValueError, match=message):
        schedule(total, **keywords)


@pytest.mark.parametrize("schedule", [cosine, triangular, multistep])
def test_a_warmup_over_all_steps_ends_at_the_peak(schedule):
    options = {"milestones": []} if schedule is multistep else {}
    factor = schedule(4, warmup=1.0, start=0.0, **options)
    assert [factor(k) for k in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_a_linear_warmup_as_long_as_the_run_rises_to_its_end():
    assert [linear(4, warmup_steps=4)(k) for k in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [linear(4, warmup_steps=8)(k) for k in range(5)] == [0, 0.125, 0.25, 0.375, 0.5]


def test_milestones_may_stand_at_the_end_and_gamma_may_change_nothing():
    assert multistep(10, milestones=[0.5, 1.0])(9) == pytest.approx(0.1)
    assert multistep(10, milestones=[0.5, 1.0])(10) == pytest.approx(0.01)
    assert multistep(10, gamma=1.0)(9) == 1.0


@pytest.mark.parametrize("schedule", [cosine, linear, multistep, triangular])
def test_a_run_of_one_step_has_a_schedule(schedule):
    assert 0 < schedule(1)(0) <= 1


@pytest.mark.parametrize(
    ("milestones", "message"),
    [
        ([-0.1], "must be fractions of the steps"),
        ([1.5], "must be fractions of the steps"),
        ([0.0], "must rise and begin"),
    ],
)
def test_milestones_out_of_range_are_refused(milestones, message):
    with pytest.raises(ValueError, match=f"^milestones {message}"):
        multistep(10, milestones=milestones)
