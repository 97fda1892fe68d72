"""Learning-rate factors per step, for `torch.optim.lr_scheduler.LambdaLR` stepped every iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise


def triangular(total_steps: int, *, warmup: float = 0.2, start: float = 0.2) -> Callable[[int], float]:
    """`start` at step 0, 1 at step int(warmup * total_steps), 0 at the end, linear in between (Table 5).

    The defaults are TurboPrune's (utils/schedulers.py), the paper's code base.

    Args:
        total_steps: number of optimizer steps.
        warmup: fraction of the steps until the peak, in [0, 1].
        start: factor at step 0, in [0, 1].

    Returns:
        step -> learning-rate factor, for LambdaLR.

    Raises:
        ValueError: total_steps is not positive, or warmup or start lies outside [0, 1].
    """
    _check(total_steps, warmup=warmup, start=start)
    peak = int(warmup * total_steps)

    def factor(step: int) -> float:
        if step < peak:
            return start + (1 - start) * step / peak
        return max(0.0, (total_steps - step) / (total_steps - peak)) if total_steps > peak else 1.0

    return factor


def cosine(total_steps: int, *, warmup: float = 0.0, start: float = 0.0) -> Callable[[int], float]:
    """Linear from `start` to 1 over int(warmup * total_steps) steps, then half a cosine to 0 at the end.

    Args:
        total_steps: number of optimizer steps.
        warmup: fraction of the steps with a rising rate, in [0, 1].
        start: factor at step 0 if there is a warmup, in [0, 1].

    Returns:
        step -> learning-rate factor, for LambdaLR.

    Raises:
        ValueError: total_steps is not positive, or warmup or start lies outside [0, 1].
    """
    _check(total_steps, warmup=warmup, start=start)
    peak = int(warmup * total_steps)

    def factor(step: int) -> float:
        if step < peak:
            return start + (1 - start) * step / peak
        progress = min(1.0, (step - peak) / (total_steps - peak)) if total_steps > peak else 0.0
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def linear(total_steps: int, *, warmup_steps: int = 0) -> Callable[[int], float]:
    """0 at step 0, 1 at step `warmup_steps`, 0 at the end, linear in between.

    The factors are those of transformers' get_linear_schedule_with_warmup: with at least as many warmup steps
    as steps, the rate rises to the end.

    Args:
        total_steps: number of optimizer steps.
        warmup_steps: number of steps with a rising rate.

    Returns:
        step -> learning-rate factor, for LambdaLR.

    Raises:
        ValueError: total_steps is not positive, or warmup_steps is negative.
    """
    _check(total_steps)
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return factor


def multistep(
    total_steps: int,
    *,
    warmup: float = 0.0,
    start: float = 0.0,
    milestones: Sequence[float] = (0.3, 0.7, 0.9),
    gamma: float = 0.1,
) -> Callable[[int], float]:
    """Linear from `start` to 1 over int(warmup * total_steps) steps, then times `gamma` at each milestone.

    A milestone takes effect at the first step k >= fraction * total_steps. The product is taken in exact
    decimal arithmetic, so that 0.7 of 100 is step 70. The defaults are RigL's epochs 30, 70 and 90 of 100
    (Evci et al., 2020).

    Args:
        total_steps: number of optimizer steps.
        warmup: fraction of the steps with a rising rate, in [0, 1].
        start: factor at step 0 if there is a warmup, in [0, 1].
        milestones: fractions of the steps at which `gamma` multiplies the rate, in increasing order.
        gamma: factor of each milestone, in (0, 1].

    Returns:
        step -> learning-rate factor, for LambdaLR.

    Raises:
        ValueError: total_steps is not positive; warmup, start or a milestone lies outside [0, 1]; milestones
            do not rise or the first is not after the warmup; or gamma lies outside (0, 1].
    """
    _check(total_steps, warmup=warmup, start=start)
    _check_milestones(milestones, warmup, gamma)
    peak = int(_exact(warmup) * total_steps)
    drops = [math.ceil(_exact(fraction) * total_steps) for fraction in milestones]

    def factor(step: int) -> float:
        if step < peak:
            return start + (1 - start) * step / peak
        return gamma ** sum(step >= drop for drop in drops)

    return factor


def _exact(fraction: float) -> Fraction:
    """The decimal number that the float is written as: 0.7 is 7 / 10."""
    return Fraction(repr(float(fraction)))


def _check_milestones(milestones: Sequence[float], warmup: float, gamma: float) -> None:
    fractions = list(milestones)
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(
            f"milestones must be fractions of the steps in [0, 1], got {fractions}; epoch 30 of 100 is 0.3"
        )
    if any(later <= earlier for earlier, later in pairwise([warmup, *fractions])):
        raise ValueError(f"milestones must rise and begin after warmup={warmup:g}, got {fractions}")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma:g}")


def _check(total_steps: int, **fractions: float) -> None:
    if total_steps < 1:
        raise ValueError(f"total_steps must be positive, got {total_steps}")
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {fraction}")
