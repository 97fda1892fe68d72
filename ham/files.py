"""Reading, atomic writes and locks, shared by runs, reports and sweeps. No torch."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .locks import hold_flock, is_locked, lock_file
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
    "delete_abandoned",
    "is_locked",
    "lock_file",
    "name_file",
    "open_binary",
    "open_text",
    "read_bytes",
    "read_json",
    "read_text",
    "short_path",
    "sync_folder",
    "temporary_files",
]


def atomic_write(
    path: Path,
    write: Callable[[BinaryIO], object],
    previous: Path | None = None,
    before_rename: Callable[[], object] | None = None,
) -> None:
    """Replace a file so that a reader, or a crash at any moment, finds the old content or the new.

    Several processes may write the same file: each has a temporary file of its own, and the last one counts.

    Args:
        path: the file.
        write: function that writes a temporary file in the same folder, which is then synced and renamed.
        previous: path that keeps the old file; without it the old file is overwritten. A crash between the
            two renames leaves the old content only under this name.
        before_rename: function called when the temporary file is complete; if it raises, nothing is replaced.

    Raises:
        OSError: the file could not be written; the old one is untouched.
    """
    with name_file(path):
        delete_abandoned(path)
        temporary, file = _open_temporary(path)
        try:
            with file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                if before_rename is not None:
                    before_rename()
                if previous is not None and os.path.lexists(path):
                    os.replace(path, previous)
                os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first error counts
                temporary.unlink()
            raise
        sync_folder(path.parent)


def _open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Create a temporary file for `path`; it holds flock, where there is one, until it is closed."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            file = open(temporary, "xb")  # noqa: SIM115  it follows no link, and is closed by the caller
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        try:
            if not hold_flock(file.fileno()) or os.fstat(file.fileno()).st_nlink:
                return temporary, file
        except BlockingIOError:  # another process is about to delete it as abandoned
            pass
        except BaseException:
            file.close()
            with suppress(OSError):
                temporary.unlink()
            raise
        file.close()


def temporary_files(path: Path) -> list[Path]:
    """The temporary files of `atomic_write` of this path that exist, also those of version 0.6."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}}\.)?tmp")
    try:
        return [path.with_name(name) for name in os.listdir(path.parent) if pattern.fullmatch(name)]
    except OSError:
        return []


def delete_abandoned(path: Path) -> None:
    """Delete the temporary files for `path` whose writers were killed: nobody holds flock on them."""
    for temporary in temporary_files(path):
        with suppress(OSError):  # a link, of another user, or this file system has no flock
            descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if hold_flock(descriptor):
                    temporary.unlink()
            finally:
                os.close(descriptor)


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
