"""The masks of a sparsifier on another model of the same structure: an average of weights, a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .prunable import weight_locations
from .weights import ComputedWeight, Weight, weight_of

if TYPE_CHECKING:
    from .base import Sparsifier

_WRAPPER = "module."  # of AveragedModel, timm's ModelEmaV3 and other modules that hold a model


@torch.no_grad()
def project_(sparsifier: Sparsifier, other_model: nn.Module) -> None:
    """Prune in another model what the sparsifier prunes in its own, by name.

    An average of weights over steps with different masks has more weights than the model: call this after
    the last update of the average. Frozen weights are pruned too. A product's pruned entry is (1, 0), as in
    the sparsifier's model.

    With STR, a copy that has thresholds of its own is not changed, since these prune it. In a plain copy, the
    entries are pruned that are zero in the sparsifier's model, below its thresholds.

    Args:
        sparsifier: an attached sparsifier; without masks, as in a dense phase, nothing is pruned.
        other_model: a model of the same structure, with the same or another parametrization, on any device;
            also inside DistributedDataParallel, `torch.compile`, `torch.optim.swa_utils.AveragedModel` or
            another wrapper that calls its model `module`. Nothing is changed if an error is raised.

    Raises:
        TypeError: `other_model` is not a module.
        ValueError: names or shapes of weights differ, or a parametrization other than m * w computes a
            weight.
    """
    if not isinstance(other_model, nn.Module):
        raise TypeError(f"project_ needs a torch.nn.Module, got {type(other_model).__name__}")
    kept = sparsifier.kept()
    own = sparsifier.masks.weights
    others = _weights_by_name(other_model, set(kept))
    pairs = []
    for alias, name in _aliases(sparsifier):
        other = others.get(alias)
        _check(alias, own[name], other)
        if other is not None and not isinstance(other, ComputedWeight):
            pairs.append((other, kept[name]))
    for other, mask in pairs:
        other.prune_(~mask.to(other.parameters[0].device))


def _check(name: str, own: Weight, other: Weight | None) -> None:
    """Raise ValueError unless the mask of `name` can be set on the other model's weight."""
    if other is None:
        raise ValueError(
            f"the other model has no weight {name}: project_ needs the structure and the names of the "
            "sparsifier's model"
        )
    if other.shape != own.shape:
        raise ValueError(
            f"{name} has the shape {tuple(other.shape)} in the other model and {tuple(own.shape)} in the "
            "sparsifier's: project_ needs equal shapes"
        )
    if isinstance(other, ComputedWeight) and not isinstance(own, ComputedWeight):
        raise ValueError(f"{name} in the other model: {other.no_mask_error()}")


def _aliases(sparsifier: Sparsifier) -> Iterator[tuple[str, str]]:
    """(name in the model, name of the mask): a weight of several layers has several, and one mask."""
    masked = {id(w.parameters[0]): name for name, w in sparsifier.masks.weights.items()}
    for alias, module, attribute in weight_locations(sparsifier.model, ["*"], all_names=True):
        first: tuple[Tensor, ...] = weight_of(module, attribute).parameters[:1]
        if first and id(first[0]) in masked:
            yield alias, masked[id(first[0])]


def _weights_by_name(model: nn.Module, names: set[str]) -> dict[str, Weight]:
    """Name -> weight of every parameter, without the prefix of a wrapper where `names` lack it."""
    locations = weight_locations(model, include=["*"], all_names=True)
    weights = {name: weight_of(module, attribute) for name, module, attribute in locations}
    while weights and not names <= weights.keys() and all(name.startswith(_WRAPPER) for name in weights):
        weights = {name.removeprefix(_WRAPPER): weight for name, weight in weights.items()}
    return weights
