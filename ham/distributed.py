"""Rank and world size, collectives, and failure handling; one process per GPU.

Everything here does nothing in a single process.
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

from ham.files import one_line

T = TypeVar("T")


class PeerLostError(Exception):
    """A collective failed because another rank died or hangs; the message names rank and step."""


@dataclass(frozen=True)
class World:
    """This process among those that train together; `local_rank` counts within its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main_process(self) -> bool:
        """Is this rank 0, which writes files, prints and decides for all?"""
        return self.rank == 0


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Rank and world size from torchrun's variables, else from those of a SLURM step (srun).

    Without either, and in a batch script outside of srun, this is a single process.
    """
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank in environment and size in environment:
            return World(*(int(environment.get(name, 0)) for name in (rank, size, local)))
    return World()


def init_distributed(device: torch.device, timeout: float) -> None:
    """Initialize the process group (idempotent): nccl for CUDA tensors, gloo for CPU tensors.

    Args:
        device: of this rank.
        timeout: seconds after which a collective counts as hung.

    Raises:
        PeerLostError: not all ranks connected in time.
    """
    me = world()
    if me.size == 1 or distributed.is_initialized():
        return
    for name, value in _rendezvous_env(os.environ).items():
        os.environ.setdefault(name, value)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(
            backend, rank=me.rank, world_size=me.size, timeout=timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError) as error:
        at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise PeerLostError(
            f"rank {me.rank} of {me.size} could not connect to the others at {at} ({_reason(error)}): "
            "start all ranks with torchrun or srun, see docs/clusters.md"
        ) from error


def _rendezvous_env(environment: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT of a SLURM step; the port depends on the job. torchrun sets its own."""
    single_node = environment.get("SLURM_STEP_NUM_NODES", "1") == "1"  # no host name has to be resolved
    address = "127.0.0.1" if single_node else first_node(environment["SLURM_STEP_NODELIST"])
    job = int(environment.get("SLURM_JOB_ID", 0))
    return {"MASTER_ADDR": address, "MASTER_PORT": str(20000 + job % 20000)}


def first_node(nodes: str) -> str:
    """First host of a SLURM node list: "a100-[003-006,010],b1" -> "a100-003"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes).group()
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def shutdown(status: int = 0) -> None:
    """Destroy the process group and exit without running interpreter shutdown; does nothing without a group.

    DistributedDataParallel keeps gloo's threads alive. One of them that frees a tensor during interpreter
    shutdown aborts a process that has done all its work.
    """
    if not distributed.is_initialized():
        return
    distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def local_device(me: World) -> torch.device:
    """The GPU of this rank. Raises ValueError where the node has fewer GPUs than processes."""
    visible = torch.cuda.device_count()
    own = visible == 1 and "SLURM_STEP_NUM_TASKS" in os.environ  # srun --gpus-per-task=1 shows one to each
    if me.local_rank >= visible and not own:
        raise ValueError(
            f"process {me.local_rank + 1} on this node finds {visible} GPUs: start one process per GPU"
        )
    return torch.device("cuda", 0 if own else me.local_rank)


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """The model in DistributedDataParallel; in a single process the model itself.

    Buffers are not broadcast at every forward pass: only rank 0's running statistics are used, in evaluation
    and checkpoints (`broadcast_buffers`).
    """
    if world().size == 1:
        return model
    wrapper = nn.parallel.DistributedDataParallel
    names = inspect.signature(wrapper).parameters
    once = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # torch < 2.15
    devices = [device] if device.type == "cuda" else None
    return wrapper(model, device_ids=devices, gradient_as_bucket_view=True, **{once: False})


@contextmanager
def gradient_sync(network: nn.Module, enabled: bool) -> Iterator[None]:
    """With `enabled`, backward passes in the block average gradients over the ranks."""
    if enabled or world().size == 1:
        yield
    else:
        with _unwrapped(network).no_sync():
            yield


def _unwrapped(network: nn.Module) -> nn.parallel.DistributedDataParallel:
    return getattr(network, "_orig_mod", network)  # torch.compile's own wrapper


@torch.no_grad()
def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0, such as BatchNorm's running statistics."""
    if world().size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if world().size > 1:
        distributed.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, which have one shape, on the CPU: [world_size, ...]."""
    tensor = tensor.cpu()
    if world().size == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(world().size)]
    distributed.all_gather(parts, tensor)
    return torch.stack(parts)


def all_reduce_or(flags: int) -> int:
    """The bits that are set on any rank. A CPU collective: it does not wait for the GPU."""
    if world().size == 1:
        return flags
    agreed = torch.tensor(flags)
    distributed.all_reduce(agreed, op=distributed.ReduceOp.BOR)
    return int(agreed)


def raise_on_all_ranks(fn: Callable[[], T]) -> T:
    """Call `fn`; if it raises on any rank, every rank raises the error of the first such rank."""
    if world().size == 1:
        return fn()
    result, failure = None, None
    try:
        result = fn()
    except Exception as error:
        failure = error
    failures: list[Exception | None] = [None] * world().size
    distributed.all_gather_object(failures, failure)
    for error in failures:
        if error is not None:
            error.shared = True  # every rank raises it: rank 0 alone prints it
            raise error
    return result


def on_rank_zero(fn: Callable[[], T]) -> T | None:
    """Call `fn` on rank 0; its result there, None elsewhere. All ranks wait for it and raise its error."""
    return raise_on_all_ranks(fn if world().is_main_process else lambda: None)


def broadcast_object(value: T) -> T:
    """Rank 0's plain value, on every rank."""
    if world().size == 1:
        return value
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def translate_collective_errors(where: Callable[[], str]) -> Iterator[None]:
    """Turn the error of a collective that failed because another rank died or hangs into PeerLostError.

    Raises:
        PeerLostError: one line with this rank and `where()`.
    """
    try:
        yield
    except RuntimeError as error:
        me, text = world(), str(error)
        failed = isinstance(error, distributed.DistError) or re.search("gloo|NCCL|process group", text, re.I)
        if me.size == 1 or not failed:
            raise
        raise PeerLostError(
            f"rank {me.rank} of {me.size} lost another rank {where()} ({_reason(error)}): it died or hangs, "
            "see the end of its log; start the same command again to resume"
        ) from error


def _reason(error: Exception) -> str:
    return re.sub(r"^\[[^\]]*\] *", "", one_line(error))[:160].rstrip(". ")
