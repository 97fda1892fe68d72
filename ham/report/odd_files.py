"""Reads files that others wrote: an invalid file or folder is reported in one line with the reason."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ham.errors import one_line, printable
from ham.files import NotRegularError, open_binary

from .scales import FOLDERS
from .spec import PlanError

LARGEST = 2**22
"""Bytes of a summary or record, which has some thousand."""

LARGEST_METRICS = 2**26
"""Bytes of a metrics.jsonl."""

AGAIN = "move it away and run it again"
"""The cure for a finished run: neither train.py nor sweep.py trains a run whose directory has a summary."""


class InvalidRecord(Exception):
    """A summary or file that cannot be a record; the message is one printable line with the cure."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def read_limited(path: Path, largest: int = LARGEST) -> bytes:
    """The content of a file. Raises InvalidRecord unless it is a readable, regular file of this size."""
    try:
        with open_binary(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest:
                raise InvalidRecord(f"{path.name} has {size} bytes, more than {largest}: {AGAIN}")
            return file.read()
    except (IsADirectoryError, NotRegularError):
        raise InvalidRecord(f"{path.name} is not a regular file: remove it") from None
    except OSError as error:
        raise InvalidRecord(f"{path.name} cannot be read ({one_line(error)}): check the file") from None


def parse_json(content: bytes) -> Any:
    """The JSON value in a file. Raises InvalidRecord, also for a key that an object has twice."""
    try:
        return json.loads(content.decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else error
        cure = "remove it, then run or collect it again"
        raise InvalidRecord(
            f"it cannot be read, its JSON is incomplete or invalid ({problem}): {cure}"
        ) from None


def read_json(path: Path) -> Any:
    """The JSON value of a file. Raises InvalidRecord."""
    return parse_json(read_limited(path))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return content


def find_files(folder: Path, is_match: Callable[[Path], bool]) -> tuple[list[Path], list[str]]:
    """The files below a folder that `is_match` accepts, sorted, and a line for each unreadable folder.

    Links to folders are followed after real folders, and each folder is searched once: a
    link to a folder that was searched adds nothing, and a loop of links ends. A run directory, seed<k>, is
    not searched below its own files.
    """
    files: list[Path] = []
    problems: list[str] = []
    searched: set[tuple[int, int]] = set()
    real, links = [folder], []
    while real or links:
        current = real.pop() if real else links.pop(0)
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in searched:
                continue
            searched.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(printable(f"{current}: it cannot be read ({one_line(error)}): check the folder"))
            continue
        for path, entry in ((current / entry.name, entry) for entry in entries):
            if is_match(path):
                files.append(path)
            elif current.name.startswith("seed"):
                continue
            elif entry.is_dir(follow_symlinks=False):
                real.append(path)
            elif entry.is_symlink() and not path.is_file():
                links.append(path)
    return sorted(files), problems


def check_results(folder: Path, *, is_read: bool = True) -> None:
    """Raise PlanError, with the cure, unless the folder of `--results` can hold the folders of records.

    A folder without them, of which everything that is written would be empty, is a line on stderr if the
    command only reads it.
    """
    check_folder("--results", folder)
    if any((folder / name).is_dir() for name in (*FOLDERS, "theory")):
        return
    if any(any(folder.glob(f"{pattern}seed*.json")) for pattern in ("", "*/", "*/*/")):
        raise PlanError(f"--results {printable(folder)} holds records itself: give the folder above it")
    if (folder / "results").is_dir():
        raise PlanError(f"--results {printable(folder)} has no records: give {printable(folder / 'results')}")
    if is_read:
        print(
            f"--results {printable(folder)} has no records yet: scripts/collect.py adds them", file=sys.stderr
        )


def check_folder(option: str, folder: Path) -> None:
    """Raise PlanError, with the cure, unless the folder that an option names can be read."""
    problem = _obstacle(folder)
    if not problem and not os.path.lexists(folder):
        problem = "it does not exist: check its name"
    if not problem and not os.access(folder, os.R_OK | os.X_OK):
        problem = "it cannot be read: change its permissions"
    if problem:
        raise PlanError(f"{option} {printable(folder)} is not a directory that can be read: {problem}")


def check_target(option: str, folder: Path) -> None:
    """Raise PlanError, with the cure, unless files can be written to the folder that an option names."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    problem = _obstacle(existing)
    if not problem and not os.access(existing, os.W_OK | os.X_OK):
        problem = "it cannot be written: give another folder"
    if problem:
        raise PlanError(f"{option} {printable(folder)} cannot be written: {printable(existing)}: {problem}")


def check_file_target(option: str, file: Path) -> None:
    """Raise PlanError, with the cure, unless a file can be written under the name that an option gives."""
    if not file.exists() or file.is_file():
        return check_target(option, file.parent)
    problem = "a folder" if file.is_dir() else "not a regular file"
    raise PlanError(
        f"{option} {printable(file)} cannot be written: it is {problem}: move it away or give another name"
    )


def _obstacle(folder: Path) -> str:
    """Why something that exists is not a folder; "" if it is one, or does not exist."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return "it is a link to nothing: remove it or give another folder" if folder.is_symlink() else ""
    except OSError as error:
        return f"it cannot be opened ({one_line(error)}): give another folder"
    return "" if stat.S_ISDIR(mode) else "it is a file: give a folder"
