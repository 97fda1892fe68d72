"""The records of a small CIFAR-100 of noise; `small_cifar100` writes them as the official files."""

from __future__ import annotations

from typing import Any

import numpy as np

EACH = {"train": 3, "test": 1}
"""Images of each class."""


def record(split: str) -> dict[bytes, Any]:
    """What a split's file holds: uint8 images [N, 3072] and a list of N classes, the same at every call."""
    noise = np.random.default_rng([0, EACH[split]])
    return {
        b"data": noise.integers(0, 256, (100 * EACH[split], 3072), dtype=np.uint8),
        b"fine_labels": noise.permutation(np.repeat(np.arange(100), EACH[split])).tolist(),
    }
