"""Checks that the ranks of a run have equal configurations, code, versions and devices; later states."""

from __future__ import annotations

import hashlib
import io
import platform
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ham import distributed, process_group
from ham.agreement import Identity, PeerLostError
from ham.files import ROOT, atomic_write, read_bytes
from ham.tasks import Task

from .config import Config, ConfigError, load
from .config.config_hash import NOT_HASHED, flatten, is_within, to_plain
from .state import Run

_COMPARED = ("resume", "compute.device")  # not part of the hash, and yet the same on all ranks
_CHUNK = 2**26  # bytes that are sent at once: each part has the timeout for itself
_CONFIG_ERROR_TIMEOUT = 60.0  # seconds that a rank without a configuration waits for the others


def load_on_all_ranks(overrides: list[str]) -> Config:
    """The configuration of a command line, after the ranks have connected; all have the same command line.

    Raises:
        ConfigError: the command line is wrong.
        PeerLostError: not all ranks arrived in time.
        StartError: they have different configurations, seeds, code, versions or devices.
    """
    if distributed.world().size == 1:
        return load(overrides)
    try:
        cfg = load(overrides)
    except ConfigError as error:
        with suppress(PeerLostError):  # they are not connected
            process_group.init_distributed({"error": str(error)}, _CONFIG_ERROR_TIMEOUT)
        raise
    process_group.init_distributed(identity(cfg), cfg.compute.timeout)
    return cfg


def identity(cfg: Config) -> Identity:
    """Start values of a run, equal on all ranks, as plain values."""
    options = {
        key: value
        for key, value in flatten(to_plain(cfg))
        if key in _COMPARED or not is_within(key, NOT_HASHED)
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "code": code_digest()}
    return options | versions | {"GPUs": torch.cuda.is_available()}


def code_digest() -> str:
    """SHA-256, in part, of the files that decide the result of a run."""
    files = [ROOT / "train.py"]
    for folder, pattern in (("ham", "*.py"), ("pruning", "*.py"), ("configs", "*.yaml")):
        files += sorted((ROOT / folder).rglob(pattern))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(read_bytes(path)).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def check_data(task: Task) -> None:
    """Compare the data of all ranks. Raises RanksDisagreeError."""
    digest = task.data_digest  # computed here, and not in the first step that saves a checkpoint
    distributed.check_ranks_agree({"data": digest[:12]}, "(SHA-256): give all ranks the same data set")


def check_run(run: Run) -> None:
    """Compare steps, weights, optimizers and masks of all ranks. Raises RanksDisagreeError."""
    if distributed.world().size > 1:
        state = {"steps per epoch": run.task.steps_per_epoch, **run.shared_state()}
        check_states(state, f"in epoch {run.epoch + 1}, step {run.step}")


def check_states(state: dict[str, Any], where: str) -> None:
    """Compare nested states of all ranks bit by bit; a collective.

    Args:
        state: nested dictionary of plain values and tensors.
        where: place in the training, for the error.

    Raises:
        RanksDisagreeError: states differ, for example where processors of two kinds round differently.
    """
    if distributed.world().size > 1:
        cure = "start the same command again to resume from the last checkpoint, on nodes of one kind"
        distributed.check_ranks_agree(checksums(state), f"{where} (CRC-32): {cure}")


def checksums(state: dict[str, Any]) -> Identity:
    """Dotted name -> CRC-32 of each tensor and plain value of a nested state."""
    return {name: _checksum(value) for name, value in _leaves(state)}


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _checksum(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{zlib.crc32(repr(value).encode()):08x}"
    flat = value.detach().cpu().contiguous().flatten()
    return f"{zlib.crc32(flat.view(torch.uint8).numpy()):08x}"


def send_state(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rank 0's checkpoint, on every rank: the other ranks need not see the file."""
    if distributed.world().size == 1:
        return state
    buffer = io.BytesIO()
    if distributed.world().is_main_process and state is not None:
        torch.save(state, buffer)
    size = distributed.broadcast_object(buffer.tell())
    if not size:
        return None
    content = torch.frombuffer(bytearray(buffer.getvalue() or bytes(size)), dtype=torch.uint8)
    for part in content.split(_CHUNK):
        distributed.broadcast(part)
    if distributed.world().is_main_process:
        return state
    return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)


def send_folder(folder: Path) -> None:
    """Give every rank the files of rank 0's folder that it does not have, or has with another content."""
    if distributed.world().size == 1:
        return
    digests = distributed.from_rank_zero(
        lambda: {path.name: _digest(path) for path in sorted(folder.iterdir())}
    )
    for name, digest in digests.items():
        path = folder / name
        if not distributed.all_reduce_or(int(_digest(path) != digest)):
            continue
        content = distributed.from_rank_zero(partial(read_bytes, path))
        for rank in range(1, distributed.world().size):  # in turn: ranks of one node share its folder
            distributed.raise_on_all_ranks(partial(_receive, path, content, digest, rank))


def _receive(path: Path, content: bytes, digest: str, rank: int) -> None:
    """Write a file on one rank, unless it has this content there."""
    if distributed.world().rank == rank and _digest(path) != digest:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: file.write(content))


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest() if path.is_file() else ""
