"""Collectives over the ranks of torch.distributed: averaged gradients and the check of equal masks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed

from .shards import is_sharded

_ODD = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio's 64 bits, signed


def is_distributed() -> bool:
    """Return True if this process belongs to a group of two or more ranks."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of the ranks' tensors, the same on each of them; the tensor itself in a single process.

    A DTensor is returned unchanged: `fully_shard` averages gradients itself.
    """
    if not is_distributed() or is_sharded(tensor):
        return tensor
    total = tensor.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total.div_(distributed.get_world_size())


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """One int64 over the positions of True in boolean tensors; equal for different ones only by chance."""
    total = None
    for tensor in tensors:
        bits = tensor.contiguous().flatten().to(torch.int64)
        positions = torch.arange(1, len(bits) + 1, device=bits.device).mul_(_ODD)
        positions ^= positions >> 29
        own = (bits * positions.mul_(_ODD)).sum()
        total = own if total is None else total.mul(_ODD).add(own.to(total.device))
    return torch.zeros((), dtype=torch.int64, device="cpu") if total is None else total


def assert_equal_across_ranks(
    tensors: Iterable[Tensor], what: str, *, device: torch.device | None = None
) -> None:
    """Raise RuntimeError on every rank unless all ranks hold the same boolean tensors.

    Args:
        tensors: boolean tensors that are not split over ranks.
        what: name of the tensors, for the error.
        device: device on which the ranks communicate; None: that of the tensors.
    """
    if not is_distributed():
        return
    own = checksum(tensors)
    own = own if device is None else own.to(device)
    extremes = torch.stack([own, ~own])  # the minimum of ~x is ~(the maximum of x)
    distributed.all_reduce(extremes, op=distributed.ReduceOp.MIN)
    if int(extremes[0]) != ~int(extremes[1]):
        raise RuntimeError(
            f"{what} differ between ranks: give every rank the same seed and weights, and average gradients"
        )
