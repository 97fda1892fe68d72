"""Units of pruning: the interface of a granularity, and single weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .allocate import random_masks
from .topk import global_topk, kept_count, layerwise_topk

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where the rows and columns of a weight are.

    Args:
        shape: shape of the weight.
        input_dim: the dimension of the input features: 1 of Linear [out, in] and of convolutions
            [out, in, *kernel], 0 of weights stored [in, out]. The output dimension is the other one of the
            first two. None: unknown, as of fused experts that do not state it.
        groups: number of groups of a convolution; they follow each other along the weight's first dimension.
    """

    shape: Shape
    input_dim: int | None = 1
    groups: int = 1

    def rows_first(self, tensor: Tensor) -> Tensor:
        """A view [out, in, *kernel] of a tensor in the weight's shape."""
        return tensor if self.input_dim == 1 else tensor.movedim(self._known_input_dim(), 1)

    def restore(self, tensor: Tensor) -> Tensor:
        """A view in the weight's shape of a tensor [out, in, *kernel]."""
        return tensor if self.input_dim == 1 else tensor.movedim(1, self._known_input_dim())

    @property
    def matrix(self) -> Shape:
        """The shape [out, in, *kernel]."""
        rest = list(self.shape)
        inputs = rest.pop(self._known_input_dim())
        return (rest[0], inputs, *rest[1:])

    @property
    def group_matrix(self) -> tuple[int, int]:
        """Outputs and inputs of one group of a convolution; of the entire weight if there are no groups."""
        outputs, inputs = self.matrix[:2]
        return (outputs, inputs // self.groups) if self.input_dim == 0 else (outputs // self.groups, inputs)

    def _known_input_dim(self) -> int:
        if self.input_dim is None:
            raise ValueError(f"the input dimension of a weight {list(self.shape)} is unknown")
        return self.input_dim


def layouts(weights: Mapping[str, Any]) -> dict[str, Layout]:
    """Name -> layout of each prunable weight, which states `input_dim` and `groups` where these are not 1."""
    return {
        name: Layout(tuple(w.shape), getattr(w, "input_dim", 1), getattr(w, "groups", 1))
        for name, w in weights.items()
    }


def _describe(weight: Layout) -> str:
    """The shape, and other reasons why a weight does not fit, for errors."""
    if weight.input_dim is None:
        return f"{list(weight.shape)} whose input dimension is unknown (granularity=element needs none)"
    return f"{list(weight.shape)}" + (f" in {weight.groups} groups" if weight.groups > 1 else "")


class Granularity(ABC):
    """A unit of pruning. Scores are reduced to units; masks of units are expanded to weights.

    Attributes:
        text: the text that `granularity` parses.
        unit_size: number of weights in a unit.
        requirement: the requirement on a layer, for errors.
    """

    text: str
    unit_size: int = 1
    requirement: str = ""

    def check(self, weights: Mapping[str, Layout], sparsity: float) -> None:
        """Raise ValueError where a layer's shape or the sparsity does not fit; all such layers are named."""
        if unfit := [name for name, w in weights.items() if not self.fits(w)]:
            globs = ", ".join(f'"{name}"' for name in unfit)
            described = ", ".join(f"{name} {_describe(weights[name])}" for name in unfit)
            raise ValueError(
                f"granularity {self.text} needs {self.requirement}, unlike {described}: "
                f"keep them dense by exclude=[{globs}]"
            )

    def fits(self, weight: Layout) -> bool:
        """Return True if units tile the weight."""
        return True

    @abstractmethod
    def reduce(self, scores: Tensor, weight: Layout) -> Tensor:
        """Scores of units: the sum of their weights' scores."""

    @abstractmethod
    def expand(self, units: Tensor, weight: Layout) -> Tensor:
        """The mask of the weight, in its shape, of a bool mask of units."""

    def kept_count(self, total: int, sparsity: float) -> int:
        """Number of `total` weights that are kept at `sparsity`: the most in entire units, exactly."""
        return kept_count(total, sparsity) // self.unit_size * self.unit_size

    def select(
        self, scores: Mapping[str, Tensor], kept: int | Mapping[str, int], weights: Mapping[str, Layout]
    ) -> dict[str, Tensor]:
        """Boolean masks of the units with the largest scores.

        Args:
            scores: one tensor per weight and of its shape, any finite values, one dtype and device.
            kept: number of weights to keep, of all layers together or by name of each; weights that do not
                fill a unit are pruned.
            weights: name -> layout.

        Raises:
            ValueError: kept out of range.
            NotFinite: a score is nan.
        """
        units = {name: self.reduce(score, weights[name]) for name, score in scores.items()}
        if isinstance(kept, int):
            masks = global_topk(units, kept // self.unit_size)
        else:
            masks = layerwise_topk(units, {name: kept[name] // self.unit_size for name in units})
        return {name: self.expand(mask, weights[name]) for name, mask in masks.items()}

    def draw(
        self, kept: Mapping[str, int], weights: Mapping[str, Layout], *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Random masks on the CPU that keep kept[name] weights of each layer, in units."""
        empty = {name: torch.empty(w.shape, device="meta") for name, w in weights.items()}  # for its shape
        units = {name: tuple(self.reduce(empty[name], w).shape) for name, w in weights.items()}
        counts = {name: count // self.unit_size for name, count in kept.items()}
        masks = random_masks(units, counts, generator=generator)
        return {name: self.expand(mask, weights[name]) for name, mask in masks.items()}

    def grow(self, scores: Tensor, survivors: Tensor, count: int, weight: Layout, name: str = "") -> Tensor:
        """The mask of the units to add to `survivors`: those with the largest scores that are off.

        Args:
            scores: scores >= 0, of the weight's shape.
            survivors: bool, True where a weight stays on.
            count: number of units to add.
            weight: layout of the weight.
            name: name of the layer, for errors.
        """
        units = self.reduce(scores.masked_fill(survivors, -1.0), weight)
        return self.expand(global_topk({name: units}, count)[name], weight)


class Element(Granularity):
    """Every weight by itself."""

    text = "element"

    def reduce(self, scores: Tensor, weight: Layout) -> Tensor:
        """The scores themselves."""
        return scores

    def expand(self, units: Tensor, weight: Layout) -> Tensor:
        """The mask itself."""
        return units
