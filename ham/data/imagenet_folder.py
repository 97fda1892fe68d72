"""ImageNet from an image-folder tree, decoded by worker processes (torchvision v2)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import (
    Batch,
    DataError,
    ImageData,
    Loaders,
    RankSampler,
    derived_seed,
    explain_killed_workers,
    register,
)
from .imagenet import CENTER_CROP, Normalize, check_min_crop, folder
from .images import ImageTree, check_same_classes, open_tree


@register("imagenet_folder")
@dataclass
class ImageNetFolder(ImageData):
    """`root/train/<class>/*` and `root/val/<class>/*`.

    Training images are cropped at random (RandomResizedCrop) and flipped; validation images are
    center-cropped.

    Args:
        root: the folder; empty: $HAM_DATA/imagenet.
        min_crop: minimum fraction of an image's area that a training crop covers.
        workers: number of decoding processes for training, and as many for validation.
    """

    num_classes: int = 1000
    image_size: int = 224
    root: str = ""
    min_crop: float = 0.08
    workers: int = 8

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> Loaders:
        """Index the tree. Raises DataError if it is missing or has another number of classes."""
        check_min_crop(self.min_crop)
        root = folder(self.root)
        datasets = {}
        for split in ("train", "val"):
            if not (root / split).is_dir():
                raise DataError(
                    f"ImageNet's {split} images are not at {root / split}: set data.root to a folder with "
                    "train/<class>/ and val/<class>/ (else $HAM_DATA/imagenet is used), or try +demo=digits"
                )
            datasets[split] = self._index(root / split, train=split == "train")
        check_same_classes(datasets["train"].classes, datasets["val"].classes, root)
        if batch_size > len(datasets["train"]):
            raise DataError(
                f"batch_size={batch_size} exceeds the {len(datasets['train'])} training images at {root}"
            )
        train, val = datasets["train"], datasets["val"]
        shared = dict(batch_size=batch_size, rank=rank, world_size=world_size)
        return Loaders(
            FolderLoader(train, RankSampler(len(train), seed=seed, **shared), self.workers, device),
            FolderLoader(val, RankSampler(len(val), **shared), self.workers, device),
        )

    def _index(self, tree: Path, *, train: bool) -> ImageTree:
        from torchvision.transforms import v2

        size = self.image_size
        crop = [
            v2.RandomResizedCrop(size, scale=(self.min_crop, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        center = [v2.Resize(round(size / CENTER_CROP), antialias=True), v2.CenterCrop(size)]
        dataset = open_tree(tree, v2.Compose([v2.PILToTensor(), *(crop if train else center)]))
        if len(dataset.classes) != self.num_classes:
            raise DataError(
                f"{tree} has {len(dataset.classes)} class folders, expected {self.num_classes}: "
                f"check the tree, or set data.num_classes={len(dataset.classes)}"
            )
        return dataset


class _SeededDataset(torch.utils.data.Dataset):
    """Items are (epoch seed, i), which seed the augmentation of image i: a resumed epoch has equal crops."""

    def __init__(self, dataset: ImageTree) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(*item))
            return self.dataset[item[1]]


class _EpochSampler(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """The batches of one epoch, which is set before the loader is iterated."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.seed, self.indices = 0, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.indices), self.batch_size):
            batch = self.indices[start : start + self.batch_size]
            yield [(self.seed, index) for index in batch.tolist()]


def _ignore_stop_signals(worker: int) -> None:
    """A signal to the process group must not kill a worker before the run has saved its checkpoint."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _end_workers(loader: torch.utils.data.DataLoader) -> None:
    """End the worker processes of a loader, which the next pass starts again."""
    batches, loader._iterator = loader._iterator, None
    if batches is not None:
        batches._shutdown_workers()


class FolderLoader:
    """Decoded batches, normalized on the device. Worker processes start once and wait between epochs.

    Args:
        dataset: a tree that yields uint8 images of one size.
        sampler: indices and order of the images that this rank reads; its seed also seeds the augmentation.
        workers: number of decoding processes; 0 decodes in this process.
        device: device of the batches.
    """

    def __init__(self, dataset: ImageTree, sampler: RankSampler, workers: int, device: torch.device) -> None:
        self._dataset, self.sampler, self.workers, self.device = dataset, sampler, workers, device
        self._normalize = Normalize(device)
        self._call: object = None
        self._process = 0
        self._order = _EpochSampler(sampler.local_batch_size)
        self._loader = torch.utils.data.DataLoader(
            _SeededDataset(dataset),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_stop_signals,
            generator=torch.Generator(),  # the loader's own draw must not advance the global stream
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def content(self) -> Any:
        """The classes, and folder, file name and label of each image."""
        names = (f"{'/'.join(Path(path).parts[-2:])} {label}" for path, label in self._dataset.samples)
        return self._dataset.classes, "\n".join(names)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from batch `start` on; earlier ones are not decoded.

        Raises:
            RuntimeError: a later call has begun; the worker processes read one epoch at a time.
        """
        call = self._call = object()
        self._order.seed = derived_seed(self.sampler.seed or 0, f"crops {epoch}")
        self._order.indices = self.sampler.indices(epoch)[start * self.sampler.local_batch_size :]
        for images, labels in self._decode_batches():
            yield (
                self._normalize(images.to(self.device, non_blocking=True)),
                labels.to(self.device, non_blocking=True),
            )
            if call is not self._call:
                raise RuntimeError(
                    "another pass over this FolderLoader has begun: finish one before the next"
                )

    def _decode_batches(self) -> Iterator[Any]:
        try:
            with explain_killed_workers():
                if self.workers:
                    self._end_workers_in_time()
                yield from self._loader
        except Exception as error:
            _end_workers(self._loader)
            if not isinstance(error, DataError):
                raise
            last = str(error).strip().splitlines()[-1]  # from a worker, its text is the worker's traceback
            raise DataError(last.partition("DataError: ")[2] or str(error)) from None

    def _end_workers_in_time(self) -> None:
        """Let this process end the workers when it ends, or no longer needs this object.

        SIGTERM, by which multiprocessing and torch end what is left, does not end them.
        """
        if self._process != os.getpid():  # a copy of a process does not inherit finalizers
            self._process = os.getpid()
            Finalize(self, _end_workers, [self._loader], exitpriority=20)  # before the queues close, at 10
