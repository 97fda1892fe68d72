"""CIFAR-100, stored on the device: no workers, and a batch costs a few kernels.

Crops and flips follow the paper's code base, which took them from airbench (KellerJordan/cifar10-airbench):
flips alternate between epochs, and crops shift by up to two pixels over the image with reflection padding.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Batch, DataError, ImageData, Loaders, RankSampler, derived_seed, register
from .cifar_files import CLASSES, FOLDER, PER_CLASS, SIDE, read_official
from .subset import Images, draw_per_class, shrink

# over the training images, as in the paper's code base
_MEAN, _STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Flip(StrEnum):
    """Horizontal flips of training images.

    `alternating` draws once per image whether it is flipped in even or in odd epochs, so that two successive
    epochs show both sides; `random` draws in every epoch.
    """

    alternating = "alternating"
    random = "random"
    none = "none"


@register("cifar100")
@dataclass
class Cifar100(ImageData):
    """The official files `cifar-100-python/{train,test,meta}`: 50,000 training and 10,000 test images.

    The augmentation of an epoch is drawn from (seed, epoch) on the CPU for all images, and looked up by image
    index. It is therefore the same on any number of ranks, on a CPU or a GPU, and in an epoch resumed in the
    middle; a checkpoint needs no random state of the data.

    Args:
        root: the folder with the three files; empty: $HAM_DATA/cifar-100-python.
        flip: see `Flip`.
        translate: maximum shift of a crop in pixels, in each of the four directions.
        image_size: pixels per side, a divisor of 32; smaller images are means over areas.
        per_class: number of training images of each class, 0 for all; see `ham.data.subset`.
        validation_per_class: number of further training images of each class that replace the test images,
            for tuning; 0: the test images.
    """

    num_classes: int = CLASSES
    image_size: int = SIDE
    root: str = ""
    flip: Flip = Flip.alternating
    translate: int = 2
    per_class: int = 0
    validation_per_class: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError on a size that CIFAR-100 cannot have, or if a crop can leave the image."""
        if self.num_classes != CLASSES:
            raise ValueError(f"cifar100 has {CLASSES} classes: do not set data.num_classes")
        if self.image_size < 1 or SIDE % self.image_size:
            raise ValueError(
                f"data.image_size of cifar100 must divide {SIDE}, such as {SIDE // 2}: got {self.image_size}"
            )
        if not 0 <= self.translate < self.image_size:
            raise ValueError(
                f"data.translate must be 0 to {self.image_size - 1} pixels, got {self.translate}"
            )
        available = PER_CLASS["train"]
        parts = (self.per_class, self.validation_per_class)
        if min(parts) < 0 or sum(parts) > available or self.validation_per_class == available:
            raise ValueError(
                f"data.per_class and data.validation_per_class must share the {available} training images of "
                f"a class, got {self.per_class} and {self.validation_per_class}"
            )
        self.flip = Flip(self.flip)

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> Loaders:
        """Read the files, and verify them against SHA256SUMS if the folder has it."""
        root = Path(self.root or Path(os.environ.get("HAM_DATA", ".")) / FOLDER)
        prepare = f"python scripts/prepare_data.py cifar100 --to {root.parent}"
        replace = f"replace it with {prepare}, which moves the damaged one away"
        if root.name != FOLDER:
            prepare = f"python scripts/prepare_data.py cifar100 --to {root}, then data.root={root / FOLDER}"
            replace = f"fetch another with {prepare}"
        if not root.is_dir():
            raise DataError(
                f"CIFAR-100 is not at {root}: fetch it with {prepare}; data.root or $HAM_DATA can name "
                "another folder, or try +demo=digits"
            )
        try:
            parts = read_official(root)
        except ValueError as error:
            raise DataError(f"{error}: {replace}") from None
        parts = self._select(parts)
        count = len(parts["train"][1])
        if not 0 < batch_size <= count or batch_size % world_size:
            multiple = f", a multiple of the {world_size} ranks" if world_size > 1 else ""
            raise DataError(f"batch_size={batch_size} does not fit CIFAR-100: choose 1 to {count}{multiple}")
        pixels, labels = (
            {split: torch.tensor(part[which], device=device) for split, part in parts.items()}
            for which in (0, 1)
        )
        shared = dict(batch_size=batch_size, rank=rank, world_size=world_size)
        train = RankSampler(count, seed=seed, **shared)
        test = RankSampler(len(labels["test"]), **shared)
        return Loaders(
            CifarLoader(
                pixels["train"], labels["train"], train, Augmentation(self.flip, self.translate, seed)
            ),
            CifarLoader(pixels["test"], labels["test"], test, Augmentation(Flip.none, 0)),
        )

    def _select(self, parts: dict[str, Images]) -> dict[str, Images]:
        """The images of this configuration, at its size."""
        if self.per_class or self.validation_per_class:
            train, validation = draw_per_class(*parts["train"], self.per_class, self.validation_per_class)
            parts = {"train": train, "test": validation if self.validation_per_class else parts["test"]}
        return {split: (shrink(pixels, self.image_size), labels) for split, (pixels, labels) in parts.items()}


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips of the images of an epoch.

    Args:
        flip: see `Flip`.
        translate: maximum shift of a crop in pixels.
        seed: seed of the random draws; each epoch has its own stream.
    """

    flip: Flip
    translate: int
    seed: int = 0

    def draw(self, epoch: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each of `count` images, int64 [count]: shift down, shift right (pixels), flipped (0 or 1)."""
        stream = self._stream(f"crops {epoch}")
        span = 2 * self.translate + 1
        down, right = torch.randint(span, (2, count), generator=stream) - self.translate
        return down, right, self._flips(epoch, count)

    def _flips(self, epoch: int, count: int) -> Tensor:
        if self.flip is Flip.none:
            return torch.zeros(count, dtype=torch.int64)
        if self.flip is Flip.random:
            return torch.randint(2, (count,), generator=self._stream(f"flips {epoch}"))
        first_flips = torch.randint(2, (count,), generator=self._stream("flips"))
        return first_flips ^ (epoch % 2)

    def _stream(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, name))

    def positions(self, side: int) -> Tensor:
        """Source coordinates of a crop's pixels along one axis, int64 [2, 2 * translate + 1, side].

        Entry [flipped, shift + translate]. Positions outside the image are reflected at the border without
        repeating the border pixel (numpy's "reflect").
        """
        shifts = torch.arange(-self.translate, self.translate + 1)
        unbounded = shifts[:, None] + torch.arange(side)
        reflected = (side - 1) - ((side - 1) - unbounded.abs()).abs()
        return torch.stack([reflected, reflected.flip(1)])


class CifarLoader:
    """Batches of images stored on the device as uint8.

    Args:
        pixels: uint8 [N, 3, S, S].
        labels: int64 [N].
        sampler: indices and order of the images that this rank reads.
        augmentation: augmentation of the images.
    """

    def __init__(
        self, pixels: Tensor, labels: Tensor, sampler: RankSampler, augmentation: Augmentation
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.sampler, self.augmentation = sampler, augmentation
        self._positions = augmentation.positions(pixels.shape[-1]).to(pixels.device)
        self._mean = torch.tensor(_MEAN, device=pixels.device).view(3, 1, 1) * 255
        self._std = torch.tensor(_STD, device=pixels.device).view(3, 1, 1) * 255

    def __len__(self) -> int:
        return len(self.sampler)

    def content(self) -> Any:
        """The pixels and labels."""
        return self.pixels, self.labels

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from batch `start` on."""
        indices = self.sampler.indices(epoch)
        draws = torch.stack(self.augmentation.draw(epoch, len(self.pixels)))[:, indices]
        device, size = self.pixels.device, self.sampler.local_batch_size
        pairs = zip(indices.to(device).split(size), draws.to(device).split(size, dim=1), strict=True)
        for batch, draw in itertools.islice(pairs, start, None):
            yield self._images(batch, *draw), self.labels[batch]

    def _images(self, indices: Tensor, down: Tensor, right: Tensor, flipped: Tensor) -> Tensor:
        side = self.pixels.shape[-1]
        rows = self._positions[0, down + self.augmentation.translate]
        columns = self._positions[flipped, right + self.augmentation.translate]
        sources = (rows[:, :, None] * side + columns[:, None, :]).view(-1, 1, side * side)
        # selecting the images first is three times as fast on a CPU as one gather over the data set
        images = self.pixels[indices].flatten(2).gather(2, sources.expand(-1, 3, -1))
        return (images.view(-1, 3, side, side) - self._mean).div_(self._std)
