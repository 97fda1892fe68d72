"""The common part of PILoT and spred: dense training towards zeros, then pruning once to the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .deprecation import warn_renamed
from .scores import magnitude
from .target import TargetSparsity


@dataclass
class FactoredPruning(TargetSparsity):
    """Base class of the methods that train factors m * w towards zeros and prune once, by magnitude."""

    reparametrizes: ClassVar[bool] = True
    trains_factors: ClassVar[bool] = True
    changes_at_epochs: ClassVar[bool] = True
    prunes_at_end: ClassVar[bool] = True

    def _prune_to_target(self, optimizer: Optimizer | None = None) -> None:
        self.set_masks(self.select(magnitude(self.masks.values())), optimizer)

    def on_end(self) -> None:
        """Prune, unless the weights are already pruned."""
        if not self.masks.active:
            self._prune_to_target()
        super().on_end()

    @torch.no_grad()
    def near_zero_fraction(self) -> Tensor:
        """Fraction of weights below 1e-3 of their tensor's largest magnitude: 0-dim, no host sync."""
        values = self.masks.values().values()
        small = torch.stack([(v.abs() <= 1e-3 * v.abs().max()).count_nonzero() for v in values]).sum()
        return small / sum(v.numel() for v in values)

    def near_zero(self) -> Tensor:
        """Deprecated: `near_zero_fraction`."""
        warn_renamed("near_zero", "near_zero_fraction")
        return self.near_zero_fraction()

    def stats(self) -> dict[str, Any]:
        """Adds the fraction of weights that are zero to rounding: pruning these changes nothing."""
        return {**super().stats(), "near_zero": float(self.near_zero_fraction())}
