"""Rank and world size, collectives, and failure handling.

Everything here does nothing in a single process.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from ham.agreement import Identity, PeerLostError, RanksDisagreeError, StartError, compare
from ham.errors import one_line

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

_LONGEST = 160  # characters of another program's error


@dataclass(frozen=True)
class World:
    """This process among those that train together; `local_rank` counts within its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main_process(self) -> bool:
        """True on rank 0, which writes files, prints and decides for all ranks."""
        return self.rank == 0


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Rank and world size from torchrun's environment variables, else from those of a SLURM step (srun).

    Without either, and in a batch script outside of srun, this is a single process.

    Raises:
        StartError: a variable is not a number, or the rank does not exist.
    """
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if names[0] in environment and names[1] in environment:
            texts = [environment.get(name, "0") for name in names]
            if not all(text.isdecimal() for text in texts) or int(texts[0]) >= int(texts[1]):
                values = " ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
                raise StartError(f"{values} are not a valid rank: unset them, or start with torchrun or srun")
            return World(*map(int, texts))
    return World()


@torch.no_grad()
def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0, such as BatchNorm's running statistics."""
    for buffer in model.buffers():
        broadcast(buffer)


def broadcast(tensor: Tensor) -> None:
    """Give every rank the tensor of rank 0, in place."""
    if world().size > 1:
        distributed.broadcast(tensor, src=0)


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


def check_ranks_agree(state: Identity, cure: str) -> None:
    """Compare plain values over the ranks.

    Args:
        state: key -> plain value.
        cure: the end of the error's line.

    Raises:
        RanksDisagreeError: a rank differs; raised on every rank.
    """
    if world().size > 1 and (error := difference_over_ranks(state, cure)):
        raise RanksDisagreeError(error)


def difference_over_ranks(own: Identity, cure: str) -> str | None:
    """The error line where the ranks' values differ, see `compare`; None if they are equal."""
    identities: list[Identity] = [{} for _ in range(world().size)]
    distributed.all_gather_object(identities, own)
    return compare(identities, cure)


def raise_on_all_ranks(fn: Callable[[], T]) -> T:
    """Call `fn`; if it raises on any rank, every rank raises the error of the first such rank."""
    if world().size == 1:
        return fn()
    result, failure = None, None
    try:
        result = fn()
    except Exception as error:
        failure = _portable(error)
    failures: list[Exception | None] = [None] * world().size
    distributed.all_gather_object(failures, failure)
    for error in failures:
        if error is not None:
            raise shared(error)
    return result


def shared(error: E) -> E:
    """Mark an error that every rank raises: only rank 0 prints it."""
    error.shared = True
    return error


def _portable(error: Exception) -> Exception:
    """The error, or its class and message where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # safe: these bytes only; some classes fail at loading
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")
    return error


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


def from_rank_zero(fn: Callable[[], T]) -> T:
    """Call `fn` on rank 0; its result, a plain value, on every rank. All raise its error."""
    return broadcast_object(on_rank_zero(fn))


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
            f"rank {me.rank} of {me.size} lost another rank {where()} ({reason(error)}): it died or hangs: "
            "see the end of its log, then start the same command again to resume"
        ) from error


def reason(error: Exception) -> str:
    """The first sentence of an error of torch's collectives, without paths of its source files."""
    text = re.sub(r"^.*Got the following error when running the callback: (\w+: )?", "", one_line(error))
    text = re.sub(r"^\[[^\]]*\] *", "", text)
    text = re.sub(r"( in: *)?\[?/[^\s\]]+\.(cc|cpp|cu|h|hpp):\d+\]?", "", text)
    text = re.split(r"\. (?=[A-Z])", text)[0]
    if len(text) > _LONGEST:
        text = text[: _LONGEST + 1].rpartition(" ")[0] or text[:_LONGEST]
    return text.rstrip(".,: ")
