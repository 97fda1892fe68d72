"""scikit-learn's handwritten digits: 1,797 real 8x8 images, embedded in the package, no download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Batch, Data, DataError, Loaders, Share

_TEST_IMAGES = 360
_SPLIT_SEED = 0


@dataclass
class Digits(Data):
    """A fixed split of 1,437 training and 360 test images, the same in every run."""

    num_classes: int = 10
    image_size: int = 8

    def __post_init__(self) -> None:
        """Raise ValueError where a fact of the data set is altered."""
        if (self.num_classes, self.image_size) != (10, 8):
            raise ValueError(
                "digits has 10 classes and 8 px: leave data.num_classes and data.image_size alone"
            )

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> Loaders:
        """All images on the device, grey repeated over three channels."""
        images, classes = read_digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
        test, train = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
        mean, std = images[train].mean(), images[train].std()
        images = ((images - mean) / std).unsqueeze(1).expand(-1, 3, -1, -1).contiguous().to(device)
        classes = classes.to(device)
        if not 0 < batch_size <= len(train):
            raise DataError(f"batch_size={batch_size} does not fit digits: choose 1 to {len(train)}")
        shared = dict(batch_size=batch_size, rank=rank, ranks=ranks)
        return Loaders(
            TensorLoader(images[train], classes[train], Share(len(train), seed=seed, **shared)),
            TensorLoader(images[test], classes[test], Share(len(test), **shared)),
        )


def read_digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 8, 8] in [0, 1], float32, and classes [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise DataError(
            "the digits come with scikit-learn: pip install 'hyperbolic-aware-minimization[run]'"
        ) from None
    digits = load_digits()
    return torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()


class TensorLoader:
    """Batches of images that lie on the device whole.

    Args:
        images: [N, 3, H, W].
        classes: [N].
        share: which of them, in what order.
    """

    def __init__(self, images: Tensor, classes: Tensor, share: Share) -> None:
        self.images, self.classes, self.share = images, classes, share

    def __len__(self) -> int:
        return len(self.share)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on."""
        order = self.share.order(epoch).to(self.images.device)
        for number in range(start, len(self)):
            index = order[number * self.share.part : (number + 1) * self.share.part]
            yield self.images[index], self.classes[index]
