"""SET, sparse evolutionary training: drop the smallest weights, grow at random (Mocanu et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import register
from .drop_grow import DropAndGrow
from .options import check_positive_integer
from .shards import place_like
from .weights import Weight


@register("set")
@dataclass
class SET(DropAndGrow):
    """Sparse from the start at Erdos-Renyi layer sizes; masks are updated by magnitude and at random.

    At an update the fraction `drop_fraction` of each layer's kept weights, those of smallest |theta|, is
    dropped: the smallest positive and the largest negative ones together, as in the SET of google-research/
    rigl. As many are grown at random among those that were off; they start at zero with zero optimizer
    state. If more are dropped than were off, some of the dropped ones stay, unchanged. No optimizer step
    follows in an iteration with an update.

    Args:
        sparsity: fraction of all prunable weights to prune. It fixes epsilon of the paper's density
            epsilon (n_in + n_out) / (n_in n_out).
        exclude: globs of weights to keep dense.
        granularity: "element", blocks, or N:M with allocation "uniform"; see `TargetSparsity`.
        allocation: layer densities: "erk" as in the paper for linear layers, "uniform" or "balanced".
        interval: steps between updates; None: an epoch, as in the paper. There is no update after the last
            epoch.
        drop_fraction: zeta, 0.3 in the paper.
        until: fraction of all steps after which the masks are fixed; 1 in the paper.
    """

    interval: int | None = None
    drop_fraction: float = 0.3
    until: float = 1.0

    _own_state: ClassVar[tuple[str, ...]] = ("generator",)

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        if self.interval is not None:
            check_positive_integer("interval", self.interval, " step")
        for name in ("drop_fraction", "until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name):g}")

    def _on_attach(self) -> None:
        self._end = self.until * self.total_steps
        self._every = self.interval or self.total_steps // self.total_epochs
        self._generator = torch.Generator().manual_seed(self.seed + 1)  # not the stream of the first masks
        super()._on_attach()

    def is_update_step(self, step: int) -> bool:
        """Return True if the masks are updated at this step, counted from 0."""
        return 0 < step < self._end and step % self._every == 0

    def drop_fraction_at(self, step: int) -> float:
        """Fraction of the kept weights to drop: the same at all updates."""
        return self.drop_fraction

    def _updated_masks(self, step: int) -> Mapping[str, Tensor]:
        self._on = self.masks.masks  # once: each access follows all weights
        return super()._updated_masks(step)

    def growth(self, name: str, weight: Weight) -> Tensor:
        """Random scores, in [1, 2) where the weight is off and in [0, 1) where it is on, at an update."""
        draw = torch.rand(weight.shape, generator=self._generator, dtype=torch.float64, device="cpu")
        mask = self._on[name]
        return place_like(draw, mask).to(mask.device) + (~mask)

    def state_dict(self) -> dict[str, Any]:
        """Adds the state of the random generator."""
        return {**super().state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the masks and the random generator."""
        super().load_state_dict(state)
        self._generator.set_state(state["generator"].cpu())
