"""ImageNet from FFCV files: threads decode, crop and resize; the device flips and normalizes.

On a CPU the threads flip and normalize too, by a table: the values are the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Batch, DataError, ImageData, Loaders, RankSampler, derived_seed, register
from .beton import Beton
from .imagenet import CENTER_CROP, Normalize, check_min_crop, folder
from .pixel_table import PixelTable

_RATIO, _TRIES = (3 / 4, 4 / 3), 10  # RandomResizedCrop of torchvision and of FFCV
_PREFETCH = 3  # batches decoded while the device works on one


@register("imagenet_ffcv")
@dataclass
class ImageNetFFCV(ImageData):
    """Two files that `scripts/write_beton.py` writes.

    Training images are cropped at random (RandomResizedCrop) and flipped; validation images are
    center-cropped. Order, crops and flips of an epoch depend only on (seed, epoch).

    Args:
        root: the folder of the files; empty: $HAM_DATA/imagenet.
        train: name of the file of training images.
        val: name of the file of validation images.
        min_crop: minimum fraction of an image's area that a training crop covers.
        workers: number of decoding threads, at least 1.
    """

    num_classes: int = 1000
    image_size: int = 224
    root: str = ""
    train: str = "train_500_0.50_90.beton"
    val: str = "val_500_0.50_90.beton"
    min_crop: float = 0.08
    workers: int = 8

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> Loaders:
        """Map the files. Raises DataError if one is missing or invalid, or FFCV is not installed."""
        check_min_crop(self.min_crop)
        root = folder(self.root)
        paths = {"train": root / self.train, "val": root / self.val}
        for split, path in paths.items():
            if not path.is_file():
                raise DataError(
                    f"ImageNet's {split} images are not at {path}: write them with "
                    f"python scripts/write_beton.py --from SOURCE --to {root}, or set data.root, "
                    "or read a folder tree with data=imagenet_folder, or try +demo=digits"
                )
        train, val = (self._open(path) for path in paths.values())
        if (num_classes := int(train.labels.max()) + 1) != self.num_classes:
            raise DataError(
                f"{train.path} has {num_classes} classes, expected {self.num_classes}: "
                f"check the file, or set data.num_classes={num_classes}"
            )
        check_classes(train, val)
        if batch_size > len(train):
            raise DataError(
                f"batch_size={batch_size} exceeds the {len(train)} training images at {train.path}"
            )
        workers = max(1, self.workers)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="ffcv")
        loader = partial(
            FFCVLoader,
            size=self.image_size,
            min_crop=self.min_crop,
            pool=pool,
            workers=workers,
            device=device,
        )
        shared = dict(batch_size=batch_size, rank=rank, world_size=world_size)
        return Loaders(
            loader(train, RankSampler(len(train), seed=seed, **shared)),
            loader(val, RankSampler(len(val), **shared)),
        )

    def _open(self, path: Path) -> Beton:
        beton = Beton(path)
        lowest, highest = int(beton.labels.min()), int(beton.labels.max())
        if lowest < 0 or highest >= self.num_classes:
            raise DataError(
                f"{path} has labels from {lowest} to {highest}, expected 0 to {self.num_classes - 1}: "
                f"check the file, or set data.num_classes={highest + 1}"
            )
        return beton


def check_classes(train: Beton, val: Beton) -> None:
    """Raise DataError unless the labels of both files mean the same classes, and each class has images.

    A label is the position of a class folder: where val lacks one, the labels of the later ones are shifted.
    """
    cure = "write both again from one folder, with python scripts/write_beton.py --overwrite"
    if "" not in (train.classes, val.classes) and train.classes != val.classes:
        raise DataError(f"{train.path} and {val.path} were written from other class folders: {cure}")
    everything = set(range(int(train.labels.max()) + 1))
    for beton in (train, val):
        if missing := everything - set(beton.labels.unique().tolist()):
            raise DataError(
                f"{beton.path} has no images of {len(missing)} classes, such as class {min(missing)}: {cure}"
            )


class FFCVLoader:
    """Batches of one file, decoded by threads and prefetched.

    Args:
        beton: the file.
        sampler: indices and order of the images that this rank reads. With a seed, they are augmented at
            random.
        size: pixels per side of the images in a batch.
        min_crop: minimum fraction of an image's area that a random crop covers.
        pool: the decoding threads. One pool serves all epochs: FFCV never frees a thread's JPEG decoder.
        workers: number of decoding threads.
        device: device of the batches.
    """

    def __init__(
        self,
        beton: Beton,
        sampler: RankSampler,
        size: int,
        min_crop: float,
        pool: ThreadPoolExecutor,
        workers: int,
        device: torch.device,
    ) -> None:
        self.beton, self.sampler, self.size, self.device = beton, sampler, size, device
        self.min_crop = min_crop
        self._pool, self._workers, self._normalize = pool, workers, Normalize(device)
        self._pixel_table = PixelTable.of(self._normalize) if device.type == "cpu" else None

    def __len__(self) -> int:
        return len(self.sampler)

    def content(self) -> Any:
        """The labels and classes, and the height and width of each image."""
        return self.beton.labels, self.beton.classes, self.beton.sizes

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from batch `start` on; earlier ones are not decoded."""
        indices = self.sampler.indices(epoch)[start * self.sampler.local_batch_size :]
        boxes, flipped = self._augmentation(epoch)
        pending: deque[_Decoding] = deque()
        try:
            for first in range(0, len(indices), self.sampler.local_batch_size):
                batch = indices[first : first + self.sampler.local_batch_size]
                pending.append(self._start(batch, boxes[batch], flipped[batch]))
                if len(pending) > _PREFETCH:
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())
        finally:  # also if the caller leaves the epoch early
            wait([part for batch in pending for part in batch.parts if not part.cancel()])

    def _augmentation(self, epoch: int) -> tuple[Tensor, Tensor]:
        """For every image in the file: crop box, int64 [N, 4], and whether it is flipped, bool [N]."""
        if self.sampler.seed is None:
            return center_boxes(self.beton.sizes), torch.zeros(len(self.beton), dtype=torch.bool)
        crops, flips = (
            torch.Generator().manual_seed(derived_seed(self.sampler.seed, f"{name} {epoch}"))
            for name in ("crops", "flips")
        )
        flipped = torch.rand(len(self.beton), generator=flips) < 0.5
        return random_boxes(self.beton.sizes, self.min_crop, crops), flipped

    def _start(self, indices: Tensor, boxes: Tensor, flipped: Tensor) -> _Decoding:
        """Start to decode a batch, one part per thread."""
        # torch reuses pinned memory only after its copy to the device has finished
        pinned = self.device.type == "cuda"
        images = torch.empty(len(indices), self.size, self.size, 3, dtype=torch.uint8, pin_memory=pinned)
        on_cpu = self._pixel_table is not None
        result = torch.empty(len(indices), 3, self.size, self.size) if on_cpu else images
        chunks = (tensor.chunk(self._workers) for tensor in (indices, boxes, images, flipped, result))
        parts = [self._pool.submit(self._decode, *part) for part in zip(*chunks, strict=True)]
        labels = self.beton.labels[indices]
        if pinned:
            labels, flipped = labels.pin_memory(), flipped.pin_memory()
        return _Decoding(parts, result, labels, flipped)

    def _decode(
        self, indices: Tensor, boxes: Tensor, images: Tensor, flipped: Tensor, result: Tensor
    ) -> None:
        self.beton.decode(indices, boxes, images)
        if self._pixel_table is not None:
            self._pixel_table(images, flipped, result)

    def _finish(self, batch: _Decoding) -> Batch:
        for part in batch.parts:
            part.result()
        if self._pixel_table is not None:
            return batch.images, batch.labels
        images, labels, flipped = (
            tensor.to(self.device, non_blocking=True)
            for tensor in (batch.images, batch.labels, batch.flipped)
        )
        images = images.permute(0, 3, 1, 2).contiguous()
        if self.sampler.seed is not None:
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
        return self._normalize(images), labels


@dataclass(frozen=True)
class _Decoding:
    """A batch being decoded.

    `parts` write to `images`: uint8 [n, size, size, 3], on a CPU flipped and normalized [n, 3, size, size].
    """

    parts: list[Future[None]]
    images: Tensor
    labels: Tensor
    flipped: Tensor


def center_boxes(sizes: Tensor) -> Tensor:
    """Validation crops: a centered square of 224/256 of the shorter side, as in FFCV's CenterCrop.

    Args:
        sizes: height and width of images, int64 [N, 2].

    Returns:
        top, left, height, width, int64 [N, 4].
    """
    sides = (sizes.amin(dim=1, keepdim=True) * CENTER_CROP).long().clamp(min=1).expand(-1, 2)
    return torch.cat([(sizes - sides) // 2, sides], dim=1)


def random_boxes(sizes: Tensor, min_crop: float, generator: torch.Generator) -> Tensor:
    """Boxes of RandomResizedCrop: area uniform in [min_crop, 1], aspect ratio log-uniform in [3/4, 4/3].

    After ten tries, the largest centered box of an allowed ratio, as in torchvision and FFCV.

    Args:
        sizes: height and width of images, int64 [N, 2].
        min_crop: minimum fraction of the area, in (0, 1]; 0.08 in torchvision and FFCV.
        generator: generator of the random draws, on the CPU.

    Returns:
        top, left, height, width, int64 [N, 4].
    """
    boxes = _largest_boxes(sizes)
    todo = torch.arange(len(sizes))
    for _ in range(_TRIES):
        size = sizes[todo]
        draws = torch.rand(4, len(todo), generator=generator, dtype=torch.float64)
        area = size.prod(dim=1) * (min_crop + (1 - min_crop) * draws[0])
        ratio = torch.exp(math.log(_RATIO[0]) + math.log(_RATIO[1] / _RATIO[0]) * draws[1])
        side = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=1).round().long()
        corner = (draws[2:].T * (size - side + 1)).floor().long()
        fits = ((side > 0) & (side <= size)).all(dim=1)
        boxes[todo[fits]] = torch.cat([corner, side], dim=1)[fits]
        todo = todo[~fits]
    return boxes


def _largest_boxes(sizes: Tensor) -> Tensor:
    """The largest centered boxes of an allowed aspect ratio."""
    height, width = sizes.unbind(1)
    max_height = (width / _RATIO[0]).round().long()
    max_width = (height * _RATIO[1]).round().long()
    side = torch.minimum(sizes, torch.stack([max_height, max_width], dim=1))
    return torch.cat([(sizes - side) // 2, side], dim=1)
