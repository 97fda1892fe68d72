"""Makes one file operation fail: opening for writing, write, fsync, rename, delete, mkdir, chmod."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

NAMED = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "truncate", "chmod", "link")


class Faults:
    """Counts the file operations below a folder, and fails one of them.

    Args:
        folder: operations on other files pass; fsync and write on a descriptor count everywhere.
        number: of the operation that fails, from 0.
        fail: called there; it raises, or ends the process.
    """

    def __init__(self, folder: Path, number: int, fail: Callable[[], None]) -> None:
        self.folder, self.number, self.fail = str(folder), number, fail
        self.operations: list[str] = []

    @property
    def failed(self) -> bool:
        """Was the operation reached?"""
        return len(self.operations) > self.number

    def passes(self, name: str, path: Any = None) -> None:
        """Count an operation, or fail it."""
        if path is None or str(path).startswith(self.folder):
            self.operations.append(name)
            if len(self.operations) == self.number + 1:
                self.fail()


class _File:
    """A file open for writing. A write that fails has written one half before."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, data: Any) -> int:
        try:
            self._faults.passes("write")
        except BaseException:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def inject(folder: Path, number: int, fail: Callable[[], None]) -> Iterator[Faults]:
    """Fail the operation of this number in the block."""
    faults = Faults(folder, number, fail)
    real_open, real_os_open, fsync = builtins.open, os.open, os.fsync

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        writes = isinstance(file, str | Path) and not set(mode).isdisjoint("wax+")
        if writes:
            faults.passes(f"open {mode}", file)
        result = real_open(file, mode, *args, **options)
        return _File(result, faults) if writes and str(file).startswith(faults.folder) else result

    def os_opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            faults.passes("open", path)
        return real_os_open(path, flags, *args, **options)

    def synced(descriptor: int) -> None:
        faults.passes("fsync")
        fsync(descriptor)

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(path: Any, *args: Any, **options: Any) -> Any:
            faults.passes(name, None if options.get("dir_fd") is not None else path)
            return original(path, *args, **options)

        return call

    wrappers = {name: counted(name) for name in NAMED}
    with (
        patch.object(builtins, "open", opened),
        patch.object(io, "open", opened),
        patch.multiple(os, open=os_opened, fsync=synced, **wrappers),
    ):
        yield faults


def error(number: int) -> Callable[[], None]:
    """Raise an OSError as the system does, which may name no file."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def each_fault(folder: Path, act: Callable[[], object], numbers: list[int]) -> Iterator[Exception | None]:
    """Call `act` again and again, each time with a fault at the next of its operations; yield its error.

    It is None where `act` succeeds nevertheless, as when a folder cannot be created that exists.

    Args:
        folder: see `Faults`.
        act: what writes.
        numbers: errno values, taken in turn.
    """
    for position in count():
        with inject(folder, position, error(numbers[position % len(numbers)])) as faults:
            try:
                act()
                raised = None
            except Exception as problem:
                raised = problem
        if not faults.failed:
            assert raised is None and position, raised
            return
        yield raised


def each_kill(folder: Path, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` in forked children; each ends without a word at the next of its operations."""
    for position in count():
        child = os.fork()
        if child == 0:
            status = 70
            try:
                with inject(folder, position, lambda: os._exit(9)):
                    act()
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield
        if status != 9:
            assert status == 0 and position, status
            return
