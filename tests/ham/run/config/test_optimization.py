"""Options of optimizers, schedules and HAM: defaults, bounds, and which schedule takes which option."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ham.run.config.optimization import (
    AdamConfig,
    AdamWConfig,
    Ascent,
    HamConfig,
    OptimizerConfig,
    ParamFilter,
    Schedule,
    ScheduleConfig,
    SGDConfig,
    require,
)

OPTIMIZER = {
    "lr": 0.1,
    "weight_decay": 0.0,
    "matched_decay": 0.0,
    "decay": ParamFilter.everything,
    "sam_rho": 0.0,
    "sam_adaptive": False,
    "sam_freeze_bn": True,
    "sam_ascent": Ascent.averaged,
    "clip_norm": 0.0,
    "accumulate": 1,
    "label_smoothing": 0.0,
    "schedule": ScheduleConfig(),
    "demo": {},
}
SCHEDULE = {
    **dict.fromkeys(("warmup", "start", "milestones", "gamma", "warmup_steps")),
    "kind": Schedule.triangular,
    "until": 1.0,
    "per_epoch": False,
}
HAM = {
    "alpha": 0.0,
    "beta": 0.0,
    "clamp": 5.0,
    "select": ParamFilter.not_norm,
    "mask_zero_grad": False,
    "max_weight_norm": 0.0,
}
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}


def test_what_is_not_given_is_the_plain_optimizer() -> None:
    assert vars(OptimizerConfig(lr=0.1)) == OPTIMIZER
    assert vars(SGDConfig(lr=0.1)) == OPTIMIZER | {"momentum": 0.9, "nesterov": False}
    for kind in (AdamWConfig, AdamConfig):
        assert vars(kind(lr=0.1)) == OPTIMIZER | ADAM
    assert vars(HamConfig()) == HAM and not HamConfig().active
    assert vars(ScheduleConfig()) == SCHEDULE


def test_a_requirement_raises_its_message_only_where_it_fails() -> None:
    require(True, "never")
    with pytest.raises(ValueError, match=r"^always$"):
        require(False, "always")


NOT_NEGATIVE = ("weight_decay", "matched_decay", "sam_rho", "clip_norm")
GOOD: list[tuple[type, dict[str, Any]]] = [
    (OptimizerConfig, {"lr": 1e-300}),
    (OptimizerConfig, {"lr": 1.5}),
    *((OptimizerConfig, {"lr": 0.1, name: value}) for name in NOT_NEGATIVE for value in (0.0, 1e-300, 1.5)),
    *((OptimizerConfig, {"lr": 0.1, "label_smoothing": value}) for value in (0.0, 0.999)),
    *((OptimizerConfig, {"lr": 0.1, "accumulate": value}) for value in (1, 2)),
    *((SGDConfig, {"lr": 0.1, "momentum": value}) for value in (0.0, 0.999)),
    (SGDConfig, {"lr": 0.1, "momentum": 1e-9, "nesterov": True}),
    *((AdamWConfig, {"lr": 0.1, "betas": value}) for value in ((0.0, 0.0), (0.999, 0.5), (0.5, 0.9999))),
    (AdamWConfig, {"lr": 0.1, "eps": 1e-300}),
    *((HamConfig, {"alpha": value}) for value in (-200.0, 0.5)),
    *((HamConfig, {"beta": value}) for value in (0.0, 1e-300, 1.5)),
    (HamConfig, {"clamp": 1e-300}),
    *((HamConfig, {name: 0.5, "max_weight_norm": 0.5}) for name in ("alpha", "beta")),
]
BAD: list[tuple[type, dict[str, Any], str]] = [
    *(
        (OptimizerConfig, {"lr": v}, "optimizer.lr must be positive, got ")
        for v in (0.0, -0.1, math.inf, math.nan)
    ),
    *(
        (OptimizerConfig, {"lr": 0.1, name: value}, f"optimizer.{name} must not be negative, got {value:g}")
        for name in NOT_NEGATIVE
        for value in (-1e-9, math.inf, math.nan)
    ),
    *(
        (
            OptimizerConfig,
            {"lr": 0.1, "label_smoothing": v},
            "optimizer.label_smoothing must be in [0, 1), got ",
        )
        for v in (-1e-9, 1.0)
    ),
    (OptimizerConfig, {"lr": 0.1, "accumulate": 0}, "optimizer.accumulate must be at least 1, got 0"),
    *(
        (SGDConfig, {"lr": 0.1, "momentum": v}, "optimizer.momentum must be in [0, 1), got ")
        for v in (-1e-9, 1.0)
    ),
    (SGDConfig, {"lr": -1.0}, "optimizer.lr must be positive, got -1"),
    (
        SGDConfig,
        {"lr": 0.1, "momentum": 0.0, "nesterov": True},
        "optimizer.nesterov needs a momentum above 0",
    ),
    *(
        (
            AdamWConfig,
            {"lr": 0.1, "betas": v},
            f"optimizer.betas must be two numbers in [0, 1), got {list(v)}",
        )
        for v in ((0.9,), (0.9, 0.9, 0.9), (-0.1, 0.9), (0.9, 1.0), (1.0, 0.9), (0.9, -0.1))
    ),
    (AdamWConfig, {"lr": 0.1, "eps": 0.0}, "optimizer.eps must be positive, got 0"),
    (AdamWConfig, {"lr": 0.0}, "optimizer.lr must be positive, got 0"),
    *((HamConfig, {"alpha": v}, "ham.alpha must be finite, got ") for v in (math.inf, math.nan)),
    *((HamConfig, {"beta": v}, "ham.beta must be finite and not negative, got ") for v in (-1e-9, math.inf)),
    (HamConfig, {"clamp": 0.0}, "ham.clamp must be positive, got 0; the paper uses 5"),
    (
        HamConfig,
        {"max_weight_norm": 0.5},
        "ham.max_weight_norm is part of HAM's step: set ham.alpha or ham.beta",
    ),
    (HamConfig, {"beta": 1.0, "max_weight_norm": -0.5}, "ham.max_weight_norm must not be negative, got -0.5"),
    (HamConfig, {"max_weight_norm": -0.5}, "ham.max_weight_norm must not be negative, got -0.5"),
]


@pytest.mark.parametrize(("kind", "values"), GOOD, ids=str)
def test_values_within_the_bounds_are_taken(kind: type, values: dict[str, Any]) -> None:
    made = kind(**values)
    assert all(getattr(made, name) == value for name, value in values.items())


@pytest.mark.parametrize(("kind", "values", "message"), BAD, ids=str)
def test_values_beyond_a_bound_are_refused(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        kind(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (-1.0, 0.0), (0.0, 0.5)])
def test_ham_is_active_with_alpha_or_beta(alpha: float, beta: float) -> None:
    assert HamConfig(alpha=alpha, beta=beta).active


VALUES = {"warmup": 0.25, "start": 0.5, "milestones": [0.5], "gamma": 0.5, "warmup_steps": 2, "until": 0.5}
TAKEN = {
    Schedule.triangular: {"warmup", "start", "until"},
    Schedule.cosine: {"warmup", "start", "until"},
    Schedule.linear: {"warmup_steps", "until"},
    Schedule.step: {"warmup", "start", "milestones", "gamma", "until"},
    Schedule.constant: set(),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kind", TAKEN)
def test_each_schedule_takes_its_own_options_alone(kind: Schedule, name: str) -> None:
    if name in TAKEN[kind]:
        assert getattr(ScheduleConfig(kind=kind, **{name: VALUES[name]}), name) == VALUES[name]
        return
    with pytest.raises(ValueError) as caught:
        ScheduleConfig(kind=kind, **{name: VALUES[name]})
    assert str(caught.value) == (
        f"optimizer.schedule.{name} does not apply to kind={kind}: omit it, or choose another "
        "optimizer.schedule.kind"
    )


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"kind": Schedule.constant}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"warmup": 0.5, "start": 0.5}, [0.5, 0.625, 0.75, 0.875, 1, 0.75, 0.5, 0.25]),
        ({"warmup": 0.5, "start": 0.5, "until": 0.5}, [0.5, 0.75, 1, 0.5, 0, 0, 0, 0]),
        ({"warmup": 0.5, "start": 0.5, "per_epoch": True}, [0.5, 0.5, 0.75, 0.75, 1, 1, 0.5, 0.5]),
        ({"kind": Schedule.linear, "warmup_steps": 4}, [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
        ({"kind": Schedule.step, "milestones": [0.5], "gamma": 0.5}, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
        ({"kind": Schedule.step, "milestones": [0.3], "gamma": 0.5}, [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_the_factors_of_four_epochs_of_two_steps_by_hand(
    options: dict[str, Any], factors: list[float]
) -> None:
    factor = ScheduleConfig(**options).factor(4, 2)
    assert [factor(step) for step in range(8)] == pytest.approx(factors)


def test_the_end_of_a_schedule_is_a_whole_step_by_decimal_arithmetic() -> None:
    """0.29 * 100 is 28.999... in floats; and a schedule has at least one step."""
    factor = ScheduleConfig(warmup=0.0, until=0.29).factor(100, 1)
    assert factor(28) == pytest.approx(1 / 29) and factor(29) == 0
    assert ScheduleConfig(warmup=0.0, until=1e-6).factor(1, 1)(0) == 1


@pytest.mark.parametrize("until", [0.0, -0.1, 1.0001])
def test_a_schedule_ends_within_the_run(until: float) -> None:
    with pytest.raises(ValueError, match=rf"^optimizer\.schedule\.until must be in \(0, 1\], got {until:g}$"):
        ScheduleConfig(until=until)
