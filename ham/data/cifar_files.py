"""A safe reader of the official files of CIFAR-100, `cifar-100-python/{train,test,meta}`.

The files are pickles, and unpickling an untrusted file can run arbitrary code. The unpickler here accepts
numbers, strings, lists, dicts and the description of a numpy array, and calls only the functions of this file
by name. It does not call numpy's own functions: `numpy.dtype` accepts any flags that a file sets.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .checksums import SUMS, read_sums, sha256

FOLDER = "cifar-100-python"
FILES = ("train", "test", "meta")
CLASSES, SIDE = 100, 32
PER_CLASS = {"train": 500, "test": 100}
"""Images per class."""


def read_official(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read and validate all three files.

    Returns:
        "train" and "test" -> images, uint8 [N, 3, 32, 32], read-only, and their labels, int64 [N].

    Raises:
        ValueError: a file is missing or invalid; the message is one line, and the caller adds the cure.
    """
    sums = read_sums(folder)
    names = _entry(_record(folder, "meta", sums), "fine_label_names", folder / "meta")
    are_strings = isinstance(names, list) and all(isinstance(name, (bytes, str)) for name in names)
    if not are_strings or len(set(names)) != CLASSES:
        raise ValueError(f"{folder / 'meta'} does not name {CLASSES} classes")
    return {split: _split(_record(folder, split, sums), folder / split) for split in PER_CLASS}


def _record(folder: Path, name: str, sums: dict[str, str] | None) -> dict[Any, Any]:
    path = folder / name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if sums is not None and sha256(content) != sums.get(name):
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {SUMS}")
    try:
        record = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{path} cannot be unpickled ({reason or type(error).__name__})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__} where CIFAR-100 has a dict")
    return record


def _entry(record: dict[Any, Any], key: str, path: Path) -> Any:
    """Keys are bytes in the official files, which Python 2 wrote, and may be strings in repickled files."""
    for variant in (key.encode(), key):
        if variant in record:
            value = record[variant]
            return getattr(value, "array", None) if isinstance(value, _Array) else value
    raise ValueError(f"{path} has no {key}: it is not a file of CIFAR-100")


def _split(record: dict[Any, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = _entry(record, "data", path), _entry(record, "fine_labels", path)
    per_class = PER_CLASS[path.name]
    shape = (CLASSES * per_class, 3 * SIDE * SIDE)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        actual = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"{path} holds images as {actual}, expected uint8 {shape}")
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(labels, list) or not all(type(c) is int and 0 <= c < CLASSES for c in labels):
        raise ValueError(f"{path} has labels that are not integers from 0 to {CLASSES - 1}")
    counts = np.bincount(labels, minlength=CLASSES)
    if (counts != per_class).any():
        label = int((counts != per_class).argmax())
        raise ValueError(f"{path} has {counts[label]} images of class {label}, expected {per_class}")
    return np.ascontiguousarray(pixels).reshape(-1, 3, SIDE, SIDE), np.array(labels, dtype=np.int64)


class _Dtype:
    """Stand-in for `numpy.dtype` in a file: kind and width, such as u1, and byte order."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name, self.order = _text(name), "="
        if not re.fullmatch("[biuf][1248]", self.name):
            raise pickle.UnpicklingError(f"an array of {self.name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])


class _Array:
    """Stand-in for `numpy.ndarray` in a file: shape, dtype and bytes, from which `array` is built."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = _from_buffer(content, dtype, shape, "F" if is_fortran else "C").array


def _from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    stand_in = _Array()
    numpy_dtype = np.dtype(dtype.name).newbyteorder(dtype.order)
    stand_in.array = np.frombuffer(content, numpy_dtype).reshape(shape, order=order)
    return stand_in


def _encode(text: str, encoding: str) -> bytes:
    """Bytes in pickle protocols below 3; unlike `_codecs.encode`, this accepts only their encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode(encoding)


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): bytes,
    ("builtins", "bytearray"): bytearray,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
    _ALLOWED[_core + ".multiarray", "_reconstruct"] = lambda *_: _Array()
    _ALLOWED[_core + ".numeric", "_frombuffer"] = _from_buffer  # protocol 5


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            called = f"{module}.{name}"
            raise pickle.UnpicklingError(
                f"it calls {called!r}, which images do not need: do not trust it"
            ) from None
