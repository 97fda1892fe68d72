"""Inspection of a model by its sparsifier: counts of zeros, masks, a table, and the masks on a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from .batches import InputShape
from .checks import Ties, check_model
from .masks import MaskSet
from .project import project_
from .report import is_terminal, report
from .weights import NonzeroCounts

if TYPE_CHECKING:
    from .base import Sparsifier


class Inspection:
    """The part of a sparsifier that changes nothing in its own model."""

    model: nn.Module
    masks: MaskSet
    _nonzero: NonzeroCounts
    _ties: Ties | None

    def kept(self) -> dict[str, Tensor]:
        """Name -> mask of each prunable weight, True where it is on."""
        return self.masks.kept()

    def margins(self) -> dict[str, Tensor]:
        """Name -> how far each entry is above its threshold, of the weight's shape; {} without thresholds."""
        return {}

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, number of nonzero entries, total) of each prunable weight, at the time of the call.

        Counts are of entire weights where `fully_shard` splits them. Then every rank calls it; only after a
        step may one rank call it, because a weight that has changed since `after_step` or `set_masks` is
        counted by all ranks.

        Raises:
            RuntimeError: a weight is no longer a parameter of the model, or has no values.
        """
        weights = self.masks.weights
        check_model(self.model, weights, self._ties)
        for name, weight in weights.items():
            if any(p.is_meta for p in weight.parameters):
                raise RuntimeError(
                    f"{name} is on the meta device and has no values: call model.to_empty first"
                )
        for (name, weight), kept in zip(weights.items(), self._nonzero.read(weights.values()), strict=True):
            yield name, kept, weight.numel()

    def achieved_sparsity(self) -> float:
        """Fraction of zeros in all prunable weights of the model; biases and norm layers are not counted."""
        kept, total = self._kept_and_total()
        return 1 - kept / total

    def _kept_and_total(self) -> tuple[int, int]:
        counts = list(self.counts())
        return sum(kept for _, kept, _ in counts), sum(total for _, _, total in counts)

    def stats(self) -> dict[str, Any]:
        """Numbers for the epoch's record: here the overall sparsity and the kept count."""
        kept, total = self._kept_and_total()
        return {"sparsity": 1 - kept / total, "kept": kept}

    def report(self, input_shape: InputShape | None = None) -> str:
        """A table of the layers, see `pruning.report.report`; `print(sparsifier)` shows it too.

        Args:
            input_shape: see `pruning.cost.cost`, such as (1, 3, 224, 224); it adds FLOPs and bytes.
        """
        return report(cast("Sparsifier", self), input_shape)

    def __str__(self) -> str:
        own = cast("Sparsifier", self)
        return report(own, bold=is_terminal()) if "model" in self.__dict__ else repr(self)

    def project_(self, other_model: nn.Module) -> None:
        """Prune the same weights of another model of the same structure, see `pruning.project.project_`.

        Args:
            other_model: a model such as an average of the weights or a deployed copy; it is changed in place.

        Raises:
            ValueError: names or shapes of weights differ, or a weight cannot be masked.
        """
        project_(cast("Sparsifier", self), other_model)
