"""Scores of weights and exact top-k selection with ties broken by position."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor


def kept_count(total: int, sparsity: float) -> int:
    """The most weights to keep at `sparsity` or more: total - ceil(sparsity * total), exactly.

    The product is taken in exact decimal arithmetic, so that 0.9 of 100 keeps 10 and not 9.

    Raises:
        ValueError: sparsity outside [0, 1).
    """
    check_sparsity(sparsity)
    return total - ceil(Fraction(repr(float(sparsity))) * total)


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError, naming the likely intention, unless 0 <= sparsity < 1."""
    if not 0 <= sparsity < 1:
        hint = f"; did you mean {sparsity / 100:g}?" if 1 < sparsity < 100 else ""
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity:g}{hint}")


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|theta|, one score per weight."""
    return {name: w.detach().abs() for name, w in weights.items()}


def global_topk(scores: Mapping[str, Tensor], kept: int) -> dict[str, Tensor]:
    """Boolean masks, True at the `kept` largest scores over all tensors together.

    Args:
        scores: one tensor per weight, same shape as the weight, any finite values, one dtype and device.
        kept: how many to keep, exactly; ties go to the tensor that comes first, then to the lower index.

    Raises:
        ValueError: kept out of range, or a score that is not a number.
    """
    total = sum(s.numel() for s in scores.values())
    if not 0 <= kept <= total:
        raise ValueError(f"kept must be in [0, {total}], got {kept}")
    flat = torch.cat([s.flatten() for s in scores.values()])
    if total and flat.max().isnan():
        name = next(name for name, s in scores.items() if s.isnan().any())
        raise ValueError(f"the scores of {name} hold nan: did training diverge?")
    keep = torch.zeros_like(flat, dtype=torch.bool)
    if kept > 0:
        threshold = torch.kthvalue(flat, total - kept + 1).values
        torch.gt(flat, threshold, out=keep)
        missing = kept - int(torch.count_nonzero(keep))
        keep[(flat == threshold).nonzero().flatten()[:missing]] = True
    parts = keep.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def layerwise_topk(scores: Mapping[str, Tensor], kept: Mapping[str, int]) -> dict[str, Tensor]:
    """Boolean masks, True at the `kept[name]` largest scores of each tensor; ties go to the lower index."""
    return {name: global_topk({name: score}, kept[name])[name] for name, score in scores.items()}
