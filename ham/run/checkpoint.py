"""Checkpoints that survive a kill while they are written, and whose damage is detected."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ham.files import atomic_write, one_line

LAST, PREVIOUS = "last.pt", "previous.pt"
FORMAT = 2
"""Version of the state's layout."""

_DIGEST_BYTES = hashlib.sha256().digest_size


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message is one line and says what is left."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as last.pt; the checkpoint before it becomes previous.pt.

    The file is torch's own format with its SHA-256 behind it. It is written atomically, so that at any moment
    one of the two files is an undamaged checkpoint.

    Raises:
        CheckpointError: it could not be written (a full disk, say); the last good one is untouched.
    """

    def write(file: BinaryIO) -> None:
        hashing = _Hashing(file)
        torch.save({"format": FORMAT, **state}, hashing)
        file.write(hashing.digest())

    try:
        atomic_write(folder / LAST, write, previous=folder / PREVIOUS)
    except (OSError, RuntimeError) as error:
        kept = any((folder / name).exists() for name in (LAST, PREVIOUS))
        rest = "the last good one is kept" if kept else "none was written before"
        raise CheckpointError(f"cannot write a checkpoint in {folder}: {_reason(error)}; {rest}") from error


def load(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest undamaged checkpoint, on the CPU; None without any.

    Args:
        folder: the run directory.
        warn: called with a line about each damaged file.

    Raises:
        CheckpointError: all checkpoints are damaged, or the newest undamaged one is of an earlier version.
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
        if state.pop("format", 1) != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} is of an earlier version: finish the run with that version, or start it "
                "again with resume=false"
            )
        for bad in damaged:  # the next save would keep it in place of the good one
            os.replace(bad, bad.with_suffix(".damaged"))
        return state
    if found:
        raise CheckpointError(f"every checkpoint in {folder} is damaged: start again with resume=false")
    return None


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    payload, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"checkpoint {path} is damaged (truncated or altered)")
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _reason(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return one_line(error)


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._hash.digest()
