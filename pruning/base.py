"""The life of a sparsifier: what a training loop calls, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .masks import MaskSet
from .scores import check_sparsity
from .weights import prunable_weights


@dataclass
class Sparsifier:
    """Decides which weights are on; this base leaves all on. Fields are hyperparameters, nothing else.

    A loop calls `attach` before it makes the optimizer, `initialize` before the first step, `on_epoch_start`
    at each epoch (not again after a resume inside one), `after_backward`, `add_decay` and `after_step` around
    each optimizer step, and `on_end` after the last.
    """

    def attach(
        self, model: nn.Module, *, total_epochs: int, steps_per_epoch: int | None = None, seed: int = 0
    ) -> None:
        """Choose the layers, before the optimizer is made. Raises ValueError on an unfit model."""
        self.masks = MaskSet(prunable_weights(model))

    def initialize(self, batches: Iterable, loss_fn: Callable) -> None:
        """Prune at initialisation, from batches of (inputs, targets). After DDP, before step 0."""

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Change phases at epoch `epoch`, counted from 0."""

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Use the dense gradients, then mask them. False: no optimizer step follows in this iteration."""
        self.mask_gradients()
        return True

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights; SAM's second pass calls it too."""
        self.masks.apply_to_gradients_()

    def add_decay(self) -> None:
        """Add the gradient of the method's own penalty, after any score is taken and outside SAM's ascent."""

    def after_step(self) -> None:
        """Project the weights onto the mask."""
        self.masks.apply_to_weights_()

    def on_end(self) -> None:
        """Finish after the last step."""

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, kept, total) of each prunable weight."""
        return self.masks.counts()

    def achieved_sparsity(self) -> float:
        """Pruned share of all prunable weights; biases and norm layers are not counted."""
        kept, total = (sum(column) for column in list(zip(*self.counts(), strict=True))[1:])
        return 1 - kept / total

    def stats(self) -> dict[str, Any]:
        """Numbers for the epoch's record: here the overall sparsity and the kept count."""
        return {"sparsity": self.achieved_sparsity(), "kept": sum(kept for _, kept, _ in self.counts())}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain values."""
        return {"masks": self.masks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, after `attach`."""
        self.masks.load_state_dict(state["masks"])


@dataclass
class Dense(Sparsifier):
    """No sparsity: every weight stays on."""


@dataclass
class Masked(Sparsifier):
    """Base of the methods that prune to a target with hard masks.

    Args:
        sparsity: target share of pruned weights among the prunable ones, in [0, 1).
        exclude: globs of weights to keep dense, such as "conv1.weight"; they do not count towards the target
            either.
    """

    sparsity: float
    exclude: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError on a target outside [0, 1)."""
        check_sparsity(self.sparsity)

    def attach(
        self, model: nn.Module, *, total_epochs: int, steps_per_epoch: int | None = None, seed: int = 0
    ) -> None:
        """Choose the prunable weights outside `exclude`."""
        self.masks = MaskSet(prunable_weights(model, self.exclude))
