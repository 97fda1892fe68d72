"""Random masks, fixed before training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .allocate import Allocation, AllocationLike, kept_counts, random_masks
from .base import TargetSparsity, register


@register("random")
@dataclass
class RandomPruning(TargetSparsity):
    """Random masks at given layer densities, with exact counts; they are set when the model is attached.

    Args:
        sparsity: fraction of all prunable weights to prune; each layer keeps N - floor((1 - density) N).
        exclude: globs of weights to keep dense.
        allocation: layer densities: "erk", "balanced" or "uniform".
    """

    allocation: AllocationLike = Allocation.erk

    def __post_init__(self) -> None:
        """Convert a string to the enum. Raises ValueError on values out of range."""
        super().__post_init__()
        self.allocation = Allocation(self.allocation)

    def _on_attach(self) -> None:
        kept = kept_counts(self._shapes(), self.sparsity, self.allocation)
        generator = torch.Generator().manual_seed(self.seed)
        self.set_masks(random_masks(self._shapes(), kept, generator=generator))
