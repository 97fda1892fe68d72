"""Random masks, fixed before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .allocate import Allocation, AllocationLike, kept_counts
from .base import register
from .target import TargetSparsity
from .units import layouts


def draw_masks(
    sparsifier: TargetSparsity, allocation: AllocationLike, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random masks of an attached sparsifier, in its units, with exact counts at the layer densities.

    The densities are allocated over the layers that have no sparsity of their own.
    """
    own = sparsifier.layer_sparsities
    shapes = {name: shape for name, shape in sparsifier.shapes().items() if name not in own}
    kept = sparsifier.kept_per_layer() | kept_counts(shapes, sparsifier.sparsity, allocation)
    return sparsifier.units.draw(kept, layouts(sparsifier.masks.weights), generator=generator)


@dataclass
class RandomMasks(TargetSparsity):
    """Base class of the methods that start with random masks at given layer densities."""

    allocation: AllocationLike = Allocation.erk

    _state_options: ClassVar[tuple[str, ...]] = ("allocation",)

    def __post_init__(self) -> None:
        """Convert a string to the enum. Raises ValueError on values out of range."""
        super().__post_init__()
        self.allocation = Allocation(self.allocation)

    def _on_attach(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.set_masks(draw_masks(self, self.allocation, generator))


@register("random")
@dataclass
class RandomPruning(RandomMasks):
    """Random masks at given layer densities, with exact counts; they are set when the model is attached.

    Args:
        sparsity: fraction of all prunable weights to prune; each layer keeps N - floor((1 - density) N).
        exclude: globs of weights to keep dense.
        granularity: "element", blocks, or N:M with allocation "uniform"; see `TargetSparsity`.
        allocation: layer densities: "erk", "balanced" or "uniform".
    """
