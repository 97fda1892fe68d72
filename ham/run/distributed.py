"""One process per GPU: who this process is, what the ranks owe each other, and how they end together.

Everything here is a no-op in a single process.
"""

from __future__ import annotations

import atexit
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from .schema import ConfigError

T = TypeVar("T")


class RanksLost(Exception):
    """Another rank died or hangs, so a collective failed; the message names rank and step."""


@dataclass(frozen=True)
class World:
    """This process among those that train together; `local` counts within its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Does this rank write, print and decide for all?"""
        return self.rank == 0


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Who this process is by torchrun's variables, else by those of a SLURM step (srun), else alone.

    A batch script outside of srun is alone, however many tasks its job has.
    """
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank in environment and size in environment:
            return World(*(int(environment.get(name, 0)) for name in (rank, size, local)))
    return World()


def join(device: torch.device, timeout: float) -> None:
    """Meet the other ranks; once per process. nccl carries GPU tensors, gloo what the hosts agree on.

    Args:
        device: of this rank.
        timeout: seconds that a collective may take before it counts as hung.

    Raises:
        RanksLost: they did not all come.
    """
    me = world()
    if me.size == 1 or distributed.is_initialized():
        return
    for name, value in _meeting_point(os.environ).items():
        os.environ.setdefault(name, value)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(
            backend, rank=me.rank, world_size=me.size, timeout=timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError) as error:
        at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RanksLost(
            f"rank {me.rank} of {me.size} did not meet the others at {at} ({_reason(error)}): "
            "start all ranks by torchrun or srun, see README, Several GPUs"
        ) from error


def _meeting_point(environment: Mapping[str, str]) -> dict[str, str]:
    """Address of rank 0 and a port of this job's own, for a SLURM step; torchrun sets them itself."""
    alone = environment.get("SLURM_STEP_NUM_NODES", "1") == "1"  # then no name has to be resolved
    address = "127.0.0.1" if alone else first_node(environment["SLURM_STEP_NODELIST"])
    job = int(environment.get("SLURM_JOB_ID", 0))
    return {"MASTER_ADDR": address, "MASTER_PORT": str(20000 + job % 20000)}


def first_node(nodes: str) -> str:
    """First host of a SLURM node list: "a100-[003-006,010],b1" -> "a100-003"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes).group()
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def leave(status: int = 0) -> None:
    """Part from the other ranks in peace and end this process; does nothing where there are no others.

    Python is not taken down in the common way: DistributedDataParallel keeps gloo's threads alive, and one of
    them that frees a tensor meanwhile aborts a process that has done all its work.
    """
    if not distributed.is_initialized():
        return
    distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def gpu(me: World) -> torch.device:
    """The GPU of this rank. Raises ConfigError where the node has fewer GPUs than processes."""
    seen = torch.cuda.device_count()
    alone = seen == 1 and "SLURM_STEP_NUM_TASKS" in os.environ  # srun --gpus-per-task=1 shows each its own
    if me.local_rank >= seen and not alone:
        raise ConfigError(
            f"process {me.local_rank + 1} on this node finds {seen} GPUs: start one process per GPU"
        )
    return torch.device("cuda", 0 if alone else me.local_rank)


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model under DistributedDataParallel, or as it is in a single process.

    Buffers are not broadcast at every forward pass: only rank 0's running statistics matter, and only for
    tests and checkpoints (`share_buffers`).
    """
    if world().size == 1:
        return model
    wrapper = nn.parallel.DistributedDataParallel
    names = inspect.signature(wrapper).parameters
    once = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # torch < 2.15
    devices = [device] if device.type == "cuda" else None
    return wrapper(model, device_ids=devices, gradient_as_bucket_view=True, **{once: False})


@contextmanager
def averaging(network: nn.Module, wanted: bool) -> Iterator[None]:
    """Do backward passes in the block average gradients over the ranks?"""
    if wanted or world().size == 1:
        yield
    else:
        with _unwrapped(network).no_sync():
            yield


def _unwrapped(network: nn.Module) -> nn.parallel.DistributedDataParallel:
    return getattr(network, "_orig_mod", network)  # torch.compile's own wrapper


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0, such as BatchNorm's running statistics."""
    if world().size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def total(tensor: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if world().size > 1:
        distributed.all_reduce(tensor)
    return tensor


def stacked(tensor: Tensor) -> Tensor:
    """The ranks' tensors of one shape, on the CPU: [ranks, ...]."""
    tensor = tensor.cpu()
    if world().size == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(world().size)]
    distributed.all_gather(parts, tensor)
    return torch.stack(parts)


def any_rank(flags: int) -> int:
    """The bits that are set on any rank. The hosts alone talk: no GPU is waited for."""
    if world().size == 1:
        return flags
    agreed = torch.tensor(flags)
    distributed.all_reduce(agreed, op=distributed.ReduceOp.BOR)
    return int(agreed)


def together(act: Callable[[], T]) -> T:
    """What `act` returns here; if it fails on any rank, the first such failure is raised on all of them."""
    if world().size == 1:
        return act()
    result, failure = None, None
    try:
        result = act()
    except Exception as error:
        failure = error
    failures: list[Exception | None] = [None] * world().size
    distributed.all_gather_object(failures, failure)
    for error in failures:
        if error is not None:
            error.shared = True  # every rank raises it: one of them is enough to tell
            raise error
    return result


def led(act: Callable[[], T]) -> T | None:
    """What `act` returns on rank 0, None elsewhere; the others wait for it, and fail where it fails."""
    return together(act if world().leads else lambda: None)


def told(value: T) -> T:
    """Rank 0's plain value, on every rank."""
    if world().size == 1:
        return value
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def watched(where: Callable[[], str]) -> Iterator[None]:
    """Tell a collective that failed, because another rank died or hangs, from other errors.

    Raises:
        RanksLost: with this rank and `where()`, in one line.
    """
    try:
        yield
    except RuntimeError as error:
        me, text = world(), str(error)
        failed = isinstance(error, distributed.DistError) or re.search("gloo|NCCL|process group", text, re.I)
        if me.size == 1 or not failed:
            raise
        raise RanksLost(
            f"rank {me.rank} of {me.size} lost another rank {where()} ({_reason(error)}): it died or hangs, "
            "see its own last lines; start the same command again to go on"
        ) from error


def _reason(error: Exception) -> str:
    return re.sub(r"^\[[^\]]*\] *", "", str(error).strip().splitlines()[0])[:160].rstrip(". ")
