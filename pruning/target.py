"""Base class of the methods that prune to a target sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor
from torch.optim import Optimizer

from .base import Sparsifier
from .checks import check_units_not_sharded, warn_at_caller
from .deprecation import warn_renamed
from .granularity import granularity
from .options import check_sparsity
from .units import Granularity, layouts

_NEAR = 0.01


@dataclass
class TargetSparsity(Sparsifier):
    """Base class of the methods that prune to a target.

    Args:
        sparsity: fraction of the prunable weights to prune, in [0, 1).
        exclude: globs of weights to keep dense, such as "conv1.weight"; the target does not count them.
        granularity: unit of pruning: "element", N of every M inputs such as "2:4", which fixes each layer's
            sparsity, or blocks of outputs by inputs such as "4x4".
    """

    sparsity: float
    exclude: list[str] = field(default_factory=list)
    granularity: str = field(default="element", kw_only=True)

    elementwise: ClassVar[bool] = False
    """True if the method can prune only single weights."""

    def __post_init__(self) -> None:
        """Raise ValueError on a target outside [0, 1), or on an unsupported granularity."""
        check_sparsity(self.sparsity)
        super().__post_init__()
        granularity(self.granularity)  # its own checks
        if self.elementwise and self.granularity != "element":
            raise ValueError(f'{type(self).__name__} supports only granularity="element"')

    @property
    def units(self) -> Granularity:
        """The unit of pruning, from `granularity`."""
        return granularity(self.granularity)

    def on_end(self) -> None:
        """Warn where the model is more than a point below the target; called after the last step.

        Every layer may be two weights below the target, because counts are rounded. A second call, as by both
        the hook and the loop, does not repeat the warning.
        """
        super().on_end()
        self._warn_of_missed_target()

    def _warn_of_missed_target(self) -> None:
        weights = self.masks.weights.values()
        total = sum(weight.numel() for weight in weights)
        achieved, target = self.achieved_sparsity(), 1 - self.kept_target() / total
        misses = achieved < target - max(_NEAR, 2 * len(weights) / total)  # layers round up by themselves
        if misses and (achieved, self.step) != self._warned_of:
            self._warned_of = achieved, self.step
            warn_at_caller(
                f"{type(self).__name__} ended at sparsity {achieved:.4f}, but its target is {target:.4f}: "
                f"{self._cure_of_missed_target()}"
            )

    def _cure_of_missed_target(self) -> str:
        if not self._was_stepped:
            return "no optimizer step was counted; call sparsifier.hook(optimizer) before the first one"
        if self.steps_per_epoch is not None and 0 < self.step < self.total_steps:
            return f"training ended after {self.step} of the {self.total_steps} steps passed to attach()"
        after_step = "" if self._hook is not None else ", and call after_step after each step"
        return f"train for the epochs and steps passed to attach(){after_step}"

    def _set_layer_sparsities(self, sparsities: Mapping[str, float]) -> None:
        if not isinstance(sparsities, Mapping):
            raise ValueError(f"sparsities must be a dict, glob -> sparsity, got {type(sparsities).__name__}")
        names = list(self.masks.weights)
        for pattern, sparsity in sparsities.items():
            check_sparsity(sparsity)
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"the glob {pattern!r} of sparsities matches no prunable weight")
        matches = {n: next((s for p, s in sparsities.items() if fnmatchcase(n, p)), None) for n in names}
        self.layer_sparsities = {name: s for name, s in matches.items() if s is not None}
        if self.elementwise and sparsities:
            raise ValueError(f"{type(self).__name__} has one target for all layers: omit sparsities")
        if len(self.layer_sparsities) == len(names):
            raise ValueError("sparsities matches every weight; at least one must be left for `sparsity`")

    def _check_layers(self) -> None:
        self.units.check(layouts(self.masks.weights), self.sparsity)
        if self.granularity != "element":
            check_units_not_sharded(self.model, self.granularity)
        for name, sparsity in self.layer_sparsities.items():
            self.units.check(layouts({name: self.masks.weights[name]}), sparsity)

    def select(
        self, scores: Mapping[str, Tensor], counts: Mapping[str, int] | int | None = None
    ) -> dict[str, Tensor]:
        """Masks that keep the weights of largest score, in units of the granularity.

        Args:
            scores: one score per weight, in its shape; a unit's score is the sum over its weights. Ties go to
                the weight that comes first.
            counts: number of weights to keep, by name of each layer, or of all layers together; None:
                `kept_target()` of all layers together.

        Returns:
            Name -> bool, True where a weight is kept.
        """
        kept = self.kept_target() if counts is None else counts
        layout_of = layouts(self.masks.weights)
        if not self.layer_sparsities or not isinstance(kept, int):
            return self.units.select(scores, kept, layout_of)
        counts, rest = self._split(kept)
        masks = self.units.select({name: scores[name] for name in counts}, counts, layout_of)
        others = {name: score for name, score in scores.items() if name not in counts}
        masks |= self.units.select(others, rest, layout_of)
        return {name: masks[name] for name in scores}

    def _split(self, kept: int) -> tuple[dict[str, int], int]:
        """The kept counts of layers with their own sparsity, and of the others together, of `kept` weights.

        Until a schedule ends, the former have pruned the same fraction of their final number as all layers
        together, rounded up. So no count is below its final value. A remainder that exceeds the size of the
        others goes to the former.
        """
        sizes = {name: weight.numel() for name, weight in self.masks.weights.items()}
        total, final, unit = sum(sizes.values()), self.kept_per_layer(), self.units.unit_size
        pruned = total - self.kept_target()
        now = min(total - kept, pruned)
        counts = {}
        for name in self.layer_sparsities:
            so_far = -(-now * (sizes[name] - final[name]) // pruned) if pruned else 0
            counts[name] = (sizes[name] - so_far) // unit * unit
        size_of_others = total - sum(sizes[name] for name in counts)
        for name in counts:
            surplus = max(kept - sum(counts.values()) - size_of_others, 0) // unit * unit
            counts[name] += min(surplus, sizes[name] - counts[name])
        return counts, min(max(kept - sum(counts.values()), 0), size_of_others)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each prunable weight."""
        return {name: tuple(weight.shape) for name, weight in self.masks.weights.items()}

    def kept_target(self, sparsity: float | None = None, progress: float | None = None) -> int:
        """Number of weights to keep over all layers together, at the target or at another sparsity.

        Args:
            sparsity: sparsity of the layers without their own sparsity; None: the target.
            progress: progress of the other layers towards their own sparsity, in [0, 1]; None: that of
                `sparsity` towards the target.
        """
        sizes = {name: w.numel() for name, w in self.masks.weights.items()}
        fraction = self.sparsity if sparsity is None else sparsity
        own = self._layer_fractions(fraction, progress)
        others = sum(size for name, size in sizes.items() if name not in own)
        kept = self.units.kept_count(others, fraction)
        return kept + sum(self.units.kept_count(sizes[name], s) for name, s in own.items())

    def kept_per_layer(self, sparsity: float | None = None, progress: float | None = None) -> dict[str, int]:
        """Name -> number of weights to keep in each layer; the arguments are those of `kept_target`."""
        fraction = self.sparsity if sparsity is None else sparsity
        own = self._layer_fractions(fraction, progress)
        return {
            name: self.units.kept_count(w.numel(), own.get(name, fraction))
            for name, w in self.masks.weights.items()
        }

    def _layer_fractions(self, fraction: float, progress: float | None) -> dict[str, float]:
        """`layer_sparsities` times the progress."""
        if progress is None:
            progress = min(fraction / self.sparsity, 1.0) if self.sparsity else 1.0
        return {name: progress * s for name, s in self.layer_sparsities.items()}

    def _target(self) -> str:
        return f"{type(self).__name__}(sparsity={self.sparsity:g}, granularity={self.granularity})"

    def _options(self) -> dict[str, str]:
        own = ", ".join(f"{name}: {sparsity:g}" for name, sparsity in self.layer_sparsities.items())
        return {**super()._options(), "sparsities": f"{{{own}}}"}

    def _set_masks(self, masks: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> None:
        """Deprecated: `set_masks`."""
        warn_renamed("_set_masks", "set_masks")
        self.set_masks(masks, optimizer)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Deprecated: `shapes`."""
        warn_renamed("_shapes", "shapes")
        return self.shapes()

    def _kept_target(self) -> int:
        """Deprecated: `kept_target`."""
        warn_renamed("_kept_target", "kept_target")
        return self.kept_target()
