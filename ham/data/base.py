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
    """Ready to use: `train` shuffles and drops the ragged last batch, `test` holds every image once.

    Of several ranks each has its share of every training batch, and of the test images.
    """

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

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> Loaders:
        """Read it.

        Args:
            batch_size: images of one training step, over all ranks together; a multiple of `ranks`.
            seed: of the order and the augmentation; the same on every rank.
            device: where batches go.
            rank: whose share to read.
            ranks: processes that train together. Their batches together are the batch of a single process.

        Raises:
            DataError: it is missing or wrong.
        """
        raise TypeError(f"{type(self).__name__} is no data set: choose one of configs/data")


@dataclass(frozen=True)
class Share:
    """What one rank reads of a data set.

    Args:
        count: images of the whole set.
        batch_size: images a step, over all ranks together.
        seed: of the epochs' orders, and the ragged last batch is dropped; None: in order, every image once.
        rank: this process.
        ranks: all of them.
    """

    count: int
    batch_size: int
    seed: int | None = None
    rank: int = 0
    ranks: int = 1

    @property
    def part(self) -> int:
        """Images a step on this rank."""
        return self.batch_size // self.ranks

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        if self.seed is not None:
            return self.count // self.batch_size
        return -(-len(self.order(0)) // self.part)

    def order(self, epoch: int) -> Tensor:
        """Image numbers in the order in which this rank reads them, `part` a batch.

        All ranks draw the same order from (seed, epoch) and cut each batch of it into as many pieces; without
        a seed rank r has images r, r + ranks, ...
        """
        if self.seed is None:
            return torch.arange(self.rank, self.count, self.ranks)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order {epoch}"))
        order = torch.randperm(self.count, generator=generator)
        batches = order[: len(self) * self.batch_size].view(len(self), self.ranks, self.part)
        return batches[:, self.rank].flatten()


def derived_seed(seed: int, name: str | int) -> int:
    """The seed of the random stream `name` under `seed`: streams of streams do not meet either."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 2**63
