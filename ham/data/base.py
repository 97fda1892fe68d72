"""What the loop asks of a data set: batches on the device, in an order that seed and epoch alone decide."""

from __future__ import annotations

import hashlib
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
    return torch.randperm(
        count, generator=torch.Generator().manual_seed(derived_seed(seed, f"order {epoch}"))
    )


def derived_seed(seed: int, name: str | int) -> int:
    """The seed of the random stream `name` under `seed`: streams of streams do not meet either."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 2**63


def batch_count(images: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches of an epoch; `drop_last` leaves the ragged last one out."""
    return images // batch_size if drop_last else -(-images // batch_size)
