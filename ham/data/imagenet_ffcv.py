"""ImageNet from FFCV's files: threads decode, crop and resize; the device flips and normalises."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .base import Batch, Data, DataError, Loaders, Share, derived_seed
from .beton import Beton
from .imagenet import CENTRE, Normalise, check_min_crop, folder

_RATIO, _TRIES = (3 / 4, 4 / 3), 10  # RandomResizedCrop of torchvision and of FFCV
_AHEAD = 3  # batches decoded while the device works on one


@dataclass
class ImageNetFFCV(Data):
    """Two files that `scripts/write_beton.py` writes.

    Training images are cropped at random (RandomResizedCrop) and flipped; validation images are
    centre-cropped. Order, crops and flips of an epoch are a function of (seed, epoch) alone.

    Args:
        root: their folder; empty for `imagenet` under the environment variable HAM_DATA.
        train: name of the file of training images.
        val: name of the file of validation images.
        min_crop: least share of an image's area that a training crop covers.
        workers: decoding threads, at least one.
    """

    num_classes: int = 1000
    image_size: int = 224
    root: str = ""
    train: str = "train_500_0.50_90.beton"
    val: str = "val_500_0.50_90.beton"
    min_crop: float = 0.08
    workers: int = 8

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> Loaders:
        """Map the files. Raises DataError where one is missing or wrong, or FFCV is not installed."""
        check_min_crop(self.min_crop)
        root = folder(self.root)
        paths = {"train": root / self.train, "val": root / self.val}
        for split, path in paths.items():
            if not path.is_file():
                raise DataError(
                    f"ImageNet's {split} images are not at {path}: write them with "
                    f"python scripts/write_beton.py --from SOURCE --to {root}, or set data.root, "
                    "or read a folder tree by data=imagenet_folder, or try +demo=digits"
                )
        train, val = (self._open(path) for path in paths.values())
        if (found := int(train.classes.max()) + 1) != self.num_classes:
            raise DataError(
                f"{train.path} has {found} classes, expected {self.num_classes}: "
                f"check the file, or set data.num_classes={found}"
            )
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
        shared = dict(batch_size=batch_size, rank=rank, ranks=ranks)
        return Loaders(
            loader(train, Share(len(train), seed=seed, **shared)), loader(val, Share(len(val), **shared))
        )

    def _open(self, path: Path) -> Beton:
        beton = Beton(path)
        lowest, highest = int(beton.classes.min()), int(beton.classes.max())
        if lowest < 0 or highest >= self.num_classes:
            raise DataError(
                f"{path} has labels from {lowest} to {highest}, expected 0 to {self.num_classes - 1}: "
                f"check the file, or set data.num_classes={highest + 1}"
            )
        return beton


class FFCVLoader:
    """Batches of one file, some of them decoded ahead.

    Args:
        beton: the file.
        share: which of its images, in what order. With a seed they are cropped at random and flipped.
        size: pixels a side of the batches' images.
        min_crop: least share of an image's area that a random crop covers.
        pool: the decoding threads. They outlive epochs: FFCV keeps a JPEG decoder for each thread there was.
        workers: how many they are.
        device: where batches go.
    """

    def __init__(
        self,
        beton: Beton,
        share: Share,
        size: int,
        min_crop: float,
        pool: ThreadPoolExecutor,
        workers: int,
        device: torch.device,
    ) -> None:
        self.beton, self.share, self.size, self.device = beton, share, size, device
        self.min_crop = min_crop
        self._pool, self._workers, self._normalise = pool, workers, Normalise(device)

    def __len__(self) -> int:
        return len(self.share)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on; those before it are not decoded."""
        order = self.share.order(epoch)[start * self.share.part :]
        boxes, flipped = self._views(epoch)
        ahead: deque[_Decoding] = deque()
        try:
            for first in range(0, len(order), self.share.part):
                numbers = order[first : first + self.share.part]
                ahead.append(self._start(numbers, boxes[numbers], flipped[numbers]))
                if len(ahead) > _AHEAD:
                    yield self._finish(ahead.popleft())
            while ahead:
                yield self._finish(ahead.popleft())
        finally:  # also where the loop over batches is left early
            wait([part for batch in ahead for part in batch.parts if not part.cancel()])

    def _views(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Crop box [N, 4] of every image in the file, and whether it is flipped, [N]."""
        if self.share.seed is None:
            return centre_boxes(self.beton.sizes), torch.zeros(len(self.beton), dtype=torch.bool)
        crops, flips = (
            torch.Generator().manual_seed(derived_seed(self.share.seed, f"{name} {epoch}"))
            for name in ("crops", "flips")
        )
        flipped = torch.rand(len(self.beton), generator=flips) < 0.5
        return random_boxes(self.beton.sizes, self.min_crop, crops), flipped

    def _start(self, numbers: Tensor, boxes: Tensor, flipped: Tensor) -> _Decoding:
        """Have one batch decoded, in as many parts as there are threads."""
        pinned = (
            self.device.type == "cuda"
        )  # torch gives pinned memory to the next batch once its copy is done
        images = torch.empty(len(numbers), self.size, self.size, 3, dtype=torch.uint8, pin_memory=pinned)
        cuts = (tensor.chunk(self._workers) for tensor in (numbers, boxes, images))
        parts = [self._pool.submit(self.beton.decode, *part) for part in zip(*cuts, strict=True)]
        classes = self.beton.classes[numbers]
        if pinned:
            classes, flipped = classes.pin_memory(), flipped.pin_memory()
        return _Decoding(parts, images, classes, flipped)

    def _finish(self, batch: _Decoding) -> Batch:
        for part in batch.parts:
            part.result()
        images, classes, flipped = (
            tensor.to(self.device, non_blocking=True)
            for tensor in (batch.images, batch.classes, batch.flipped)
        )
        images = images.permute(0, 3, 1, 2).contiguous()
        if self.share.seed is not None:
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
        return self._normalise(images), classes


@dataclass(frozen=True)
class _Decoding:
    """A batch on its way: `parts` are being written to `images` [n, size, size, 3]."""

    parts: list[Future[None]]
    images: Tensor
    classes: Tensor
    flipped: Tensor


def centre_boxes(sizes: Tensor) -> Tensor:
    """Validation crops: a centred square of 224/256 of the shorter side, as FFCV's CenterCrop cuts it.

    Args:
        sizes: height and width of images, int64 [N, 2].

    Returns:
        top, left, height, width, int64 [N, 4].
    """
    sides = (sizes.amin(dim=1, keepdim=True) * CENTRE).long().clamp(min=1).expand(-1, 2)
    return torch.cat([(sizes - sides) // 2, sides], dim=1)


def random_boxes(sizes: Tensor, min_crop: float, generator: torch.Generator) -> Tensor:
    """RandomResizedCrop's boxes: `min_crop` to 1 of the area, uniform; aspect ratio 3/4 to 4/3, log-uniform.

    Ten tries, then the largest centred box of an allowed ratio, as in torchvision and FFCV.

    Args:
        sizes: height and width of images, int64 [N, 2].
        min_crop: least share of the area, in (0, 1]; 0.08 in torchvision and FFCV.
        generator: on the CPU; it alone decides.

    Returns:
        top, left, height, width, int64 [N, 4].
    """
    boxes = _last_resort(sizes)
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


def _last_resort(sizes: Tensor) -> Tensor:
    height, width = sizes.unbind(1)
    low = (width / _RATIO[0]).round().long()  # height of a box as wide as the image at the lowest ratio
    wide = (height * _RATIO[1]).round().long()
    side = torch.stack([torch.minimum(height, low), torch.minimum(width, wide)], dim=1).clamp(min=1)
    return torch.cat([(sizes - side) // 2, side], dim=1)
