"""Atomic writes, locks and one-line errors, shared by runs, reports and sweeps. No torch."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""

RESULTS = ROOT / "results"
"""Committed records, tables, figures and theory data."""

_LOCK_SECONDS = 0.3


def atomic_write(path: Path, write: Callable[[BinaryIO], object], previous: Path | None = None) -> None:
    """Replace a file so that a reader, or a crash at any moment, finds the old content or the new.

    Args:
        path: the file.
        write: gets a temporary file in the same folder, which is then synced and renamed.
        previous: where the old file is kept; without it the old file is overwritten. A crash between the
            two renames leaves the old content under this name alone.

    Raises:
        OSError: the file could not be written; the old one is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write` of UTF-8 text."""
    atomic_write(path, lambda file: file.write(text.encode()))


def atomic_write_json(path: Path, content: Any, indent: int = 2) -> None:
    """`atomic_write` of JSON, with a newline at its end."""
    atomic_write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing, incomplete or holds something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def short_path(path: Path) -> Path:
    """A path as printed: relative to the repository where it is inside."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path) -> TextIO:
    """Lock a file for this process until the returned handle is closed, or the process ends.

    A moment is waited for processes that only ask whether the file is locked, see `is_locked`.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be opened.
    """
    lock = open(path, "w")  # noqa: SIM115 - the caller holds it
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= deadline:
                lock.close()
                raise
            time.sleep(0.02)


def is_locked(path: Path) -> bool:
    """Does a process on this machine hold the lock `path`?"""
    try:
        with path.open() as lock:  # closing it releases the shared lock
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file is missing, or this file system has no locks
        return False
    return False


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its class name."""
    text = getattr(error, "strerror", None) or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
