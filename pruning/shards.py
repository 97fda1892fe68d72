"""Weights that FSDP2's `fully_shard` splits over ranks (torch's DTensor): parts, and sums over all parts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Split:
    """How the rows of a tensor are split: in chunks of equal size, in the order of the ranks.

    Attributes:
        group: the ranks that hold parts of it, a torch.distributed process group.
        rank: rank of this process in the group.
        size: number of ranks in the group.
    """

    group: Any
    rank: int
    size: int


def is_sharded(tensor: Tensor) -> bool:
    """Return True for a DTensor."""
    return hasattr(tensor, "to_local")


def may_be_sharded() -> bool:
    """Return False if no tensor of this process can be a DTensor, without looking at the tensors."""
    return "torch.distributed.tensor" in sys.modules and distributed.is_initialized()


def local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor, in the same memory, detached; other tensors are returned unchanged."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def full(tensor: Any) -> Tensor:
    """The gathered DTensor, a collective of all ranks; other tensors are returned unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def split_of(tensor: Any) -> Split | None:
    """How a tensor is split; None where every rank holds all of it.

    Raises:
        ValueError: the tensor is not split along its first dimension over one dimension of the device mesh.
    """
    if not is_sharded(tensor):
        return None
    from torch.distributed.tensor import Shard

    split_by = [i for i, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if not split_by:
        return None
    if len(split_by) > 1 or type(placement := tensor.placements[split_by[0]]) is not Shard or placement.dim:
        raise ValueError(
            f"a weight of {list(tensor.shape)} has the placements {tuple(tensor.placements)}: masks need "
            "weights that only fully_shard splits, along their first dimension"
        )
    mesh, axis = tensor.device_mesh, split_by[0]
    return Split(mesh.get_group(axis), mesh.get_local_rank(axis), mesh.size(axis))


def sharded_like(part: Tensor, reference: Any) -> Tensor:
    """The DTensor with the layout of `reference` whose part on this rank is `part`."""
    from torch.distributed.tensor import DTensor

    layout = dict(shape=reference.shape, stride=reference.stride())
    return DTensor.from_local(part, reference.device_mesh, reference.placements, run_check=False, **layout)


def place_like(tensor: Any, reference: Any) -> Tensor:
    """The tensor in the layout of another one of its shape: cut to this rank's part, or gathered.

    Args:
        tensor: an entire tensor, the same on every rank, or a DTensor.
        reference: a plain tensor or a DTensor.

    Returns:
        The tensor itself if the layouts agree. Every rank must call this where a DTensor is gathered.
    """
    if not is_sharded(reference):
        return full(tensor)
    if (
        is_sharded(tensor)
        and tensor.placements == reference.placements
        and tensor.device_mesh == reference.device_mesh
    ):
        return tensor
    gathered, split = full(tensor), split_of(reference)
    if split is not None:
        rows = -(-gathered.shape[0] // split.size)
        first = min(split.rank * rows, gathered.shape[0])
        gathered = gathered.narrow(0, first, min(rows, gathered.shape[0] - first))
    return sharded_like(gathered.to(reference.device), reference)


@torch.no_grad()
def sum_over_parts(values: Iterable[Tensor], of: Iterable[Tensor]) -> list[Tensor]:
    """Each 0-dim value summed over the ranks that hold the other parts of its tensor.

    Args:
        values: one value for each tensor of `of`, computed from this rank's part.
        of: tensors; the value of a tensor that is not split is returned unchanged.
    """
    result = list(values)
    members: dict[Any, list[int]] = {}
    for i, tensor in enumerate(of):
        if (split := split_of(tensor)) is not None:
            members.setdefault(split.group, []).append(i)
    for group, indices in members.items():
        device = result[indices[0]].device
        sums = torch.stack([result[i].to(device) for i in indices])
        distributed.all_reduce(sums, group=group)
        for i, total in zip(indices, sums.unbind(), strict=True):
            result[i] = total
    return result


def count_nonzero(tensors: Sequence[Tensor]) -> list[int]:
    """Number of nonzero entries of each tensor, over all ranks; one host sync per device."""
    counts = sum_over_parts((local(t).count_nonzero() for t in tensors), tensors)
    return as_numbers(counts)


def as_numbers(values: Sequence[Tensor]) -> list[int]:
    """The values of 0-dim integer tensors; one host sync per device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        by_device.setdefault(value.device, []).append(i)
    numbers = [0] * len(values)
    for indices in by_device.values():
        for i, number in zip(indices, torch.stack([values[i] for i in indices]).tolist(), strict=True):
            numbers[i] = number
    return numbers


def reshard_(model: nn.Module) -> None:
    """Let the modules of `fully_shard` hold shards again after a forward pass has left all weights gathered.

    Raises:
        ValueError: the model is wrapped in FullyShardedDataParallel (FSDP1).
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported here: that takes seconds
    if fsdp is None or not distributed.is_initialized():
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
        elif isinstance(module, fsdp.FullyShardedDataParallel):
            raise ValueError(
                "FullyShardedDataParallel flattens weights, which cannot be masked: use fully_shard (FSDP2)"
            )
