"""Tensors that are computed once from raw files and kept beside them, with a checksum."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from torch import Tensor

from ham.errors import one_line
from ham.files import atomic_write, atomic_write_text, lock_file, read_text
from ham.locks import Lock

from ..base import DataError
from ..checksums import file_sha256

FOLDER = "ham_cache"
_FORMAT = 2  # counts up with every change of what is computed from the files
_POLL_SECONDS = 0.5
Tensors = dict[str, Tensor]


def cache_key(folder: Path, files: Sequence[str], packages: Sequence[str], name: str) -> str:
    """Identifies a set by its raw files and the versions of the packages that read them.

    Raises:
        DataError: a package is not installed, or a file cannot be read.
    """
    try:
        versions = [(package, metadata.version(package)) for package in packages]
    except metadata.PackageNotFoundError as error:
        raise DataError(f"{name} needs {error.name}: pip install -e '.[run,ogb]'") from error
    try:
        digests = [(file, file_sha256(folder / file)) for file in files]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({one_line(error)}): check the file") from error
    content = json.dumps([_FORMAT, name, versions, digests])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def load_or_build(path: Path, build: Callable[[], Tensors], log: Callable[[str], None], work: str) -> Tensors:
    """The tensors in the file `path`, which is written if it is missing or damaged.

    Processes that build at the same time wait for the first one. If the folder cannot be written to, the
    tensors are built again by every call.

    Args:
        path: path of a .safetensors file in the folder of a cache.
        build: function that computes the tensors.
        log: function that prints a line for the reader.
        work: verb phrase for the work of `build`, such as "reads the raw files", for the warning.
    """
    if (tensors := _load_or_log(path, log)) is not None:
        return tensors
    try:
        path.parent.mkdir(exist_ok=True)
        lock = _wait_for_lock(path.with_name(f"{path.name}.lock"), log)
    except OSError as error:
        log(f"cannot write the cache to {path.parent} ({one_line(error)}): every run {work} again")
        return build()
    with lock:
        if (tensors := _load_or_log(path, lambda line: None)) is not None:  # another process has written it
            return tensors
        tensors = build()
        try:
            _store(path, tensors)
            shutil.copymode(lock.name, path)  # safetensors makes files that others cannot read
        except OSError as error:
            log(f"cannot write the cache {path} ({one_line(error)}): every run {work} again")
    return tensors


def _wait_for_lock(path: Path, log: Callable[[str], None]) -> Lock:
    waits = False
    while True:
        try:
            return lock_file(path)
        except BlockingIOError:
            if not waits:
                log(f"waits for the process that writes {path.with_suffix('')}")
            waits = True
            time.sleep(_POLL_SECONDS)


def _load_or_log(path: Path, log: Callable[[str], None]) -> Tensors | None:
    try:
        return load(path)
    except ValueError as error:
        log(f"{error}: builds it again")
        return None


def load(path: Path) -> Tensors | None:
    """The tensors in the file `path`; None where it is missing. Raises ValueError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        digest = read_text(_sums_file(path)).split()[0]
        if digest == file_sha256(path):
            return load_file(path)
        problem = "another checksum"
    except (OSError, IndexError, ValueError, SafetensorError) as error:
        problem = one_line(error)
    raise ValueError(f"{path} is damaged ({problem})")


def _store(path: Path, tensors: Tensors) -> None:
    """The checksum comes last: a file without it counts as damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        atomic_write(path, lambda file: save_file(tensors, file.name))
    except SafetensorError as error:
        raise OSError(one_line(error)) from error
    atomic_write_text(_sums_file(path), f"{file_sha256(path)}  {path.name}\n")


def _sums_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
