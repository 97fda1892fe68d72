"""SHA256SUMS of a data folder, in the format of `sha256sum`: written by prepare_data.py, checked at load."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ham.files import atomic_write_text, open_binary, read_bytes, read_text

SUMS = "SHA256SUMS"


def sha256(content: bytes) -> str:
    """The digest as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """The digest of a file of any size. Raises OSError where it cannot be read."""
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """SHA-256, in hexadecimal, of nested tuples, lists and dicts of tensors, arrays and plain values."""
    hashed = hashlib.sha256()
    _add(hashed, content)
    return hashed.hexdigest()


def _add(hashed: Any, content: Any) -> None:
    if isinstance(content, Mapping):
        content = tuple(content.items())
    if isinstance(content, tuple | list):
        hashed.update(f"{len(content)} items\0".encode())
        for item in content:
            _add(hashed, item)
        return
    if isinstance(content, Tensor):
        content = content.detach().cpu().numpy()
    if isinstance(content, np.ndarray):
        hashed.update(f"{content.dtype} {content.shape}\0".encode())
        hashed.update(np.ascontiguousarray(content).view(np.uint8).reshape(-1).data)
    else:
        hashed.update(f"{content!r}\0".encode())


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of these files of `folder`; `sha256sum -c SHA256SUMS` there verifies them."""
    lines = [f"{sha256(read_bytes(folder / name))}  {name}\n" for name in names]
    atomic_write_text(folder / SUMS, "".join(lines))


def read_sums(folder: Path) -> dict[str, str] | None:
    """File name -> digest, or None if the folder has no SHA256SUMS.

    Raises:
        ValueError: the file cannot be read or has another format.
    """
    if not (folder / SUMS).is_file():
        return None
    try:
        text = read_text(folder / SUMS, encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{folder / SUMS} cannot be read ({error.strerror})") from None
    lines = [line.split() for line in text.splitlines()]
    if not all(len(line) == 2 and len(line[0]) == 64 for line in lines):
        raise ValueError(f"{folder / SUMS} is damaged")
    return {name.removeprefix("*"): digest for digest, name in lines}
