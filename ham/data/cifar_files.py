"""The official files of CIFAR-100, `cifar-100-python/{train,test,meta}`, read without trusting them.

They are pickles, and a pickle is a program: one from a stranger can run anything. The unpickler here knows
numbers, texts, lists, dicts and the description of a numpy array, and calls nothing by name but the functions
of this file. Not even numpy's own: `numpy.dtype` takes whatever flags a file sets.
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
"""Images of each class."""


def read_official(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read and check all three files.

    Returns:
        "train" and "test" -> images, uint8 [N, 3, 32, 32], read-only, and their classes, int64 [N].

    Raises:
        ValueError: a file is missing or not what it should be; one line that leaves the cure to the caller.
    """
    sums = read_sums(folder)
    names = _entry(_record(folder, "meta", sums), "fine_label_names", folder / "meta")
    are_texts = isinstance(names, list) and all(isinstance(name, (bytes, str)) for name in names)
    if not are_texts or len(set(names)) != CLASSES:
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
    """The official files, written by Python 2, have bytes for keys; files pickled anew may have text."""
    for form in (key.encode(), key):
        if form in record:
            value = record[form]
            return getattr(value, "array", None) if isinstance(value, _Array) else value
    raise ValueError(f"{path} has no {key}: it is not of CIFAR-100")


def _split(record: dict[Any, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels, classes = _entry(record, "data", path), _entry(record, "fine_labels", path)
    each = PER_CLASS[path.name]
    shape = (CLASSES * each, 3 * SIDE * SIDE)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"{path} holds images as {found}, expected uint8 {shape}")
    classes = classes.tolist() if isinstance(classes, np.ndarray) else classes
    if not isinstance(classes, list) or not all(type(c) is int and 0 <= c < CLASSES for c in classes):
        raise ValueError(f"{path} has labels that are no classes 0 to {CLASSES - 1}")
    counts = np.bincount(classes, minlength=CLASSES)
    if (counts != each).any():
        odd = int((counts != each).argmax())
        raise ValueError(f"{path} has {counts[odd]} images of class {odd}, expected {each}")
    return np.ascontiguousarray(pixels).reshape(-1, 3, SIDE, SIDE), np.array(classes, dtype=np.int64)


class _Dtype:
    """What stands for `numpy.dtype` in a file: a kind and a width, such as u1, and a byte order."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name, self.order = _text(name), "="
        if not re.fullmatch("[biuf][1248]", self.name):
            raise pickle.UnpicklingError(f"an array of {self.name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])


class _Array:
    """What stands for `numpy.ndarray` in a file: shape, dtype and the bytes; `array` is made of them."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = _from_buffer(content, dtype, shape, "F" if is_fortran else "C").array


def _from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    made = _Array()
    numbers = np.dtype(dtype.name).newbyteorder(dtype.order)
    made.array = np.frombuffer(content, numbers).reshape(shape, order=order)
    return made


def _encode(text: str, encoding: str) -> bytes:
    """How protocols below 3 write bytes; `_codecs.encode` itself would know other encodings too."""
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
            asked = f"{module}.{name}"
            raise pickle.UnpicklingError(
                f"it asks for {asked!r}, which no image needs: do not trust it"
            ) from None
