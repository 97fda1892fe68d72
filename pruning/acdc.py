"""AC/DC: alternating compressed and decompressed training (Peste et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import register
from .choice import Choice
from .optimizer_state import fill_second_moments_, reset_first_moments_, warn_of_unknown_momentum
from .scores import magnitude
from .shards import place_like
from .target import TargetSparsity

_UNIT = 5  # epochs of a phase in the authors' configs


ScopeName = Literal["global", "layerwise"]
ReviveName = Literal["zero", "stale"]
SecondMomentName = Literal["mean", "zero"]

if TYPE_CHECKING:

    class Scope(Choice):
        """The weights over which a sparsity is reached: all of them together, or those of each layer."""

        layerwise = "layerwise"

else:  # "global" is a keyword, which class syntax cannot define
    Scope = Choice("Scope", {"global": "global", "layerwise": "layerwise"})


class Revive(Choice):
    """The value of a revived weight."""

    zero = "zero"
    stale = "stale"


class SecondMoment(Choice):
    """Adam's second moment of a revived weight."""

    mean = "mean"
    zero = "zero"


if TYPE_CHECKING:  # a checker accepts strings; at run time a field's type must be the enum
    ScopeLike: TypeAlias = Scope | ScopeName
    ReviveLike: TypeAlias = Revive | ReviveName
    SecondMomentLike: TypeAlias = SecondMoment | SecondMomentName
else:
    ScopeLike, ReviveLike, SecondMomentLike = Scope, Revive, SecondMoment


def phases(total_epochs: int) -> list[str]:
    """Either "dense" or "sparse" for each epoch, by the rule of the authors' configs (IST-DASLab/ACDC).

    With units of 5 epochs: two units dense, then one sparse and one dense in turn; the last sparse phase has
    three units, the dense one before it two and the remainder. 100 epochs give dense 0-9, sparse 10-14,
    dense 15-19, ..., dense 75-84, sparse 85-99. Runs of fewer than 40 epochs, too short for one such cycle,
    use units of one epoch. Every run ends sparse.

    Raises:
        ValueError: total_epochs is not positive.
    """
    if total_epochs < 1:
        raise ValueError(f"total_epochs must be positive, got {total_epochs}")
    unit = _UNIT if total_epochs >= 8 * _UNIT else 1
    last_compress = total_epochs - 3 * unit if total_epochs > 3 * unit else min(1, total_epochs - 1)

    def is_sparse(epoch: int) -> bool:
        cycle, position = divmod(epoch, 2 * unit)
        before_last_dense = 2 * unit * cycle <= total_epochs - 6 * unit
        return epoch >= last_compress or (cycle > 0 and position < unit and before_last_dense)

    return ["sparse" if is_sparse(epoch) else "dense" for epoch in range(total_epochs)]


@register("acdc")
@dataclass
class ACDC(TargetSparsity):
    """Dense and sparse phases in turn: compress by magnitude, decompress at zero (Peste et al., 2021).

    Args:
        sparsity: fraction of the weights that is pruned in the sparse phases.
        exclude: globs of weights to keep dense.
        granularity: "element", N:M or blocks; see `TargetSparsity`.
        scope: "global" keeps the largest magnitudes of all layers together, "layerwise" the same fraction
            of each layer.
        revive: value of a revived weight: "zero" as in the authors' code, or "stale", its value before the
            compression.
        reset_momentum: zero the momentum of every parameter at each decompression.
        revive_second_moment: Adam's second moment of a revived weight: the "mean" over its tensor's active
            entries, or "zero".
    """

    scope: ScopeLike = Scope["global"]
    revive: ReviveLike = Revive.zero
    reset_momentum: bool = True
    revive_second_moment: SecondMomentLike = SecondMoment.mean

    changes_at_epochs: ClassVar[bool] = True
    _own_state: ClassVar[tuple[str, ...]] = ("stale",)
    _state_options: ClassVar[tuple[str, ...]] = ("scope", "revive")

    def __post_init__(self) -> None:
        """Convert strings to enums. Raises ValueError on values out of range."""
        super().__post_init__()
        self.scope = Scope(self.scope)
        self.revive = Revive(self.revive)
        self.revive_second_moment = SecondMoment(self.revive_second_moment)

    def _on_attach(self) -> None:
        self._phases = phases(self.total_epochs)
        self._stale: dict[str, Tensor] = {}

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Compress or decompress where the phase changes.

        Args:
            epoch: number of the epoch, counted from 0.
            optimizer: the optimizer used for training, the one with the hook or a wrapper of it.

        Raises:
            ValueError: the epoch is outside the schedule, or the hook is on another optimizer.
            RuntimeError: a weight is no longer a parameter of the model.
        """
        if not 0 <= epoch < len(self._phases):
            raise ValueError(
                f"epoch {epoch} is outside the schedule: attach with total_epochs={epoch + 1} or more"
            )
        optimizer = self._begin_epoch(optimizer)
        is_sparse = self._phases[epoch] == "sparse"
        if is_sparse and not self.masks.active:
            self._compress(optimizer)
        elif not is_sparse and self.masks.active:
            self._decompress(optimizer)
        super().on_epoch_start(epoch, optimizer)

    def _compress(self, optimizer: Optimizer) -> None:
        weights = self.masks.values()
        counts = self.kept_target() if self.scope == "global" else self.kept_per_layer()
        masks = self.select(magnitude(weights), counts)
        if self.revive is Revive.stale:
            self._stale = {name: w.clone() for name, w in weights.items()}
        self.set_masks(masks, optimizer)

    @torch.no_grad()
    def _decompress(self, optimizer: Optimizer) -> None:
        weights, masks = self.masks.weights, self.masks.masks  # once: each access follows all weights
        for name, stale in self._stale.items():
            weights[name].assign_(stale, at=~masks[name])
        self._stale = {}
        if self.reset_momentum:
            reset_first_moments_(optimizer)
            trained = [p for weight in weights.values() for p in weight.parameters]
            self._has_warned = self._has_warned or warn_of_unknown_momentum(
                optimizer, trained, "ACDC's reset_momentum"
            )
        if self.revive_second_moment is SecondMoment.mean:
            fill_second_moments_(optimizer, self.masks)
        self.masks.clear()

    def stats(self) -> dict[str, Any]:
        """Adds the phase."""
        return {**super().stats(), "phase": "sparse" if self.masks.active else "dense"}

    def state_dict(self) -> dict[str, Any]:
        """Adds the values from before the compression, where revived weights take them."""
        return {**super().state_dict(), "stale": dict(self._stale)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore masks and stale values."""
        super().load_state_dict(state)
        tensors = {name: weight.parameters[0] for name, weight in self.masks.weights.items()}
        self._stale = {n: place_like(v.to(tensors[n].device), tensors[n]) for n, v in state["stale"].items()}
