"""A safe reader of the official files of CIFAR-100, the pickles `cifar-100-python/{train,test,meta}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ham.files import read_bytes

from .checksums import SUMS, read_sums, sha256
from .pickles import load_pickle, plain

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
        content = read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if sums is not None and sha256(content) != sums.get(name):
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {SUMS}")
    try:
        record = load_pickle(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__} where CIFAR-100 has a dict")
    return record


def _entry(record: dict[Any, Any], key: str, path: Path) -> Any:
    """Keys are bytes in the official files, which Python 2 wrote, and may be strings in repickled files."""
    for variant in (key.encode(), key):
        if variant in record:
            return plain(record[variant])
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
