"""Reading, atomic writes, locks and one-line errors, shared by runs, reports and sweeps. No torch."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .locks import is_locked, lock_file
from .regular_files import NotRegularError, open_binary, open_text, read_bytes, read_text

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""

RESULTS = ROOT / "results"
"""Committed records, tables, figures and theory data."""

__all__ = [  # with names of locks.py and regular_files.py
    "RESULTS",
    "ROOT",
    "NotRegularError",
    "atomic_write",
    "atomic_write_json",
    "atomic_write_text",
    "is_locked",
    "lock_file",
    "name_file",
    "one_line",
    "open_binary",
    "open_text",
    "read_bytes",
    "read_json",
    "read_text",
    "short_path",
    "sync_folder",
]


def atomic_write(path: Path, write: Callable[[BinaryIO], object], previous: Path | None = None) -> None:
    """Replace a file so that a reader, or a crash at any moment, finds the old content or the new.

    Args:
        path: the file.
        write: function that writes a temporary file in the same folder, which is then synced and renamed.
        previous: path that keeps the old file; without it the old file is overwritten. A crash between the
            two renames leaves the old content only under this name.

    Raises:
        OSError: the file could not be written; the old one is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with name_file(path):
        temporary.unlink(missing_ok=True)  # of a killed process, or a link, which must not be followed
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and os.path.lexists(path):
                os.replace(path, previous)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first error counts
                temporary.unlink()
            raise
        sync_folder(path.parent)


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Add the path to an OSError of the block that names no file, as those of write, or two, as of rename."""
    try:
        yield
    except OSError as error:
        if error.filename2 is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        error.filename = error.filename or str(path)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write` of UTF-8 text."""
    atomic_write(path, lambda file: file.write(text.encode()))


def atomic_write_json(path: Path, content: Any, indent: int = 2) -> None:
    """`atomic_write` of JSON, with a newline at its end."""
    atomic_write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing, incomplete or holds something else."""
    try:
        content = json.loads(read_text(path))
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
    except OSError as error:
        if error.errno != errno.EINVAL:  # what file systems answer that cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its class name."""
    text = getattr(error, "strerror", None) or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
