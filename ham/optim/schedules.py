"""Learning-rate factors per step, for `torch.optim.lr_scheduler.LambdaLR` stepped every iteration."""

from __future__ import annotations

import math
from collections.abc import Callable


def triangular(total_steps: int, *, warmup: float = 0.2, start: float = 0.2) -> Callable[[int], float]:
    """`start` at step 0, 1 at step int(warmup * total_steps), 0 at the end, linear in between (Table 5).

    Raises:
        ValueError: total_steps is not positive, or warmup or start lies outside [0, 1].
    """
    _check(total_steps, warmup=warmup, start=start)
    top = int(warmup * total_steps)

    def factor(step: int) -> float:
        if step < top:
            return start + (1 - start) * step / top
        return max(0.0, (total_steps - step) / (total_steps - top)) if total_steps > top else 1.0

    return factor


def cosine(total_steps: int, *, warmup: float = 0.0, start: float = 0.0) -> Callable[[int], float]:
    """Linear from `start` to 1 over int(warmup * total_steps) steps, then half a cosine to 0 at the end.

    Raises:
        ValueError: total_steps is not positive, or warmup or start lies outside [0, 1].
    """
    _check(total_steps, warmup=warmup, start=start)
    top = int(warmup * total_steps)

    def factor(step: int) -> float:
        if step < top:
            return start + (1 - start) * step / top
        progress = min(1.0, (step - top) / (total_steps - top)) if total_steps > top else 0.0
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def _check(total_steps: int, **shares: float) -> None:
    if total_steps < 1:
        raise ValueError(f"total_steps must be positive, got {total_steps}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {share}")
