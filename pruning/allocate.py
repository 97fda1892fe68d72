"""Layer densities (uniform, ERK, balanced) and the exact counts that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, prod
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from .choice import Choice

Shapes = Mapping[str, tuple[int, ...]]
AllocationName = Literal["erk", "balanced", "uniform"]


class Allocation(Choice):
    """Layerwise densities of a sparse network."""

    erk = "erk"
    balanced = "balanced"
    uniform = "uniform"


if TYPE_CHECKING:  # a checker accepts strings; at run time a field's type must be the enum
    AllocationLike: TypeAlias = Allocation | AllocationName
else:
    AllocationLike = Allocation


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """The same density in every layer. Raises ValueError unless 0 < density <= 1."""
    _check(shapes, density)
    return dict.fromkeys(shapes, float(density))


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel densities: eps * sum(shape) / prod(shape), at most 1 (Evci et al., 2020).

    eps makes the density of all weights together `density`. While the largest density exceeds 1, the layers
    that have it become dense and eps is computed again for the others, as in google-research/rigl.

    Args:
        shapes: name -> shape of each weight.
        density: fraction to keep of all weights together, in (0, 1].

    Returns:
        Name -> density, in the order of `shapes`.

    Raises:
        ValueError: density out of range, or no shapes.
    """
    _check(shapes, density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / prod(shape) for name, shape in shapes.items()}
    pruned = {name: _floor((1 - density) * size) for name, size in sizes.items()}
    open_layers = list(shapes)
    eps = 0.0
    while open_layers:
        to_keep = sum(sizes[n] for n in open_layers) - sum(pruned.values())
        eps = max(to_keep, 0) / sum(raw[n] * sizes[n] for n in open_layers)
        largest = max(raw[n] for n in open_layers)
        if eps * largest <= 1:
            break
        open_layers = [n for n in open_layers if raw[n] < largest]
    return {name: eps * raw[name] if name in open_layers else 1.0 for name in shapes}


def balanced(shapes: Shapes, density: float) -> dict[str, float]:
    """The same number of kept weights in every layer; small layers stay dense (water-filling).

    Args:
        shapes: name -> shape of each weight.
        density: fraction to keep of all weights together, in (0, 1].

    Returns:
        Name -> density. The expected counts add up to density * total exactly.

    Raises:
        ValueError: density out of range, or no shapes.
    """
    _check(shapes, density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    remaining, layers = density * sum(sizes.values()), len(sizes)
    for size in sorted(sizes.values()):
        if size >= remaining / layers:
            break
        remaining, layers = remaining - size, layers - 1
    level = remaining / layers
    return {name: min(1.0, level / size) for name, size in sizes.items()}


DENSITIES = {Allocation.erk: erk, Allocation.balanced: balanced, Allocation.uniform: uniform}


def kept_counts(shapes: Shapes, sparsity: float, allocation: AllocationLike) -> dict[str, int]:
    """Number of weights to keep in each layer, N - floor((1 - density) N) as in google-research/rigl.

    Args:
        shapes: name -> shape of each weight.
        sparsity: fraction to prune of all weights together, in [0, 1).
        allocation: layer densities: "erk", "balanced" or "uniform".

    Returns:
        Name -> number of weights to keep.

    Raises:
        ValueError: sparsity out of range, no shapes, or an unknown allocation.
    """
    densities = DENSITIES[Allocation(allocation)](shapes, 1 - sparsity)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    return {name: size - _floor((1 - densities[name]) * size) for name, size in sizes.items()}


def random_masks(shapes: Shapes, kept: Mapping[str, int], *, generator: torch.Generator) -> dict[str, Tensor]:
    """Boolean CPU masks with exactly kept[name] entries True, drawn without replacement, layer by layer."""
    masks = {}
    for name, shape in shapes.items():
        mask = torch.zeros(prod(shape), dtype=torch.bool, device="cpu")
        mask[torch.randperm(len(mask), generator=generator, device="cpu")[: kept[name]]] = True
        masks[name] = mask.view(shape)
    return masks


def _floor(x: float) -> int:
    return floor(round(x, 6))  # 0.9 * 70 is 62.99... in binary fractions and must give 63


def _check(shapes: Shapes, density: float) -> None:
    if not 0 < density <= 1:
        hint = f"; did you mean {density / 100:g}?" if 1 < density <= 100 else ""
        raise ValueError(f"density must be in (0, 1], got {density:g}{hint}")
    if not shapes:
        raise ValueError("shapes is empty: pass name -> shape of each weight")
