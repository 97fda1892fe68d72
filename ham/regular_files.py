"""Opening and reading regular files: a pipe or a device under a file's name is an OSError. No torch.

`open` waits for the writer of a pipe, and reads of /dev/zero never end.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader, BufferedWriter
from typing import BinaryIO, Literal, TextIO, overload

StrPath = str | os.PathLike[str]


class NotRegularError(OSError):
    """The path is a pipe, a socket or a device."""

    def __init__(self, path: StrPath) -> None:
        super().__init__(errno.EINVAL, "not a regular file", os.fspath(path))


def open_descriptor(path: StrPath, flags: int = os.O_RDONLY) -> int:
    """`os.open` of a regular file, or of a link to one, which does not wait.

    Raises:
        IsADirectoryError: it is a folder.
        NotRegularError: it is a pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    flags |= os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    except BlockingIOError:  # a file server must first get it back from another of its clients
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NotRegularError(path) from None
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a pipe without a reader
            raise NotRegularError(path) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        os.set_blocking(descriptor, True)
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise NotRegularError(path)


@overload
def open_binary(path: StrPath, mode: Literal["rb"] = "rb") -> BufferedReader: ...


@overload
def open_binary(path: StrPath, mode: Literal["ab", "wb"]) -> BufferedWriter: ...


def open_binary(path: StrPath, mode: Literal["rb", "ab", "wb"] = "rb") -> BinaryIO:
    """`open` of a regular file for bytes; see `open_descriptor`."""
    return open(path, mode, opener=open_descriptor)


def open_text(
    path: StrPath,
    mode: Literal["r", "a"] = "r",
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
    newline: str | None = None,
) -> TextIO:
    """`open` of a regular file for text; see `open_descriptor`. utf-8-sig skips a byte order mark."""
    return open(path, mode, encoding=encoding, errors=errors, newline=newline, opener=open_descriptor)


def read_bytes(path: StrPath) -> bytes:
    """The content of a regular file; see `open_descriptor`."""
    with open(path, "rb", buffering=0, opener=open_descriptor) as file:
        return file.readall()


def read_text(path: StrPath, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a regular file; see `open_text`."""
    with open_text(path, encoding=encoding, errors=errors) as file:
        return file.read()
