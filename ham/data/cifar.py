"""CIFAR-100, whole on the device: no workers, and a batch costs a few kernels.

Crops and flips follow the paper's code base, which has them from airbench (KellerJordan/cifar10-airbench):
flips alternate between epochs, crops are moved by up to two pixels over the image reflected at its borders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from .base import Batch, Data, DataError, Loaders, Share, derived_seed
from .cifar_files import CLASSES, FOLDER, SIDE, read_official

# of the training images, as in the paper's code base
_MEAN, _STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Flip(StrEnum):
    """Mirroring of training images.

    `alternating` tosses a coin once for each image and mirrors it in every other epoch from there on, so
    that two epochs show both sides; `random` tosses in every epoch.
    """

    alternating = "alternating"
    random = "random"
    none = "none"


@dataclass
class Cifar100(Data):
    """The official files `cifar-100-python/{train,test,meta}`: 50,000 training and 10,000 test images.

    What happens to an image in an epoch is drawn from (seed, epoch) on the CPU, for all images at once, and
    looked up by the image's number. So it is the same on one rank or several, on a CPU or a GPU, and in an
    epoch that was entered in its middle; a checkpoint needs to hold no random state of the data.

    Args:
        root: the folder with the three files; empty for `cifar-100-python` under the environment variable
            HAM_DATA.
        flip: see `Flip`.
        translate: pixels by which a crop moves at most, up, down, left or right.
    """

    num_classes: int = CLASSES
    image_size: int = SIDE
    root: str = ""
    flip: Flip = Flip.alternating
    translate: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError where a fact of the data set is altered or a crop leaves the image."""
        if (self.num_classes, self.image_size) != (CLASSES, SIDE):
            raise ValueError(
                f"cifar100 has {CLASSES} classes and {SIDE} px: "
                "leave data.num_classes and data.image_size alone"
            )
        if not 0 <= self.translate < SIDE:
            raise ValueError(f"data.translate must be 0 to {SIDE - 1} pixels, got {self.translate}")
        self.flip = Flip(self.flip)

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> Loaders:
        """Read the files, and compare them with their SHA256SUMS if the folder has some."""
        root = Path(self.root or Path(os.environ.get("HAM_DATA", ".")) / FOLDER)
        prepare = f"python scripts/prepare_data.py cifar100 --to {root.parent}"
        if root.name != FOLDER:
            prepare += f" and data.root={root.parent / FOLDER}"
        if not root.is_dir():
            raise DataError(
                f"CIFAR-100 is not at {root}: fetch it with {prepare}; data.root or $HAM_DATA can name "
                "another place, or try +demo=digits"
            )
        try:
            parts = read_official(root)
        except ValueError as error:
            raise DataError(f"{error}: move {root} away and make it anew with {prepare}") from None
        count = len(parts["train"][1])
        if not 0 < batch_size <= count or batch_size % ranks:
            whole = f", a multiple of the {ranks} ranks" if ranks > 1 else ""
            raise DataError(f"batch_size={batch_size} does not fit CIFAR-100: choose 1 to {count}{whole}")
        pixels, classes = (
            {split: torch.tensor(part[which], device=device) for split, part in parts.items()}
            for which in (0, 1)
        )
        shared = dict(batch_size=batch_size, rank=rank, ranks=ranks)
        train = Share(count, seed=seed, **shared)
        test = Share(len(classes["test"]), **shared)
        return Loaders(
            CifarLoader(
                pixels["train"], classes["train"], train, Augmentation(self.flip, self.translate, seed)
            ),
            CifarLoader(pixels["test"], classes["test"], test, Augmentation(Flip.none, 0)),
        )


@dataclass(frozen=True)
class Augmentation:
    """Crops and mirrors the images of an epoch.

    Args:
        flip: see `Flip`.
        translate: pixels by which a crop moves at most.
        seed: of the draws; each epoch has a stream of its own.
    """

    flip: Flip
    translate: int
    seed: int = 0

    def draw(self, epoch: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each of `count` images, int64: pixels down, pixels to the right, then mirrored (1) or not."""
        stream = self._stream(f"crops {epoch}")
        span = 2 * self.translate + 1
        down, right = torch.randint(span, (2, count), generator=stream) - self.translate
        return down, right, self._mirrored(epoch, count)

    def _mirrored(self, epoch: int, count: int) -> Tensor:
        if self.flip is Flip.none:
            return torch.zeros(count, dtype=torch.int64)
        if self.flip is Flip.random:
            return torch.randint(2, (count,), generator=self._stream(f"flips {epoch}"))
        coins = torch.randint(2, (count,), generator=self._stream("flips"))
        return coins ^ (epoch % 2)

    def _stream(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, name))

    def positions(self, side: int) -> Tensor:
        """Where the pixels of a crop come from along one axis, int64 [2, 2 * translate + 1, side].

        Entry [mirrored, moved + translate]. Positions beyond a border are reflected at it, the border pixel
        itself not repeated: numpy's "reflect".
        """
        moved = torch.arange(-self.translate, self.translate + 1)
        beyond = moved[:, None] + torch.arange(side)
        inside = (side - 1) - ((side - 1) - beyond.abs()).abs()
        return torch.stack([inside, inside.flip(1)])


class CifarLoader:
    """Batches of images that lie on the device whole, as bytes.

    Args:
        pixels: uint8 [N, 3, S, S].
        classes: int64 [N].
        share: which of them, in what order.
        augmentation: what is done to them.
    """

    def __init__(self, pixels: Tensor, classes: Tensor, share: Share, augmentation: Augmentation) -> None:
        self.pixels, self.classes = pixels, classes
        self.share, self.augmentation = share, augmentation
        self._positions = augmentation.positions(pixels.shape[-1]).to(pixels.device)
        self._mean = torch.tensor(_MEAN, device=pixels.device).view(3, 1, 1) * 255
        self._std = torch.tensor(_STD, device=pixels.device).view(3, 1, 1) * 255

    def __len__(self) -> int:
        return len(self.share)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on."""
        order = self.share.order(epoch)
        draws = torch.stack(self.augmentation.draw(epoch, len(self.pixels)))[:, order]
        order, draws = order.to(self.pixels.device), draws.to(self.pixels.device)
        for number in range(start, len(self)):
            part = slice(number * self.share.part, (number + 1) * self.share.part)
            yield self._images(order[part], *draws[:, part]), self.classes[order[part]]

    def _images(self, index: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
        side = self.pixels.shape[-1]
        rows = self._positions[0, down + self.augmentation.translate]
        columns = self._positions[mirrored, right + self.augmentation.translate]
        places = (rows[:, :, None] * side + columns[:, None, :]).view(-1, 1, side * side)
        # reading the images first makes this three times as fast on a CPU as a single gather over all
        images = self.pixels[index].flatten(2).gather(2, places.expand(-1, 3, -1))
        return (images.view(-1, 3, side, side) - self._mean).div_(self._std)
