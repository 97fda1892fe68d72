"""Checkpoints that survive a kill while they are written, and whose damage is detected."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ham.errors import one_line
from ham.files import atomic_write, open_binary, read_bytes
from ham.locks import is_folder_replaced, taken_by

from .config import ConfigError

LAST, PREVIOUS = "last.pt", "previous.pt"
SAVED = ".saved"
"""An empty file: a checkpoint was written, so that missing ones were deleted by somebody else."""
FORMAT = 2
"""Version of the state's layout."""

_DIGEST_BYTES = hashlib.sha256().digest_size
_CHUNK = 2**20
_OTHER_VERSION = "finish the run with that version, or start again with resume=false"


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the one-line message names the remaining checkpoint."""


def check_owner(folder: Path) -> None:
    """Raise CheckpointError if this process has lost the directory that it has locked.

    Another process has taken it over, or it was moved or deleted and another folder has its name.
    """
    if is_folder_replaced(folder / "lock"):
        raise CheckpointError(
            f"{folder} was replaced by another folder: this process ends and writes nothing more; put the "
            "old one back and start the same command again to resume, or start again with resume=false"
        )
    if other := taken_by(folder / "lock"):
        raise CheckpointError(
            f"{folder} was taken over by another process ({other}): this process ends and writes nothing "
            "more; if the other process is not yours, choose another runs_dir"
        )


def write_owned(
    folder: Path, path: Path, write: Callable[[BinaryIO], object], previous: Path | None = None
) -> None:
    """`atomic_write` of a file of the run in `folder`.

    Raises:
        OSError: it could not be written.
        CheckpointError: this process has lost the directory, perhaps while it wrote; nothing is replaced.
    """
    check_owner(folder)
    atomic_write(path, write, previous, before_rename=lambda: check_owner(folder))


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as last.pt; the checkpoint before it becomes previous.pt.

    The file is torch's own format with its SHA-256 behind it. It is written atomically, so that at any moment
    one of the two files is an undamaged checkpoint.

    Raises:
        CheckpointError: it could not be written (for example, a full disk); the last good one is kept. Or
            this process has lost the directory.
    """

    def write(file: BinaryIO) -> None:
        with ThreadPoolExecutor(1) as pool:
            hashing = _HashingFile(file, pool)
            torch.save({"format": FORMAT, **state}, hashing)
        file.write(hashing.digest())

    try:
        write_owned(folder, folder / LAST, write, previous=folder / PREVIOUS)
        mark_saved(folder)
    except (OSError, RuntimeError) as error:
        kept = any(os.path.lexists(folder / name) for name in (LAST, PREVIOUS))
        remaining = "the last good one is kept" if kept else "none was written before"
        raise CheckpointError(
            f"cannot write a checkpoint in {folder}: {_reason(error)}; {remaining}"
        ) from error


def mark_saved(folder: Path) -> None:
    """State that the run in this directory has a checkpoint."""
    try:
        os.utime(folder / SAVED, follow_symlinks=False)  # a policy deletes old files first
    except FileNotFoundError:
        with suppress(FileExistsError), open(folder / SAVED, "xb"):
            pass


def check_not_purged(folder: Path) -> None:
    """Raise ConfigError if a run has lost its checkpoints: it must not start over silently."""
    if not os.path.lexists(folder / SAVED):
        return
    reached = f"epoch {epoch} was reached" if (epoch := _epochs(folder)) else "a checkpoint was written"
    source = "metrics.jsonl" if epoch else SAVED
    raise ConfigError(
        f"{source} says that {reached}, but the checkpoints in {folder} are missing (purged?): restore "
        "them, or start again with resume=false"
    )


def load_last(folder: Path) -> dict[str, Any]:
    """The state in last.pt, on the CPU; the checkpoint before it is not tried.

    Raises:
        CheckpointError: it is missing or damaged, or of another version.
    """
    path = folder / LAST
    try:
        state = _read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)})") from None
    if state.pop("format", 1) != FORMAT:
        raise CheckpointError(f"{path} is of another version")
    return state


def load(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest undamaged checkpoint, on the CPU; None if none was written yet.

    Args:
        folder: the run directory.
        warn: function called with a line about each file that is damaged or cannot be read.

    Raises:
        CheckpointError: no checkpoint can be read, or the newest undamaged one is of another version.
        ConfigError: they were deleted.
    """
    paths = [folder / name for name in (LAST, PREVIOUS) if os.path.lexists(folder / name)]
    damaged: dict[Path, str] = {}
    for path in paths:
        try:
            state = _read(path)
        except CheckpointError as error:
            damaged[path] = str(error)
        except OSError as error:
            damaged[path] = f"cannot be read ({one_line(error)})"
        if path in damaged:
            warn(f"checkpoint {path} {damaged[path]}; trying the one before it")
            continue
        if state.pop("format", 1) != FORMAT:
            raise CheckpointError(f"checkpoint {path} is of another version: {_OTHER_VERSION}")
        for bad in damaged:  # the next save would keep it in place of the good one
            with suppress(OSError):  # in a read-only directory
                os.replace(bad, bad.with_suffix(".damaged"))
        return state
    if paths:
        others = [path.name for path in paths if not path.is_file()]
        cure = f"move {' and '.join(others)} away" if others else "start again with resume=false"
        reasons = "; ".join(f"{path.name} {reason}" for path, reason in damaged.items())
        raise CheckpointError(f"no checkpoint in {folder} can be read ({reasons}): {cure}")
    check_not_purged(folder)
    return None


@contextmanager
def explain_mismatch(folder: Path) -> Iterator[None]:
    """Turn the errors of objects that a state of another version does not fit into a CheckpointError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint in {folder} does not fit this version ({type(error).__name__}: "
            f"{one_line(error)}): {_OTHER_VERSION}"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    """The state in a file. Raises CheckpointError, whose message follows the path, or OSError."""
    if not path.is_file():
        raise CheckpointError("is not a file")
    with open_binary(path) as file:
        hashed, left = hashlib.sha256(), os.fstat(file.fileno()).st_size - _DIGEST_BYTES
        while left > 0 and (part := file.read(min(left, _CHUNK))):
            hashed.update(part)
            left -= len(part)
        if file.read() != hashed.digest():
            raise CheckpointError("is damaged (truncated or altered)")
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch raises several kinds
            raise CheckpointError("is damaged (it holds something else)") from error
    if not isinstance(state, dict):
        raise CheckpointError("is damaged (it holds something else)")
    return state


def _epochs(folder: Path) -> int:
    """The number of epochs in metrics.jsonl; 0 where it is missing or damaged."""
    try:
        return json.loads(read_bytes(folder / "metrics.jsonl").splitlines()[-1])["epoch"] + 1
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0


def _reason(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return one_line(error)


class _HashingFile:
    """A file that hashes what is written to it; large tensors in a thread, while the disk writes them."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._hash, self._pool = file, hashlib.sha256(), pool

    def write(self, data: bytes) -> int:
        if len(data) < _CHUNK:
            self._hash.update(data)
            return self._file.write(data)
        hashed = self._pool.submit(self._hash.update, data)
        try:
            return self._file.write(data)
        finally:
            hashed.result()

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._hash.digest()
