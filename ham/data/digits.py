"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the package."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ham.errors import one_line
from ham.files import open_binary

from .base import Batch, DataError, ImageData, Loaders, RankSampler, register

_TEST_IMAGES = 360
_SPLIT_SEED = 0


@register("digits")
@dataclass
class Digits(ImageData):
    """A fixed split of 1,437 training and 360 test images, the same in every run."""

    num_classes: int = 10
    image_size: int = 8

    def __post_init__(self) -> None:
        """Raise ValueError if a fact of the data set is changed."""
        if (self.num_classes, self.image_size) != (10, 8):
            raise ValueError(
                "digits has 10 classes and 8 px: do not set data.num_classes and data.image_size"
            )

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> Loaders:
        """Put all images on the device, with gray repeated over three channels."""
        images, labels = read_digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
        test, train = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
        mean, std = images[train].mean(), images[train].std()
        images = ((images - mean) / std).unsqueeze(1).expand(-1, 3, -1, -1).contiguous().to(device)
        labels = labels.to(device)
        if not 0 < batch_size <= len(train):
            raise DataError(f"batch_size={batch_size} does not fit digits: choose 1 to {len(train)}")
        shared = dict(batch_size=batch_size, rank=rank, world_size=world_size)
        return Loaders(
            TensorLoader(images[train], labels[train], RankSampler(len(train), seed=seed, **shared)),
            TensorLoader(images[test], labels[test], RankSampler(len(test), **shared)),
        )


def read_digits() -> tuple[Tensor, Tensor]:
    """Float32 images [1797, 8, 8] in [0, 1], and int64 labels [1797].

    scikit-learn's file is read without scikit-learn, whose import takes longer than a small training.
    """
    package = find_spec("sklearn")
    if package is None:
        raise DataError("the digits need scikit-learn: pip install 'hyperbolic-aware-minimization[run]'")
    (folder,) = package.submodule_search_locations
    try:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        with open_binary(path) as file, gzip.open(file, "rt") as lines:
            table = np.array([line.split(",") for line in lines], dtype=np.float32).reshape(1797, 65)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"the digits of scikit-learn cannot be read ({one_line(error)}): "
            "pip install --force-reinstall scikit-learn"
        ) from None
    images, labels = torch.from_numpy(table).split([64, 1], dim=1)
    return images.reshape(-1, 8, 8) / 16, labels.flatten().long()


class TensorLoader:
    """Batches of images stored on the device.

    Args:
        images: [N, 3, H, W].
        labels: [N].
        sampler: indices and order of the images that this rank reads.
    """

    def __init__(self, images: Tensor, labels: Tensor, sampler: RankSampler) -> None:
        self.images, self.labels, self.sampler = images, labels, sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def content(self) -> Any:
        """The images and labels."""
        return self.images, self.labels

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from batch `start` on."""
        indices = self.sampler.indices(epoch).to(self.images.device)
        for batch in indices.split(self.sampler.local_batch_size)[start:]:
            yield self.images[batch], self.labels[batch]
