"""Exact top-k selection with ties broken by position, also over tensors that are split over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import reduce
from math import ceil

import torch
from torch import Tensor, distributed

from .options import check_sparsity
from .shards import Split, count_nonzero, is_sharded, local, sharded_like, split_of

_DIGIT = 16  # bits of a key that one pass settles: its histogram has 512 KB
_SAMPLE = 1 << 16
_LONGEST_SORT = 1 << 28  # entries: sorting takes some 30 bytes for each


class NotFinite(ValueError):
    """Scores are nan: training has diverged."""


def kept_count(total: int, sparsity: float) -> int:
    """The largest number of weights to keep at `sparsity` or more: total - ceil(sparsity * total), exactly.

    The product is taken in exact decimal arithmetic, so that 0.9 of 100 keeps 10 and not 9.

    Raises:
        ValueError: sparsity outside [0, 1).
    """
    check_sparsity(sparsity)
    return total - ceil(Fraction(repr(float(sparsity))) * total)


def global_topk(scores: Mapping[str, Tensor], kept: int) -> dict[str, Tensor]:
    """Boolean masks, True at the `kept` largest scores over all tensors together.

    Args:
        scores: one tensor per weight, same shape as the weight, any finite values, one dtype and device.
            DTensors, of which each rank holds some rows, are searched on all ranks together.
        kept: number of entries to keep, exactly; ties go to the tensor that comes first, then to the lower
            index.

    Raises:
        ValueError: kept out of range, or not the same on every rank.
        NotFinite: a score is nan.
    """
    total = sum(s.numel() for s in scores.values())
    is_split = any(is_sharded(score) for score in scores.values())
    if is_split:
        check_same_count(scores.values(), kept)
    if not 0 <= kept <= total:
        raise ValueError(f"kept must be in [0, {total}], got {kept}")
    if is_split:
        check_no_nan(scores)
        return split_topk(scores, kept)
    flat = torch.cat([s.flatten() for s in scores.values()])
    if total and flat.max().isnan():
        check_no_nan(scores)
    keep = _largest(flat, kept) if kept > 0 else torch.zeros_like(flat, dtype=torch.bool)
    parts = keep.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def _largest(flat: Tensor, kept: int) -> Tensor:
    """True at the `kept` largest entries of a flat tensor without nan; ties go to the lower index."""
    # sorting needs no host sync, but takes several times as long on a CPU
    can_sort = flat.device.type != "cpu" and len(flat) <= _LONGEST_SORT
    return _by_sorting(flat, kept) if can_sort else _by_threshold(flat, kept)


def _by_threshold(flat: Tensor, kept: int) -> Tensor:
    threshold = kth_largest(flat, kept)
    keep = flat > threshold
    missing = kept - int(torch.count_nonzero(keep))
    keep[(flat == threshold).nonzero().flatten()[:missing]] = True
    return keep


def _by_sorting(flat: Tensor, kept: int) -> Tensor:
    values = flat + 0.0 if flat.is_floating_point() else flat  # -0.0 + 0.0 is 0.0
    order = values.sort(descending=True, stable=True).indices
    return torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order[:kept], True)


def check_no_nan(scores: Mapping[str, Tensor]) -> None:
    """Raise NotFinite, with the name of the layer, if a score is nan; on every rank if one rank has it."""
    counts = count_nonzero([score.isnan() for score in scores.values()])
    for name, count in zip(scores, counts, strict=True):
        if count:
            raise NotFinite(f"the scores of {name or 'a layer'} contain nan: did training diverge?")


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest entry of a flat tensor without nan, 1 <= k <= len(values), as a 0-dim tensor.

    In long tensors a sorted sample of every n-th entry brackets it, and only the entries in the bracket
    (about 3 %) are searched: three times faster than `torch.kthvalue` on 25 million entries, and bit-equal.
    """
    total = len(values)
    if total > _SAMPLE * 16:
        sample = values[:: total // _SAMPLE].sort(descending=True).values
        position, margin = k / total * len(sample), 8 * len(sample) ** 0.5
        first, last = int(position - margin), int(position + margin)
        high = sample[first] if first > 0 else sample.new_tensor(torch.inf)
        low = sample[last] if last < len(sample) else sample.new_tensor(-torch.inf)
        inside = values[(values >= low) & (values <= high)]
        above = int(torch.count_nonzero(values > high))
        if above < k <= above + len(inside):
            values, k = inside, k - above
    return values.topk(k, sorted=False).values.min()  # kthvalue takes quadratic time on sorted entries


def layerwise_topk(scores: Mapping[str, Tensor], kept: Mapping[str, int]) -> dict[str, Tensor]:
    """Boolean masks, True at the `kept[name]` largest scores of each tensor; ties go to the lower index."""
    return {name: global_topk({name: score}, kept[name])[name] for name, score in scores.items()}


def split_topk(scores: Mapping[str, Tensor], kept: int) -> dict[str, Tensor]:
    """`global_topk` of scores of which some are DTensors; masks have the layouts of the scores.

    Ties go to the tensor that comes first, then to the lower index of the tensor that is not split. Every
    rank calls it; two (float32) or four (float64) sums of histograms find the threshold, one all-gather the
    ties of lower ranks.

    Args:
        scores: scores without nan; those that are not split are the same on every rank.
        kept: number of entries to keep, at most the number of all scores.

    Raises:
        ValueError: the tensors are split in different ways, or not along their first dimension.
    """
    splits = [split_of(score) for score in scores.values()]
    split = _common(splits)
    keys = _sortable([local(score).detach().flatten() for score in scores.values()])
    masks = [torch.zeros_like(key, dtype=torch.bool) for key in keys]
    if kept > 0:
        counted = [key for key, own in zip(keys, splits, strict=True) if own is not None or split.rank == 0]
        counted = counted or [keys[0][:0]]
        threshold, missing = _kth_largest_key(torch.cat(counted), kept, split)
        tied = [key == threshold for key in keys]
        shares = _shares_of_ties(tied, [own is not None for own in splits], missing, split)
        for mask, key, ties, share in zip(masks, keys, tied, shares, strict=True):
            torch.gt(key, threshold, out=mask)
            mask[ties.nonzero().flatten()[:share]] = True
    result = {}
    for (name, score), mask in zip(scores.items(), masks, strict=True):
        part = mask.view(local(score).shape)
        result[name] = sharded_like(part, score) if is_sharded(score) else part
    return result


def check_same_count(scores: Iterable[Tensor], kept: int) -> None:
    """Raise ValueError on every rank unless all ranks keep the same number of weights.

    A user may have counted only one rank's part: int(dtensor.sum()) does.
    """
    scores = list(scores)
    split = _common([split_of(score) for score in scores])
    if split.group is None:
        return
    extremes = torch.tensor([kept, -kept], device=local(scores[0]).device)
    distributed.all_reduce(extremes, op=distributed.ReduceOp.MAX, group=split.group)
    largest, smallest = int(extremes[0]), -int(extremes[1])
    if smallest != largest:
        raise ValueError(
            f"`kept` differs between ranks ({smallest} to {largest}): count the entries of DTensors by "
            "pruning.shards.count_nonzero"
        )


def _common(splits: Sequence[Split | None]) -> Split:
    """The common split of all tensors; that of a single process if none is split."""
    different = {split for split in splits if split is not None}
    if len(different) > 1:
        raise ValueError(
            "the weights are sharded over different groups of ranks: call fully_shard with the same mesh, or "
            "prune layerwise"
        )
    return next(iter(different), Split(None, 0, 1))


def _sortable(parts: Sequence[Tensor]) -> list[Tensor]:
    """Integers that order as the values do: int32 for floats of up to 32 bits, else int64."""
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    if not dtype.is_floating_point:
        return [part.to(torch.int64) for part in parts]
    floats, integers = torch.float32, torch.int32
    if dtype == torch.float64:
        floats, integers = torch.float64, torch.int64
    keys = []
    for part in parts:
        bits = part.to(floats).add(0.0).view(integers)  # -0.0 + 0.0 is 0.0
        keys.append(torch.where(bits < 0, bits ^ torch.iinfo(integers).max, bits))
    return keys


def _kth_largest_key(keys: Tensor, k: int, split: Split) -> tuple[int, int]:
    """The k-th largest key of all ranks, and how many of the entries equal to it are among the k largest."""
    bits = torch.iinfo(keys.dtype).bits
    top = 1 << (_DIGIT - 1)
    threshold = 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        digits = (keys >> shift) & ((1 << _DIGIT) - 1)
        if shift == bits - _DIGIT:
            digits = digits ^ top  # negative keys come first
        histogram = torch.bincount(digits, minlength=1 << _DIGIT)
        if split.group is not None:
            distributed.all_reduce(histogram, group=split.group)
        down_to = histogram.flip(0).cumsum(0)
        position = int(torch.count_nonzero(down_to < k))
        k -= int(down_to[position - 1]) if position else 0
        digit = (1 << _DIGIT) - 1 - position
        keys, threshold = keys[digits == digit], (threshold << _DIGIT) | digit
    return threshold - (1 << (bits - 1)), k


def _shares_of_ties(
    tied: Sequence[Tensor], is_split: Sequence[bool], missing: int, split: Split
) -> list[int]:
    """Number of ties that this rank keeps of each tensor, if all ranks together keep `missing`."""
    own = torch.stack([ties.count_nonzero() for ties in tied])
    table = own.new_empty(split.size, len(tied))
    if split.group is None:
        table[0] = own
    else:
        distributed.all_gather(list(table.unbind()), own, group=split.group)
    counts = table.tolist()
    shares = []
    for i, parts in enumerate(is_split):
        before = sum(row[i] for row in counts[: split.rank]) if parts else 0
        total = sum(row[i] for row in counts) if parts else counts[split.rank][i]
        shares.append(min(max(missing - before, 0), counts[split.rank][i]))
        missing -= min(total, missing)
    return shares
