"""The masks of a finished run on newly drawn weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, ClassVar

from torch import Tensor

from .base import register
from .checks import warn_at_caller
from .export import load_masks
from .target import TargetSparsity
from .topk import global_topk, kept_count


@register("mask_from")
@dataclass
class MaskFrom(TargetSparsity):
    """The masks of a finished run on newly drawn weights (Table 10), set when the model is attached.

    The sparsity of masks found by thresholds (STR) differs slightly from its target: weights are removed or
    added, by their distance to their threshold, until it is exactly `sparsity`. Other masks are used as they
    are.

    Args:
        sparsity: fraction of the weights to prune; a hard mask must have it within half a percent.
        exclude: globs of weights to keep dense; the file must not contain them.
        granularity: "element" only; the masks in the file have their own structure.
        source: a file that `save_masks` wrote, or the folder of a masks.pt. In a configuration also the name
            of an experiment; then the run of the same seed is used.
        redraw: True to draw the initial weights from another random stream than the source run's.
    """

    source: str = ""
    redraw: bool = True

    elementwise: ClassVar[bool] = True
    _own_state: ClassVar[tuple[str, ...]] = ("origin",)
    tolerance: ClassVar[float] = 0.005
    largest_difference: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range, or without a source."""
        super().__post_init__()
        self.loaded: tuple[Any, Any, Any] | None = None  # what `load_masks` returned to another rank
        self.resumed = False  # True: the masks come by `load_state_dict`, and the source is not read
        if not isinstance(self.source, str | PathLike):
            raise ValueError(f"source must be a path or the name of an experiment, got {self.source!r}")
        self.source = fspath(self.source)
        if not self.source:
            raise ValueError("MaskFrom requires source=: the folder of a finished run, or its masks.pt")

    @property
    def redraws_weights(self) -> bool:
        """The field `redraw`."""
        return self.redraw

    @property
    def depends_on(self) -> str:
        """The source where it names an experiment; "" where it is a path, which has a slash."""
        return "" if "/" in self.source else self.source

    def resolve(self, folder_of: Callable[[str], str], *, resumed: bool) -> MaskFrom:
        """Take the masks from the run that `folder_of` names; a resumed run reads no source."""
        if resumed:
            resolved = replace(self)
            resolved.resumed = True
            return resolved
        return replace(self, source=folder_of(self.depends_on)) if self.depends_on else self

    def _on_attach(self) -> None:
        if self.resumed:
            return
        masks, margins, self.origin = self.loaded or load_masks(self.source)
        names = self.masks.weights.keys()
        if masks.keys() != names:
            different = sorted(masks.keys() ^ names)
            raise ValueError(
                f"the masks in {self.source} belong to another model: {len(different)} names differ, "
                f"such as {different[0]}"
            )
        if margins:
            self._warn_if_far(masks)
            total = sum(m.numel() for m in margins.values())
            masks = global_topk(margins, kept_count(total, self.sparsity))
        if abs(_sparsity(masks) - self.sparsity) > self.tolerance:
            raise ValueError(
                f"the masks in {self.source} have sparsity {_sparsity(masks):.4f}, not "
                f"{self.sparsity:g}: use that sparsity, or another source"
            )
        self.set_masks(masks)

    def _warn_if_far(self, masks: Mapping[str, Tensor]) -> None:
        """Warn where the sparsity of the masks is more than 0.05 away from the target."""
        actual = _sparsity(masks)
        if abs(actual - self.sparsity) > self.largest_difference:
            warn_at_caller(
                f"the masks in {self.source} have sparsity {actual:.4f} and are changed to {self.sparsity:g} "
                f"by the weights' distance to their threshold: use sparsity={actual:.4f} to keep them"
            )

    def stats(self) -> dict[str, Any]:
        """Adds the origin of the masks."""
        return {**super().stats(), "masks_from": self.origin}

    def state_dict(self) -> dict[str, Any]:
        """Adds the origin of the masks."""
        return {**super().state_dict(), "origin": self.origin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the masks and their origin."""
        super().load_state_dict(state)
        self.origin = state["origin"]


def _sparsity(masks: Mapping[str, Tensor]) -> float:
    """The fraction that the masks prune."""
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    return 1 - kept / sum(mask.numel() for mask in masks.values())
