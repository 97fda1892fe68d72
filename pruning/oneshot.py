"""Dense training towards zeros, then one cut to the target: what PILoT and spred share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import Masked
from .scores import global_topk, kept_count, magnitude


@dataclass
class OneShot(Masked):
    """Base of the methods that train factors m * w towards zeros and then prune once, by magnitude."""

    reparametrizes: ClassVar[bool] = True
    trains_factors: ClassVar[bool] = True

    def _prune_to_target(self, optimizer: Optimizer | None = None) -> None:
        values = self.masks.values()
        total = sum(v.numel() for v in values.values())
        self._prune(global_topk(magnitude(values), kept_count(total, self.sparsity)), optimizer)

    def on_end(self) -> None:
        """Prune, if it was not done before."""
        if not self.masks.active:
            self._prune_to_target()

    @torch.no_grad()
    def near_zero(self) -> Tensor:
        """Share of weights below 1e-3 of their tensor's largest magnitude, a tensor on the device."""
        values = self.masks.values().values()
        small = sum((v.abs() <= 1e-3 * v.abs().max()).count_nonzero() for v in values)
        return small / sum(v.numel() for v in values)

    def stats(self) -> dict[str, Any]:
        """Adds the share of weights that are zero but for rounding, which says what pruning will cost."""
        return {**super().stats(), "near_zero": float(self.near_zero())}
