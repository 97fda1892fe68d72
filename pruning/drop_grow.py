"""The common part of RigL and SET: sparse from the start, with masks that drop weights and grow as many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from .checks import warn_at_caller
from .random_pruning import RandomMasks
from .shards import count_nonzero
from .topk import global_topk
from .units import Element, Granularity, Layout, layouts
from .weights import Weight

_ELEMENT = Element()


def update_mask(
    theta: Tensor,
    growth: Tensor,
    mask: Tensor,
    count: int,
    name: str = "",
    units: Granularity = _ELEMENT,
    layout: Layout | None = None,
    kept: int | None = None,
) -> Tensor:
    """The mask of one layer after dropping `count` weights, or units, and growing as many.

    The kept weights of smallest |theta| are dropped. Then those of largest |growth| are grown, among all
    that are off, including the ones just dropped (google-research/rigl, sparse_optimizers_base.py). Ties keep
    and grow the lower index. A block counts by the sums over its weights; N:M grows in every group as many
    weights as the group has lost.

    Args:
        theta: weights, any shape.
        growth: scores of theta's shape, such as the dense gradient averaged over ranks.
        mask: bool, True where a weight is on.
        count: number of units to drop; at most that of the kept units, and of those off after the drop.
        name: name of the layer, for errors.
        units: the granularity in which weights are dropped and grown.
        layout: layout of the weight; None: its inputs are dimension 1.
        kept: number of weights that the mask keeps; None: counted, with a host sync.

    Returns:
        The new mask, bool, of theta's shape.

    Raises:
        NotFinite: a weight or a score is nan.
    """
    layout = Layout(tuple(theta.shape)) if layout is None else layout
    magnitudes = units.reduce(theta.abs().masked_fill(~mask, -1.0), layout)
    kept = count_nonzero([mask])[0] if kept is None else kept
    survivors = global_topk({name: magnitudes}, kept // units.unit_size - count)[name]
    survivors = units.expand(survivors, layout)
    return survivors | units.grow(growth.abs(), survivors, count, layout, name)


@dataclass
class DropAndGrow(RandomMasks, ABC):
    """Base class: random masks at fixed layer sizes, updated at some steps by dropping and growing.

    At an update step the fraction `drop_fraction_at(step)` of each layer's kept units is dropped and as many
    are grown by `growth`. Grown weights start at zero with zero optimizer state. No optimizer step follows
    in such an iteration (google-research/rigl, sparse_optimizers_base.py).
    """

    @abstractmethod
    def is_update_step(self, step: int) -> bool:
        """Return True if the masks are updated at this step, counted from 0."""

    @abstractmethod
    def drop_fraction_at(self, step: int) -> float:
        """Fraction of the kept weights to drop at `step`."""

    @abstractmethod
    def growth(self, name: str, weight: Weight) -> Tensor | None:
        """Scores of the weight's shape; the largest |score| is grown. None: the layer keeps its mask."""

    def _warn_without_updates(self) -> None:
        """Warn where the masks stay those of `attach`."""
        planned = 0 if self.steps_per_epoch is None else self.total_steps
        if planned and not any(map(self.is_update_step, range(planned))):
            warn_at_caller(
                f"{type(self).__name__} updates its masks at none of the {planned} steps: lower interval, or "
                "use RandomPruning for fixed masks"
            )

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Mask the gradients, or update the masks by the dense gradients; then no optimizer step follows."""
        self._check_step(step)
        if not self._was_stepped:
            self._warn_without_updates()
        if not self.is_update_step(step):
            return super().after_backward(step, optimizer)
        self._begin_step(step, optimizer)
        self.masks.apply_to_weights_()  # what grows starts at zero, whatever was loaded since the last step
        self.masks.apply_to_optimizer_(optimizer)
        self.set_masks(self._updated_masks(step), optimizer)
        self._skips_step = True
        return False

    @torch.no_grad()
    def _updated_masks(self, step: int) -> Mapping[str, Tensor]:
        masks = dict(self.masks.masks)
        on = {name: kept for name, kept, _ in self.masks.counts()}
        layout_of = layouts(self.masks.weights)
        for name, weight in self.masks.weights.items():
            growth = self.growth(name, weight)
            if growth is None:
                continue
            count = int(on[name] // self.units.unit_size * self.drop_fraction_at(step))
            options = dict(name=name, units=self.units, layout=layout_of[name], kept=on[name])
            masks[name] = update_mask(weight.value, growth, masks[name], count, **options)
        return masks
