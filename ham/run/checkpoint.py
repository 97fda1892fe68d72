"""Checkpoints that survive being killed while they are written, and that tell when they are damaged."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

LAST, PREVIOUS = "last.pt", "previous.pt"
_DIGEST_BYTES = hashlib.sha256().digest_size


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message is one line and says what remains."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as last.pt; the one before it becomes previous.pt.

    The file is torch's own format with its SHA-256 behind it. It is written under a temporary name, synced
    and renamed, so at any moment a whole checkpoint stands under one of the two names.

    Raises:
        CheckpointError: it could not be written (a full disk, say); the last good one is untouched.
    """
    temporary = folder / f"{LAST}.tmp"
    try:
        with open(temporary, "wb") as file:
            hashing = _Hashing(file)
            torch.save(state, hashing)
            file.write(hashing.digest())
            file.flush()
            os.fsync(file.fileno())
        if (folder / LAST).exists():
            os.replace(folder / LAST, folder / PREVIOUS)
        os.replace(temporary, folder / LAST)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        kept = "the last good one is kept" if (folder / LAST).exists() else "there is none yet"
        raise CheckpointError(f"cannot write a checkpoint in {folder}: {_reason(error)}; {kept}") from error


def load(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest undamaged checkpoint, on the CPU, or None where there is none.

    Args:
        folder: the run directory.
        warn: told about each damaged file.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    damaged = []
    for path in found:
        try:
            state = _read(path)
        except (CheckpointError, OSError) as error:
            warn(f"{error}; trying the one before it")
            damaged.append(path)
            continue
        for bad in damaged:  # the next save would put it in the good one's place
            os.replace(bad, bad.with_suffix(".damaged"))
        return state
    if found:
        raise CheckpointError(f"no checkpoint in {folder} is whole: start anew with resume=false")
    return None


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    payload, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"checkpoint {path} is damaged (truncated or altered)")
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


class _Hashing:
    """A file that hashes what goes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._hash.digest()
