"""RigL: drop the smallest weights, grow where the dense gradient is largest (Evci et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from torch import Tensor

from .base import register
from .deprecation import warn_renamed
from .drop_grow import DropAndGrow, update_mask
from .options import check_positive_integer
from .ranks import mean_over_ranks
from .weights import Weight

__all__ = ["RigL", "update_mask"]


@register("rigl")
@dataclass
class RigL(DropAndGrow):
    """Sparse from the start at fixed layer sizes; masks are updated by magnitude and dense gradient.

    At every `interval`-th step after step 0 and before `until` of all steps the fraction
    `drop_fraction_at(step)` of each layer's kept weights is dropped and as many are grown. Grown weights
    start at zero with zero optimizer state; one that is dropped and grown in the same update keeps value and
    state. No optimizer step follows in such an iteration (google-research/rigl, sparse_optimizers_base.py).

    Args:
        sparsity: fraction of all prunable weights to prune.
        exclude: globs of weights to keep dense. RigL's own "uniform" keeps the first convolution dense.
        granularity: "element", blocks such as "4x4", which are dropped and grown by the sums of |theta| and
            |gradient|, or N:M with allocation "uniform": what a group loses it grows again.
        allocation: layer densities: "erk", "uniform" or "balanced".
        interval: steps between updates: 100 as published, with batches of 4096; with batches of 1024, 400
            steps process as many images.
        drop_fraction: fraction of the kept weights dropped at step 0; it falls along half a cosine.
        until: fraction of all steps after which the masks are fixed.
        update_at_start: True to also update at step 0, as google-research/rigl does.
    """

    interval: int = 100
    drop_fraction: float = 0.3
    until: float = 0.75
    update_at_start: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        check_positive_integer("interval", self.interval, " step")
        for name in ("drop_fraction", "until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name):g}")

    def _on_attach(self) -> None:
        self._end = self.until * self.total_steps
        super()._on_attach()

    def drop_fraction_at(self, step: int) -> float:
        """Fraction of the kept weights to drop at `step`: drop_fraction / 2 * (1 + cos(pi step / end))."""
        return self.drop_fraction / 2 * (1 + cos(pi * step / self._end))

    def fraction(self, step: int) -> float:
        """Deprecated: `drop_fraction_at`."""
        warn_renamed("RigL.fraction", "RigL.drop_fraction_at")
        return self.drop_fraction_at(step)

    def is_update_step(self, step: int) -> bool:
        """Return True if the masks are updated at this step, counted from 0."""
        begins = self.update_at_start or step > 0
        return begins and step < self._end and step % self.interval == 0

    def updates(self, step: int) -> bool:
        """Deprecated: `is_update_step`."""
        warn_renamed("RigL.updates", "RigL.is_update_step")
        return self.is_update_step(step)

    def uses_gradients(self, step: int) -> bool:
        """Return True at update steps."""
        return self.is_update_step(step)

    def growth(self, name: str, weight: Weight) -> Tensor | None:
        """The dense gradient, averaged over ranks; None where the network does not use the layer."""
        gradient = weight.gradient
        # mean before absolute value: with SAM's first pass per rank, gradients are not averaged yet
        return None if gradient is None else mean_over_ranks(gradient)
