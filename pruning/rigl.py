"""RigL: drop the smallest weights, grow where the dense gradient is largest (Evci et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor
from torch.optim import Optimizer

from .allocate import Allocation, AllocationLike, kept_counts, random_masks
from .base import TargetSparsity, register
from .deprecation import warn_renamed
from .ranks import mean_over_ranks
from .scores import global_topk


def update_mask(theta: Tensor, gradient: Tensor, mask: Tensor, count: int, name: str = "") -> Tensor:
    """The mask of one layer after dropping `count` weights and growing as many.

    The kept weights of smallest |theta| are dropped. Then those of largest |gradient| are grown, among all
    that are off, including the ones just dropped. Ties keep and grow the lower index.

    Args:
        theta: weights, any shape.
        gradient: dense gradient of theta's shape, averaged over ranks.
        mask: bool, True where a weight is on.
        count: at most the number of kept weights, and of those that are off after the drop.
        name: of the layer, for errors.

    Raises:
        NotFinite: a weight or a gradient is nan.
    """
    survivors = _largest(name, theta.abs(), mask, int(mask.count_nonzero()) - count)
    return survivors | _largest(name, gradient.abs(), ~survivors, count)


def _largest(name: str, score: Tensor, among: Tensor, count: int) -> Tensor:
    return global_topk({name: score.masked_fill(~among, -1.0)}, count)[name]  # scores are >= 0


@register("rigl")
@dataclass
class RigL(TargetSparsity):
    """Sparse from the start at fixed layer sizes; masks are updated by magnitude and dense gradient.

    At every `interval`-th step before `until` of all steps the fraction `drop_fraction_at(step)` of each
    layer's kept weights is dropped and as many are grown. Grown weights start at zero with zero optimizer
    state; one that is dropped and grown in the same update keeps value and state. No optimizer step follows
    in such an iteration (google-research/rigl, sparse_optimizers_base.py).

    Args:
        sparsity: fraction of all prunable weights to prune.
        exclude: globs of weights to keep dense. RigL's own "uniform" keeps the first convolution dense.
        allocation: layer densities: "erk", "uniform" or "balanced".
        interval: steps between updates: 100 as published, at batches of 4096; 400 sees as many images at
            1024.
        drop_fraction: fraction of the kept weights dropped at step 0; it falls along half a cosine.
        until: fraction of all steps after which the masks are fixed.
    """

    allocation: AllocationLike = Allocation.erk
    interval: int = 100
    drop_fraction: float = 0.3
    until: float = 0.75

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        self.allocation = Allocation(self.allocation)
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {self.interval}")
        for name in ("drop_fraction", "until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name):g}")

    def _on_attach(self) -> None:
        self._end = self.until * self.total_steps
        generator = torch.Generator().manual_seed(self.seed)
        kept = kept_counts(self._shapes(), self.sparsity, self.allocation)
        self.set_masks(random_masks(self._shapes(), kept, generator=generator))

    def drop_fraction_at(self, step: int) -> float:
        """Fraction of the kept weights to drop at `step`: drop_fraction / 2 * (1 + cos(pi step / end))."""
        return self.drop_fraction / 2 * (1 + cos(pi * step / self._end))

    def fraction(self, step: int) -> float:
        """Deprecated: `drop_fraction_at`."""
        warn_renamed("RigL.fraction", "RigL.drop_fraction_at")
        return self.drop_fraction_at(step)

    def is_update_step(self, step: int) -> bool:
        """Are the masks updated at this step, counted from 0?"""
        return 0 < step < self._end and step % self.interval == 0

    def updates(self, step: int) -> bool:
        """Deprecated: `is_update_step`."""
        warn_renamed("RigL.updates", "RigL.is_update_step")
        return self.is_update_step(step)

    def uses_gradients(self, step: int) -> bool:
        """At update steps."""
        return self.is_update_step(step)

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Mask the gradients, or update the masks by the dense ones; then no optimizer step follows."""
        if not self.is_update_step(step):
            return super().after_backward(step, optimizer)
        self._begin_step(step, optimizer)
        self.set_masks(self._updated_masks(step), optimizer)
        return False

    @torch.no_grad()
    def _updated_masks(self, step: int) -> Mapping[str, Tensor]:
        masks = dict(self.masks.masks)
        for name, weight in self.masks.weights.items():
            gradient = weight.gradient
            if gradient is None:  # the network does not use this layer
                continue
            # mean before absolute value: with SAM's first pass per rank, gradients are not averaged yet
            gradient = mean_over_ranks(gradient)
            count = int(int(masks[name].count_nonzero()) * self.drop_fraction_at(step))
            masks[name] = update_mask(weight.value, gradient, masks[name], count, name)
        return masks
