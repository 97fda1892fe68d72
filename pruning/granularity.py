"""The units in which weights are pruned: single weights, N of every M, or blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .topk import check_no_nan, kept_count
from .units import Element, Granularity, Layout


class Block(Granularity):
    """Blocks of `rows` outputs by `columns` inputs.

    In a convolution every kernel position has blocks of its own, so that a block has as many weights in each
    layer and counts over all layers together are exact.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.text, self.unit_size = f"{rows}x{columns}", rows * columns
        self.requirement = f"outputs divisible by {rows} and inputs by {columns}"

    def fits(self, weight: Layout) -> bool:
        """Return True if blocks tile the weight, and each group of a convolution."""
        if len(weight.shape) < 2 or weight.input_dim not in (0, 1):  # not across matrices of fused experts
            return False
        outputs, inputs = weight.group_matrix
        return outputs % self.rows == 0 and inputs % self.columns == 0

    def reduce(self, scores: Tensor, weight: Layout) -> Tensor:
        """Sums [out / rows, in / columns, *kernel] over the blocks."""
        tiles = weight.rows_first(scores).unflatten(1, (-1, self.columns)).unflatten(0, (-1, self.rows))
        return tiles.sum(dim=(1, 3))

    def expand(self, units: Tensor, weight: Layout) -> Tensor:
        """Every weight of a block gets the block's value."""
        return weight.restore(
            units.repeat_interleave(self.rows, dim=0).repeat_interleave(self.columns, dim=1)
        )


class NofM(Granularity):
    """N of every M weights that follow each other along the input dimension (Mishra et al., 2021).

    A layer with all groups at N of M has sparsity 1 - N / M, as sparse tensor cores need it. At lower
    sparsities, on the way of a schedule, every group keeps at least its N best.
    """

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m
        self.text = f"{n}:{m}"
        self.requirement = f"inputs divisible by {m}"

    def check(self, weights: Mapping[str, Layout], sparsity: float) -> None:
        """Raise ValueError where inputs are not divisible by M, or the sparsity is not 1 - N / M."""
        if not self._is_final(sparsity):
            raise ValueError(
                f"granularity {self.text} prunes {1 - self.n / self.m:.6g} of each layer, got "
                f"sparsity={sparsity:g}: set sparsity={1 - self.n / self.m:.6g}"
            )
        super().check(weights, sparsity)

    def _is_final(self, sparsity: float) -> bool:
        return abs(sparsity - (1 - self.n / self.m)) < 1e-6

    def fits(self, weight: Layout) -> bool:
        """Return True if groups of M tile the input dimension, and each group of a convolution."""
        if len(weight.shape) < 2 or weight.input_dim is None:
            return False
        return weight.group_matrix[1] % self.m == 0

    def reduce(self, scores: Tensor, weight: Layout) -> Tensor:
        """The scores themselves: a group's members are chosen one by one."""
        return scores

    def expand(self, units: Tensor, weight: Layout) -> Tensor:
        """The mask itself."""
        return units

    def kept_count(self, total: int, sparsity: float) -> int:
        """N / M of `total` at the sparsity 1 - N / M; the usual count on the way to it."""
        return total * self.n // self.m if self._is_final(sparsity) else kept_count(total, sparsity)

    def select(
        self, scores: Mapping[str, Tensor], kept: int | Mapping[str, int], weights: Mapping[str, Layout]
    ) -> dict[str, Tensor]:
        """The N largest scores of every group, and the largest of the others up to `kept`."""
        check_no_nan(scores)
        best = {name: self.best(score, self.n, weights[name]) for name, score in scores.items()}
        least = {name: score.numel() * self.n // self.m for name, score in scores.items()}
        if kept == (sum(least.values()) if isinstance(kept, int) else least):
            return best
        if sum(least.values()) > kept if isinstance(kept, int) else any(kept[n] < least[n] for n in least):
            raise ValueError(
                f"granularity {self.text} keeps {self.n} of every {self.m} weights in each layer"
            )
        ranked = {name: score.masked_fill(best[name], torch.inf) for name, score in scores.items()}
        return super().select(ranked, kept, weights)

    def draw(
        self, kept: Mapping[str, int], weights: Mapping[str, Layout], *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """N random positions in every group."""
        for name, weight in weights.items():
            total = torch.Size(weight.shape).numel()
            if abs(kept[name] - total * self.n // self.m) > 1 + 2e-6 * total:
                raise ValueError(
                    f"granularity {self.text} keeps the same fraction of each layer: use allocation=uniform"
                )
        masks = {}
        for name, weight in weights.items():
            draw = torch.rand(weight.shape, generator=generator, dtype=torch.float64, device="cpu")
            masks[name] = self.best(draw, self.n, weight)
        return masks

    def grow(self, scores: Tensor, survivors: Tensor, count: int, weight: Layout, name: str = "") -> Tensor:
        """In every group as many as it lacks to N, by the largest scores; `count` follows from that."""
        check_no_nan({name: scores})
        missing = self.n - self._groups(survivors, weight).sum(dim=-1, keepdim=True)
        return self.best(scores.masked_fill(survivors, -1.0), missing, weight)

    def best(self, scores: Tensor, count: int | Tensor, weight: Layout) -> Tensor:
        """The mask of the `count` largest scores in every group of M; ties go to the lower index."""
        groups = self._groups(scores, weight)
        order = groups.argsort(dim=-1, descending=True, stable=True)
        mask = torch.zeros_like(groups, dtype=torch.bool)
        mask.scatter_(-1, order, torch.arange(self.m, device=scores.device).expand_as(order) < count)
        return weight.restore(mask.flatten(-2).movedim(-1, 1))

    def _groups(self, tensor: Tensor, weight: Layout) -> Tensor:
        """A view [out, *kernel, in / M, M]."""
        return weight.rows_first(tensor).movedim(1, -1).unflatten(-1, (-1, self.m))


def granularity(text: str) -> Granularity:
    """The granularity of "element", "N:M" such as "2:4", or "RxC" such as "4x4" (outputs by inputs).

    Raises:
        ValueError: the text is none of these.
    """
    if text == "element":
        return Element()
    if match := re.fullmatch(r"([1-9]\d*)([:x])([1-9]\d*)", str(text)):
        first, second = int(match[1]), int(match[3])
        if match[2] == "x":
            return Block(first, second)
        if first < second:
            return NofM(first, second)
    raise ValueError(
        f'granularity must be "element", "N:M" with N < M such as "2:4", or "RxC" such as "4x4", got {text!r}'
    )
