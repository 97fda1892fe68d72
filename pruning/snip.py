"""SNIP: masks from the gradients of the first batches (Lee et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from .at_initialization import AtInitialization
from .base import register
from .checks import check_not_sharded_yet
from .options import check_positive_integer
from .scores import snip


@register("snip")
@dataclass
class SNIP(AtInitialization):
    """Keep the weights whose removal would change the loss most, |dL/dmask| = |g theta| (Lee et al., 2019).

    Args:
        sparsity: fraction of all prunable weights to prune, by one threshold for all layers.
        exclude: globs of weights to keep dense.
        granularity: "element", N:M or blocks; a block's score is the sum of its weights' scores.
        batches: number of batches to sum the gradient over before the absolute value; 10 of 1024 images are
            the ten per class of ganguli-lab/Synaptic-Flow.
    """

    batches: int = 10

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        check_positive_integer("batches", self.batches)

    def initialize(self, batches: Iterable[Any] = (), loss_fn: Callable[..., Tensor] | None = None) -> None:
        """Prune by the gradients of `loss_fn(model(inputs), targets)` over the first batches.

        The first dimension of inputs and targets must be the samples: where all are tensors of one length, a
        batch is computed in parts of 128 along it. Targets in a tuple keep a batch in one piece.

        Raises:
            ValueError: no loss function, fewer batches than `self.batches`, or `fully_shard` has split the
                weights.
        """
        check_not_sharded_yet(self.masks.weights, "SNIP")
        if loss_fn is None:
            raise ValueError("SNIP needs a loss: initialize(batches, torch.nn.functional.cross_entropy)")
        used = 0

        def count_batches() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal used
            for batch in islice(batches, self.batches):
                used += 1
                yield batch

        scores = snip(self.model, self.masks.weights, count_batches(), loss_fn)
        if used < self.batches:
            raise ValueError(f"SNIP needs {self.batches} batches, got {used}: lower its batches")
        self.set_masks(self.select(scores))
        self._has_pruned = True
