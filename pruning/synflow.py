"""SynFlow: masks from the synaptic flow of the network, without data (Tanaka et al., 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .at_initialization import AtInitialization
from .base import register
from .batches import check_pair, each_input, map_inputs
from .checks import check_not_sharded_yet, check_real
from .options import check_positive_integer
from .scores import synflow_masks


@register("synflow")
@dataclass
class SynFlow(AtInitialization):
    """Keep the weights with the largest synaptic flow, pruned in steps without data (Tanaka et al., 2020).

    Args:
        sparsity: fraction of all prunable weights to prune, by one threshold for all layers.
        exclude: globs of weights to keep dense.
        granularity: "element", N:M or blocks; a block's score is the sum of its weights' scores.
        iterations: number of steps; the density after step k is density^(k / iterations).
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        check_positive_integer("iterations", self.iterations)

    def initialize(self, batches: Iterable[Any] = (), loss_fn: Callable[..., Tensor] | None = None) -> None:
        """Prune; only the shape of the first input is used.

        Raises:
            ValueError: `batches` is empty, its inputs are integers, a weight is complex, or `fully_shard` has
                split the weights.
        """
        check_not_sharded_yet(self.masks.weights, "SynFlow")
        check_real(self.masks.weights, "SynFlow")
        first = next(iter(batches), None)
        if first is None:
            raise ValueError("SynFlow needs one batch for the shape of the inputs: initialize(batches)")
        inputs, _ = check_pair(first)
        unfit = [x for x in each_input(inputs) if not (isinstance(x, Tensor) and x.is_floating_point())]
        if unfit:
            kind = unfit[0].dtype if isinstance(unfit[0], Tensor) else type(unfit[0]).__name__
            raise ValueError(
                "SynFlow feeds ones through the network and needs floating-point inputs, got "
                f"{kind}: choose SNIP or RandomPruning"
            )
        shape = map_inputs(lambda x: (1, *x.shape[1:]), inputs)
        total = sum(w.numel() for w in self.masks.weights.values())
        schedule = [
            round(total * (self.kept_target() / total) ** (k / self.iterations))
            for k in range(1, self.iterations + 1)
        ]
        self.set_masks(synflow_masks(self.model, self.masks.weights, shape, schedule, self.select))
        self._has_pruned = True
