"""The options of optimizer, schedule, SAM and HAM."""

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
    """The parameters that HAM or weight decay acts on, see `ham.optim.groups`.

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
        kind: shape of the schedule.
        warmup: fraction of the schedule's steps over which the rate rises; not with kind=constant or linear.
        start: factor of the first step; not with kind=constant or linear.
        milestones: fractions of the schedule's steps at which `gamma` multiplies the rate; with kind=step.
        gamma: factor of each milestone; with kind=step.
        warmup_steps: number of steps over which the rate rises from 0; with kind=linear.
        until: fraction of the run's steps over which the schedule takes place; its last factor holds
            afterwards. With 0.9, spred prunes a network that was trained to a rate of 0.
        per_epoch: True to change the rate after each epoch instead of after each step.
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
        """Raise ValueError on options of another schedule, and on values out of range."""
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
                f"optimizer.schedule.{name} does not apply to kind={self.kind}: omit it, or choose "
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
    """Options of every optimizer.

    Args:
        lr: peak learning rate, positive.
        weight_decay: weight decay of the parameters that `decay` selects (default 0).
        matched_decay: weight decay in addition to `weight_decay`, on the weights that `ham.select` selects
            (default 0). HAM's beta decays them by lr * beta per step; SGD with momentum mu does the same with
            beta * (1 - mu), AdamW with beta.
        decay: parameters with weight decay (default: all).
        sam_rho: radius of SAM's ascent in the norm of all weights; 0: no SAM (default).
        sam_adaptive: True for ASAM, whose ascent is scaled by theta^2 (default False).
        sam_freeze_bn: True to keep the running statistics of norm layers in SAM's second pass (default).
        sam_ascent: gradient that SAM's ascent follows: averaged over the ranks (default), or per rank.
        clip_norm: largest norm of the gradient of all parameters; 0: not clipped (default).
        accumulate: number of forward and backward passes per optimizer step (default 1).
        label_smoothing: fraction of the target distribution that is uniform over the classes, in training, in
            [0, 1) (default 0).
        schedule: factor of the learning rate by step (default: `ScheduleConfig`).
        demo: scale -> values of these options in a demo run (default: none).
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
        """Raise ValueError on values out of range."""
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
    """Options of torch.optim.SGD, in addition to those of `OptimizerConfig`.

    Args:
        momentum: momentum, in [0, 1) (default 0.9).
        nesterov: True for Nesterov momentum (default False).
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on a momentum outside [0, 1)."""
        super().__post_init__()
        require(0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), got {self.momentum:g}")
        require(self.momentum > 0 or not self.nesterov, "optimizer.nesterov needs a momentum above 0")


@dataclass(kw_only=True)
class AdamWConfig(OptimizerConfig):
    """Options of torch.optim.AdamW, in addition to those of `OptimizerConfig`.

    Args:
        betas: decay rates of the first and the second moment, in [0, 1) (default 0.9 and 0.999).
        eps: number added to the denominator, positive (default 1e-8).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        valid = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        require(valid, f"optimizer.betas must be two numbers in [0, 1), got {list(self.betas)}")
        require(self.eps > 0, f"optimizer.eps must be positive, got {self.eps:g}")


@dataclass(kw_only=True)
class AdamConfig(AdamWConfig):
    """torch.optim.Adam: weight decay is part of the gradient that its moments see."""


@dataclass(kw_only=True)
class HamConfig:
    """Arguments of `ham.HAM`; with alpha = beta = 0 only the base optimizer runs.

    Args:
        alpha: strength of the hyperbolic awareness; negative: nHAM (default 0).
        beta: strength of the multiplicative weight decay, not negative (default 0).
        clamp: bound on the exponent's magnitude, positive (default 5).
        select: parameters that HAM acts on (default: all but those of norm layers).
        mask_zero_grad: True to leave weights whose gradient is exactly zero unchanged (default False).
        max_weight_norm: largest 2-norm of a parameter after a step; 0: no limit (default).
    """

    alpha: float = 0.0
    beta: float = 0.0
    clamp: float = 5.0
    select: ParamFilter = ParamFilter.not_norm
    mask_zero_grad: bool = False
    max_weight_norm: float = 0.0

    @property
    def active(self) -> bool:
        """True if hyperbolic steps are taken."""
        return self.alpha != 0 or self.beta != 0

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        require(math.isfinite(self.alpha), f"ham.alpha must be finite, got {self.alpha}")
        require(
            self.beta >= 0 and math.isfinite(self.beta),
            f"ham.beta must be finite and not negative, got {self.beta:g}",
        )
        require(self.clamp > 0, f"ham.clamp must be positive, got {self.clamp:g}; the paper uses 5")
        unused = self.max_weight_norm > 0 and not self.active
        require(
            not unused, "ham.max_weight_norm is part of HAM's step: set ham.alpha or ham.beta, or omit it"
        )
        require(
            self.max_weight_norm >= 0,
            f"ham.max_weight_norm must not be negative, got {self.max_weight_norm:g}",
        )
