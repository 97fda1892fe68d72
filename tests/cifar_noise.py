"""A small CIFAR-100 of random pixels; the fixture `small_cifar100` writes it in the official format."""

from __future__ import annotations

from typing import Any

import numpy as np

PER_CLASS = {"train": 3, "test": 1}
"""Images per class."""


def record(split: str) -> dict[bytes, Any]:
    """Content of a split's file, the same in every call: uint8 images [N, 3072] and a list of N labels."""
    rng = np.random.default_rng([0, PER_CLASS[split]])
    return {
        b"data": rng.integers(0, 256, (100 * PER_CLASS[split], 3072), dtype=np.uint8),
        b"fine_labels": rng.permutation(np.repeat(np.arange(100), PER_CLASS[split])).tolist(),
    }
