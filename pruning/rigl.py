"""RigL: drop the smallest weights, grow where the dense gradient is largest (Evci et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor
from torch.optim import Optimizer

from .allocate import Allocation, kept_counts, random_masks
from .base import Masked, register
from .ranks import mean_over_ranks
from .scores import global_topk


def rewire(theta: Tensor, gradient: Tensor, kept: Tensor, count: int, name: str = "") -> Tensor:
    """The mask of one layer after dropping `count` weights and growing as many.

    Dropped are the kept weights of smallest |theta|; grown are, among all that are then off, the just dropped
    included, those of largest |gradient|. Ties keep and grow the lower index.

    Args:
        theta: weights, any shape.
        gradient: dense gradient of theta's shape, averaged over ranks.
        kept: bool, True where a weight is on.
        count: at most the number of kept weights and of what is off after the drop.
        name: of the layer, for errors.

    Raises:
        NotFinite: a weight or a gradient is nan.
    """
    survivors = _largest(name, theta.abs(), kept, int(kept.count_nonzero()) - count)
    return survivors | _largest(name, gradient.abs(), ~survivors, count)


def _largest(name: str, score: Tensor, among: Tensor, count: int) -> Tensor:
    return global_topk({name: score.masked_fill(~among, -1.0)}, count)[name]  # scores are >= 0


@register("rigl")
@dataclass
class RigL(Masked):
    """Sparse from the start at fixed layer sizes, rewired at intervals by magnitude and dense gradient.

    At every `interval`-th step before `until` of all steps the share `fraction(step)` of each layer's kept
    weights is dropped and grown elsewhere. Grown weights start at zero with clean optimizer state; one that
    is dropped and grown in the same update keeps value and state. No optimizer step follows in such an
    iteration (google-research/rigl, sparse_optimizers_base.py).

    Args:
        sparsity: share pruned of all prunable weights.
        exclude: globs of weights to keep dense. RigL's own "uniform" keeps the first convolution dense.
        allocation: layer densities: erk, uniform or balanced.
        interval: steps between updates: 100 as published, at batches of 4096; 400 sees as many images at
            1024.
        drop_fraction: share dropped at the first update; it falls along half a cosine.
        until: share of all steps after which the masks stay.
    """

    allocation: Allocation = Allocation.erk
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

    def _prepare(self) -> None:
        self._end = self.until * self.total_steps
        generator = torch.Generator().manual_seed(self.seed)
        kept = kept_counts(self._shapes(), self.sparsity, self.allocation)
        self._prune(random_masks(self._shapes(), kept, generator=generator))

    def fraction(self, step: int) -> float:
        """Share of the kept weights to drop at `step`: drop_fraction / 2 * (1 + cos(pi step / end))."""
        return self.drop_fraction / 2 * (1 + cos(pi * step / self._end))

    def updates(self, step: int) -> bool:
        """Are the masks rewired at this step, counted from 0?"""
        return 0 < step < self._end and step % self.interval == 0

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Mask the gradients, or rewire by the dense ones; then no optimizer step follows."""
        if not self.updates(step):
            return super().after_backward(step, optimizer)
        self._prune(self._rewired(step), optimizer)
        return False

    @torch.no_grad()
    def _rewired(self, step: int) -> Mapping[str, Tensor]:
        kept = {name: ~pruned for name, pruned in self.masks.pruned.items()}
        for name, weight in self.masks.weights.items():
            gradient = weight.gradient
            if gradient is None:  # a layer that this network does not use
                continue
            # first the mean, then the absolute value: with SAM's first pass per rank it is not averaged yet
            gradient = mean_over_ranks(gradient)
            count = int(int(kept[name].count_nonzero()) * self.fraction(step))
            kept[name] = rewire(weight.value, gradient, kept[name], count, name)
        return kept
