"""The contract of data sets, their registry, and the order in which each rank reads a data set."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Float images [N, 3, H, W] and int64 labels [N]."""


class DataError(Exception):
    """A data set is missing or invalid; the message names the cure."""


@contextmanager
def explain_killed_workers() -> Iterator[None]:
    """Raise DataError where a process of torch's DataLoader was killed.

    torch raises from a signal handler, at whatever line the main process is.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise DataError(
            "a decoding process was killed, perhaps for lack of memory: set a smaller data.workers"
        ) from None


class Loader(Protocol):
    """One pass over a data set per call.

    A loader may have a method `content()`, which returns what it reads, or its names and labels, for
    `checksums.digest`. Ranks and resumed runs then check that they have the same data.
    """

    def __len__(self) -> int:
        """Number of batches in a full epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from batch `start` on; they do not depend on earlier calls."""


@dataclass
class Loaders:
    """The loaders of one rank: each reads this rank's share of every batch.

    Args:
        train: shuffled; an incomplete last batch is dropped.
        test: the test batches, in order; every image is read once.
    """

    train: Loader
    test: Loader


@dataclass
class Data:
    """Facts about a data set. Subclasses are the schema of `configs/data`.

    Args:
        num_classes: number of classes.
        image_size: pixels per side of the images that the model sees; 0 for data without images.
    """

    num_classes: int = 0
    image_size: int = 0


class ImageData(Data, ABC):
    """A data set of images for classification."""

    @abstractmethod
    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> Loaders:
        """Open the data set.

        Args:
            batch_size: images per training step over all ranks; a multiple of `world_size`.
            seed: seed of the order and the augmentation; the same on every rank.
            device: device of the batches.
            rank: index of this process.
            world_size: number of processes. Their batches together are the batch of a single process.

        Raises:
            DataError: the data set is missing or invalid.
        """


DATASETS: dict[str, type[Data]] = {}
"""Data sets by the name of their schema: `configs/data/*.yaml` refer to `<name>_schema`."""


_DataClass = TypeVar("_DataClass", bound=type[Data])


def register(name: str) -> Callable[[_DataClass], _DataClass]:
    """Class decorator that adds a data set to `DATASETS` as `name`."""

    def add(data: _DataClass) -> _DataClass:
        if name in DATASETS:
            raise ValueError(
                f"{name!r} is already registered for {DATASETS[name].__name__}: choose another name"
            )
        DATASETS[name] = data
        return data

    return add


@dataclass(frozen=True)
class RankSampler:
    """Which images of a data set a rank reads, and in which order.

    Args:
        count: number of images in the data set.
        batch_size: images per step over all ranks.
        seed: seed of the epochs' orders; an incomplete last batch is dropped. None: in order, every image
            once.
        rank: index of this process.
        world_size: number of processes.
    """

    count: int
    batch_size: int
    seed: int | None = None
    rank: int = 0
    world_size: int = 1

    @property
    def local_batch_size(self) -> int:
        """Images per step on this rank."""
        return self.batch_size // self.world_size

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        if self.seed is not None:
            return self.count // self.batch_size
        return -(-len(self.indices(0)) // self.local_batch_size)

    def indices(self, epoch: int) -> Tensor:
        """Image indices in the order in which this rank reads them, `local_batch_size` per batch.

        All ranks draw the same permutation from (seed, epoch) and split each batch of it into `world_size`
        parts; without a seed, rank r reads the images r, r + world_size, ...
        """
        if self.seed is None:
            return torch.arange(self.rank, self.count, self.world_size)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order {epoch}"))
        order = torch.randperm(self.count, generator=generator)
        batches = order[: len(self) * self.batch_size].view(len(self), self.world_size, -1)
        return batches[:, self.rank].flatten()


def derived_seed(seed: int, name: str | int) -> int:
    """The seed of the random stream `name` under `seed`; derived seeds can be derived from again."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 2**63
