"""Tar archives, read such that a damaged or incomplete one is noticed."""

from __future__ import annotations

import contextlib
import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ham.files import open_binary

_BLOCK = 512
_CHUNK_BYTES = 2**20


@contextlib.contextmanager
def read_to_end(path: Path) -> Iterator[tarfile.TarFile]:
    """A .tar.gz, whose checksum is compared when the block is left: tarfile stops before it.

    Raises:
        tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile: the archive is damaged or incomplete.
        OSError: the file cannot be read.
    """
    with open_binary(path) as packed, gzip.open(packed) as file:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            yield archive
        while file.read(_CHUNK_BYTES):
            pass


def members(file: BinaryIO, start: int) -> Iterator[tarfile.TarInfo]:
    """Files in the .tar that starts at byte `start` of `file`; their offsets are relative to `file`.

    Raises:
        tarfile.TarError: a header is damaged, or the end is missing. tarfile takes the former for the end.
    """
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        yield from (member for member in archive if member.isfile())
        file.seek(archive.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"no valid header at byte {archive.offset:,}")
