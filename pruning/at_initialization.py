"""Base class of the methods that prune once, before the first step, from data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from .target import TargetSparsity


@dataclass
class AtInitialization(TargetSparsity):
    """Prunes in `initialize`, which a resumed run does not call."""

    def _on_attach(self) -> None:
        self._has_pruned = False

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Mask the gradients. Raises RuntimeError before `initialize`."""
        if not self._has_pruned:
            raise RuntimeError(
                f"{type(self).__name__} has not pruned yet: call initialize(batches, loss_fn) before training"
            )
        return super().after_backward(step, optimizer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the masks; `initialize` is not needed if the state has some."""
        super().load_state_dict(state)
        self._has_pruned = self.masks.active
