"""Sparsity schedules: functions of the training time that return the sparsity at that time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Literal, TypeAlias

from .choice import Choice
from .options import check_number, check_sparsity

Schedule: TypeAlias = Callable[[float], float]
"""time -> sparsity. All times are in one unit: steps, epochs, or fractions of training."""

RampName = Literal["cubic", "cosine", "linear"]


class Ramp(Choice):
    """Shapes of a rise from one sparsity to another."""

    cubic = "cubic"
    cosine = "cosine"
    linear = "linear"


@dataclass(frozen=True)
class Constant:
    """The same sparsity at all times."""

    sparsity: float

    def __post_init__(self) -> None:
        """Raise ValueError on a sparsity outside [0, 1)."""
        check_sparsity(self.sparsity)

    def __call__(self, time: float) -> float:
        """The sparsity at `time`."""
        return self.sparsity


@dataclass(frozen=True)
class Step:
    """One-shot pruning: `initial` before the time `at`, `final` from then on.

    `at` and the argument of the call are in one unit: steps, epochs, or fractions of training.

    Args:
        final: sparsity from the time `at` on, in [0, 1).
        at: time of pruning.
        initial: sparsity before that time, in [0, 1).
    """

    final: float
    at: float
    initial: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError on a sparsity outside [0, 1)."""
        check_sparsity(self.final)
        check_sparsity(self.initial)

    def __call__(self, time: float) -> float:
        """The sparsity at `time`."""
        return self.final if time >= self.at else self.initial


@dataclass(frozen=True)
class Linear:
    """A linear rise or fall; base class of the other ramps.

    `begin`, `end` and the argument of the call are in one unit: steps, epochs, or fractions of training.

    Args:
        final: sparsity at the end, in [0, 1).
        begin: time up to which the sparsity is `initial`.
        end: time from which the sparsity is `final`, at least `begin`.
        initial: sparsity up to the time `begin`, in [0, 1).
    """

    final: float
    begin: float
    end: float
    initial: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError on a sparsity outside [0, 1) or an end before the beginning."""
        check_sparsity(self.final)
        check_sparsity(self.initial)
        check_number("begin", self.begin)
        check_number("end", self.end)
        if not self.begin <= self.end:
            raise ValueError(
                f"a schedule must not end before it begins: begin={self.begin:g}, end={self.end:g}"
            )

    def __call__(self, time: float) -> float:
        """The sparsity at `time`; exactly `final` from `end` on, exactly `initial` up to `begin`."""
        if time >= self.end:
            return self.final
        if time <= self.begin:
            return self.initial
        return self.final + (self.initial - self.final) * self.remaining(
            (time - self.begin) / (self.end - self.begin)
        )

    def remaining(self, progress: float) -> float:
        """The remaining fraction of the change, 1 at progress 0 and 0 at progress 1."""
        return 1 - progress


class Cubic(Linear):
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, end = t_0 + n dt (Zhu & Gupta, 2017, Eq. 1)."""

    def remaining(self, progress: float) -> float:
        """(1 - progress)^3."""
        return (1 - progress) ** 3


class Cosine(Linear):
    """Half a cosine: s_t = s_f + (s_i - s_f) (1 + cos(pi progress)) / 2."""

    def remaining(self, progress: float) -> float:
        """(1 + cos(pi progress)) / 2."""
        return (1 + cos(pi * progress)) / 2


RAMPS: dict[Ramp, type[Linear]] = {Ramp.cubic: Cubic, Ramp.cosine: Cosine, Ramp.linear: Linear}


@dataclass(frozen=True)
class Phases:
    """`sparsity` in the sparse epochs and 0 in the dense ones; the time is the epoch, counted from 0.

    AC/DC's schedule is `Phases(sparsity, pruning.acdc.phases(total_epochs))`.

    Args:
        sparsity: sparsity of the sparse epochs.
        phases: "dense" or "sparse" for each epoch; the last one holds after the end too.
    """

    sparsity: float
    phases: Sequence[str]

    def __post_init__(self) -> None:
        """Raise ValueError on a sparsity outside [0, 1), or on phases other than dense and sparse."""
        check_sparsity(self.sparsity)
        if not self.phases or not set(self.phases) <= {"dense", "sparse"}:
            raise ValueError("phases must be a list of 'dense' and 'sparse', one for each epoch")

    def __call__(self, time: float) -> float:
        """The sparsity in the epoch that holds `time`."""
        epoch = min(max(int(time), 0), len(self.phases) - 1)
        return self.sparsity if self.phases[epoch] == "sparse" else 0.0
