"""What the loop asks of a data set: batches on the device, in an order that seed and epoch alone decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Float images [N, 3, H, W] and int64 classes [N]."""


class DataError(Exception):
    """A data set is missing or not what it should be; the message names the cure."""


class Loader(Protocol):
    """One pass over a data set per call."""

    def __len__(self) -> int:
        """Batches of a whole epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on; the same ones whatever was drawn before."""


@dataclass
class Loaders:
    """Ready to use: `train` shuffles and drops the ragged last batch, `test` holds every image once."""

    train: Loader
    test: Loader


@dataclass
class Data:
    """A data set's name and facts. Subclasses are the schema of `configs/data`.

    Args:
        num_classes: of the labels.
        image_size: pixels a side that a model sees.
    """

    num_classes: int = 0
    image_size: int = 0

    def load(self, *, batch_size: int, seed: int, device: torch.device) -> Loaders:
        """Read it. Raises DataError where it is missing or wrong."""
        raise TypeError(f"{type(self).__name__} is no data set: choose one of configs/data")


def epoch_order(count: int, seed: int | None, epoch: int) -> Tensor:
    """Image numbers in the order of `epoch`, drawn from (seed, epoch); 0, 1, 2, ... without a seed."""
    if seed is None:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix_seed(seed, epoch)))


def mix_seed(seed: int, number: int) -> int:
    """A seed for stream `number` of `seed`, far from those of its neighbours."""
    return (seed + (number + 1) * 0x9E3779B97F4A7C15) % 2**63


def batch_count(images: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches of an epoch; `drop_last` leaves the ragged last one out."""
    return images // batch_size if drop_last else -(-images // batch_size)
