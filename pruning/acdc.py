"""AC/DC: alternating compressed and decompressed training (Peste et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import Masked, register
from .choice import Choice
from .masks import fill_second_moments_, reset_first_moments_
from .scores import global_topk, kept_count, layerwise_topk, magnitude

_UNIT = 5  # epochs of a phase in the authors' configs


Scope = Choice("Scope", {"global": "global", "layerwise": "layerwise"})
"""Over which weights a sparsity is reached: all of them together, or each layer's."""


class Revive(Choice):
    """The value of a weight that is turned on again."""

    zero = "zero"
    stale = "stale"


class SecondMoment(Choice):
    """Adam's second moment of a weight that is turned on again."""

    mean = "mean"
    zero = "zero"


def phases(total_epochs: int) -> list[str]:
    """Either "dense" or "sparse" for each epoch, by the rule of the authors' configs (IST-DASLab/ACDC).

    With units of 5 epochs: two units dense, then one sparse and one dense in turn; the last sparse phase has
    three units, the dense one before it two and what is left over. 100 epochs give dense 0-9, sparse 10-14,
    dense 15-19, ..., dense 75-84, sparse 85-99. Runs under 40 epochs, too short for one such cycle, take
    units of one epoch. Every run ends sparse.

    Raises:
        ValueError: total_epochs is not positive.
    """
    if total_epochs < 1:
        raise ValueError(f"total_epochs must be positive, got {total_epochs}")
    unit = _UNIT if total_epochs >= 8 * _UNIT else 1
    last_compress = total_epochs - 3 * unit if total_epochs > 3 * unit else min(1, total_epochs - 1)

    def sparse(epoch: int) -> bool:
        cycle, position = divmod(epoch, 2 * unit)
        room_for_the_end = 2 * unit * cycle <= total_epochs - 6 * unit
        return epoch >= last_compress or (cycle > 0 and position < unit and room_for_the_end)

    return ["sparse" if sparse(epoch) else "dense" for epoch in range(total_epochs)]


@register("acdc")
@dataclass
class ACDC(Masked):
    """Dense and sparse phases in turn: compress by magnitude, decompress at zero (Peste et al., 2021).

    Args:
        sparsity: share pruned in the sparse phases.
        exclude: globs of weights to keep dense.
        scope: "global" keeps the largest magnitudes of all layers together, "layerwise" the same share of
            each layer.
        revive: "zero" as in the authors' code; "stale" brings back the values from before the compression.
        reset_momentum: zero the momentum of every parameter at each decompression.
        revive_second_moment: what Adam's second moment of a revived weight becomes, the "mean" over its
            tensor's active entries or "zero".
    """

    scope: Scope = Scope["global"]
    revive: Revive = Revive.zero
    reset_momentum: bool = True
    revive_second_moment: SecondMoment = SecondMoment.mean

    def __post_init__(self) -> None:
        """Take the choices as strings too."""
        super().__post_init__()
        self.scope = Scope(self.scope)
        self.revive = Revive(self.revive)
        self.revive_second_moment = SecondMoment(self.revive_second_moment)

    def _prepare(self) -> None:
        self._phases = phases(self.total_epochs)
        self._stale: dict[str, Tensor] = {}

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Compress or decompress where the phase changes."""
        if not 0 <= epoch < len(self._phases):
            raise ValueError(
                f"epoch {epoch} is outside the schedule: attach with total_epochs={epoch + 1} or more"
            )
        sparse = self._phases[epoch] == "sparse"
        if sparse and not self.masks.active:
            self._compress(optimizer)
        elif not sparse and self.masks.active:
            self._decompress(optimizer)
        super().on_epoch_start(epoch, optimizer)

    def _compress(self, optimizer: Optimizer) -> None:
        weights = self.masks.values()
        if self.scope == "global":
            total = sum(w.numel() for w in weights.values())
            kept = global_topk(magnitude(weights), kept_count(total, self.sparsity))
        else:
            counts = {name: kept_count(w.numel(), self.sparsity) for name, w in weights.items()}
            kept = layerwise_topk(magnitude(weights), counts)
        if self.revive is Revive.stale:
            self._stale = {name: w.clone() for name, w in weights.items()}
        self._prune(kept, optimizer)

    @torch.no_grad()
    def _decompress(self, optimizer: Optimizer) -> None:
        for name, stale in self._stale.items():
            self.masks.weights[name].write_(stale, at=self.masks.pruned[name])
        self._stale = {}
        if self.reset_momentum:
            reset_first_moments_(optimizer)
        if self.revive_second_moment is SecondMoment.mean:
            fill_second_moments_(optimizer, self.masks)
        self.masks.clear()

    def stats(self) -> dict[str, Any]:
        """Adds the phase."""
        return {**super().stats(), "phase": "sparse" if self.masks.active else "dense"}

    def state_dict(self) -> dict[str, Any]:
        """Masks, and the stale values where they are kept."""
        return {**super().state_dict(), "stale": dict(self._stale)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back masks and stale values."""
        super().load_state_dict(state)
        self._stale = {
            name: v.to(self.masks.weights[name].parameters[0].device) for name, v in state["stale"].items()
        }
