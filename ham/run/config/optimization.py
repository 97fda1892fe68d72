"""How a run optimizes: the options of optimizer, schedule, SAM and HAM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

from ham.optim.schedules import cosine, linear, multistep, triangular


def require(condition: bool, message: str) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError(message)


class Schedule(StrEnum):
    """Learning-rate schedules of `ham.optim.schedules`, or one rate throughout."""

    triangular = "triangular"
    cosine = "cosine"
    linear = "linear"
    step = "step"
    constant = "constant"


class Ascent(StrEnum):
    """SAM's ascent follows the gradient averaged over the ranks, or each rank's own (m-sharpness)."""

    averaged = "averaged"
    per_rank = "per_rank"


class ParamFilter(StrEnum):
    """Which parameters HAM or weight decay acts on, see `ham.optim.groups`.

    `convs.*` are the convolutions of a graph network (App. G.6.2).
    """

    not_norm = "not_norm"
    ndim2 = "ndim2"
    everything = "everything"
    convolutions = "convs.*"
    convolutions_but_biases = "convs.*[!s]"  # a name that does not end as "bias" does


def _constant(total_steps: int) -> Callable[[int], float]:
    return lambda step: 1.0


_OPTIONS = ("warmup", "start", "milestones", "gamma", "warmup_steps")
_SCHEDULES: dict[Schedule, tuple[Callable[..., Callable[[int], float]], tuple[str, ...]]] = {
    Schedule.triangular: (triangular, _OPTIONS[:2]),
    Schedule.cosine: (cosine, _OPTIONS[:2]),
    Schedule.linear: (linear, _OPTIONS[4:]),
    Schedule.step: (multistep, _OPTIONS[:4]),
    Schedule.constant: (_constant, ()),
}
"""Each schedule's function and the options that it takes."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """Learning rate by step; null is the default of the schedule's function in `ham.optim.schedules`.

    Args:
        kind: the shape.
        warmup: share of the schedule's steps over which the rate rises; not with kind=constant or linear.
        start: factor of the first step; not with kind=constant or linear.
        milestones: shares of the schedule's steps at which `gamma` multiplies the rate; with kind=step.
        gamma: factor of each milestone; with kind=step.
        warmup_steps: number of steps over which the rate rises from 0; with kind=linear.
        until: share of the run's steps over which the schedule takes place; its last factor holds afterwards.
            With 0.9, spred prunes a network that was trained to a rate of 0.
        per_epoch: the rate changes after each epoch instead of after each step.
    """

    kind: Schedule = Schedule.triangular
    warmup: float | None = None
    start: float | None = None
    milestones: list[float] | None = None
    gamma: float | None = None
    warmup_steps: int | None = None
    until: float = 1.0
    per_epoch: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on options of another schedule, and on values that the schedule refuses."""
        self.factor(1, 1)

    def factor(self, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
        """Factor of the learning rate by step.

        Raises:
            ValueError: an option of another schedule is set, or a value is out of range.
        """
        if not self.per_epoch:
            return self._shape(epochs * steps_per_epoch)
        of_epoch = self._shape(epochs)
        return lambda step: of_epoch(step // steps_per_epoch)

    def _shape(self, total_steps: int) -> Callable[[int], float]:
        schedule, options = _SCHEDULES[self.kind]
        given = {name: value for name in _OPTIONS if (value := getattr(self, name)) is not None}
        for name in (*given, *(["until"] if self.until != 1 else [])):
            applies = name in options or (name == "until" and self.kind is not Schedule.constant)
            require(
                applies,
                f"optimizer.schedule.{name} does not apply to kind={self.kind}: leave it out, or choose "
                "another optimizer.schedule.kind",
            )
        require(0 < self.until <= 1, f"optimizer.schedule.until must be in (0, 1], got {self.until:g}")
        steps = max(int(Fraction(repr(float(self.until))) * total_steps), 1)
        try:
            return schedule(steps, **given)
        except ValueError as error:
            raise ValueError(f"optimizer.schedule: {error}") from None  # `load` shows the innermost cause


@dataclass(kw_only=True)
class OptimizerConfig:
    """What every optimizer has. `sam_rho` 0: no SAM; `clip_norm` 0: the gradient's norm is not clipped.

    `matched_decay`: weight decay beside `weight_decay` on the weights that `ham.select` chooses. HAM's beta
    decays them by lr * beta a step; SGD with momentum mu does the same with beta * (1 - mu), AdamW with beta.
    `label_smoothing`: share of the target distribution that is uniform over the classes, in training.
    """

    lr: float
    weight_decay: float = 0.0
    matched_decay: float = 0.0
    decay: ParamFilter = ParamFilter.everything
    sam_rho: float = 0.0
    sam_adaptive: bool = False
    sam_freeze_bn: bool = True
    sam_ascent: Ascent = Ascent.averaged
    clip_norm: float = 0.0
    accumulate: int = 1
    label_smoothing: float = 0.0
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    demo: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError on values no optimizer can run with."""
        require(self.lr > 0 and math.isfinite(self.lr), f"optimizer.lr must be positive, got {self.lr:g}")
        for name in ("weight_decay", "matched_decay", "sam_rho", "clip_norm"):
            value = getattr(self, name)
            require(
                value >= 0 and math.isfinite(value), f"optimizer.{name} must not be negative, got {value:g}"
            )
        require(
            0 <= self.label_smoothing < 1,
            f"optimizer.label_smoothing must be in [0, 1), got {self.label_smoothing:g}",
        )
        require(self.accumulate >= 1, f"optimizer.accumulate must be at least 1, got {self.accumulate}")


@dataclass(kw_only=True)
class SGDConfig(OptimizerConfig):
    """torch.optim.SGD."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on a momentum outside [0, 1)."""
        super().__post_init__()
        require(0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), got {self.momentum:g}")
        require(self.momentum > 0 or not self.nesterov, "optimizer.nesterov needs a momentum above 0")


@dataclass(kw_only=True)
class AdamWConfig(OptimizerConfig):
    """torch.optim.AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Raise ValueError on values torch refuses."""
        super().__post_init__()
        valid = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        require(valid, f"optimizer.betas must be two numbers in [0, 1), got {list(self.betas)}")
        require(self.eps > 0, f"optimizer.eps must be positive, got {self.eps:g}")


@dataclass(kw_only=True)
class AdamConfig(AdamWConfig):
    """torch.optim.Adam: weight decay is part of the gradient that its moments see."""


@dataclass(kw_only=True)
class HamConfig:
    """Arguments of `ham.HAM`; alpha = beta = 0: the base optimizer alone, `max_weight_norm` 0: no clip."""

    alpha: float = 0.0
    beta: float = 0.0
    clamp: float = 5.0
    select: ParamFilter = ParamFilter.not_norm
    mask_zero_grad: bool = False
    max_weight_norm: float = 0.0

    @property
    def active(self) -> bool:
        """Does any hyperbolic step happen?"""
        return self.alpha != 0 or self.beta != 0

    def __post_init__(self) -> None:
        """Raise ValueError on values HAM refuses."""
        require(math.isfinite(self.alpha), f"ham.alpha must be finite, got {self.alpha}")
        require(
            self.beta >= 0 and math.isfinite(self.beta),
            f"ham.beta must be finite and not negative, got {self.beta:g}",
        )
        require(self.clamp > 0, f"ham.clamp must be positive, got {self.clamp:g}; the paper uses 5")
        unused = self.max_weight_norm > 0 and not self.active
        require(
            not unused, "ham.max_weight_norm is part of HAM's step: set ham.alpha or ham.beta, or drop it"
        )
        require(
            self.max_weight_norm >= 0,
            f"ham.max_weight_norm must not be negative, got {self.max_weight_norm:g}",
        )
