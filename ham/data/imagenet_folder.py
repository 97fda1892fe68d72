"""ImageNet from the usual folder tree, decoded by worker processes (torchvision v2)."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Batch, Data, DataError, Loaders, Share, derived_seed
from .imagenet import CENTRE, Normalise, check_min_crop, folder


@dataclass
class ImageNetFolder(Data):
    """`root/train/<class>/*` and `root/val/<class>/*`.

    Training images are cropped at random (RandomResizedCrop) and flipped; validation images are
    centre-cropped.

    Args:
        root: the folder; empty for `imagenet` under the environment variable HAM_DATA.
        min_crop: least share of an image's area that a training crop covers.
        workers: decoding processes.
    """

    num_classes: int = 1000
    image_size: int = 224
    root: str = ""
    min_crop: float = 0.08
    workers: int = 8

    def load(
        self, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> Loaders:
        """Index the tree. Raises DataError where it is missing or has another number of classes."""
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
        if datasets["train"].classes != datasets["val"].classes:
            alone = sorted(set(datasets["train"].classes) ^ set(datasets["val"].classes))
            raise DataError(
                f"{root}/train and {root}/val differ in class folders: {', '.join(alone[:3])}; mend them"
            )
        if batch_size > len(datasets["train"]):
            raise DataError(
                f"batch_size={batch_size} exceeds the {len(datasets['train'])} training images at {root}"
            )
        train, val = datasets["train"], datasets["val"]
        shared = dict(batch_size=batch_size, rank=rank, ranks=ranks)
        return Loaders(
            FolderLoader(train, Share(len(train), seed=seed, **shared), self.workers, device),
            FolderLoader(val, Share(len(val), **shared), self.workers, device),
        )

    def _index(self, tree: Path, *, train: bool) -> Any:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        size = self.image_size
        crop = [
            v2.RandomResizedCrop(size, scale=(self.min_crop, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        center = [v2.Resize(round(size / CENTRE), antialias=True), v2.CenterCrop(size)]
        try:
            dataset = ImageFolder(str(tree), v2.Compose([v2.PILToTensor(), *(crop if train else center)]))
        except FileNotFoundError as error:
            raise DataError(f"{tree} has a class folder without images: {error}") from None
        if len(dataset.classes) != self.num_classes:
            raise DataError(
                f"{tree} has {len(dataset.classes)} class folders, expected {self.num_classes}: "
                f"check the tree, or set data.num_classes={len(dataset.classes)}"
            )
        return dataset


class _Seeded(torch.utils.data.Dataset):
    """Augments image i of an epoch from (epoch seed, i) alone: a resumed epoch sees the same crops."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, index))
            try:
                return self.dataset[index]
            except OSError as error:
                path = self.dataset.samples[index][0]
                raise DataError(f"{path} cannot be decoded ({error}): replace or remove it") from None


def _ignore_stop_signals(worker: int) -> None:
    """A signal to the whole process group must not kill a worker before the run has saved its checkpoint."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class FolderLoader:
    """Decoded batches, normalised on the device.

    Args:
        dataset: an indexed torchvision ImageFolder that yields uint8 images of one size.
        share: which of them, in what order; its seed is that of the augmentation too.
        workers: decoding processes, 0 for none.
        device: where batches go.
    """

    def __init__(self, dataset: Any, share: Share, workers: int, device: torch.device) -> None:
        self.dataset, self.share, self.workers, self.device = dataset, share, workers, device
        self._normalise = Normalise(device)

    def __len__(self) -> int:
        return len(self.share)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on; those before it are not decoded."""
        loader = torch.utils.data.DataLoader(
            _Seeded(self.dataset, derived_seed(self.share.seed or 0, f"crops {epoch}")),
            batch_size=self.share.part,
            sampler=self.share.order(epoch)[start * self.share.part :].tolist(),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_stop_signals,
            generator=torch.Generator(),  # the loader's own draw must not move the global stream
        )
        for images, classes in _until_closed(loader):
            yield (
                self._normalise(images.to(self.device, non_blocking=True)),
                classes.to(self.device, non_blocking=True),
            )


def _until_closed(loader: torch.utils.data.DataLoader) -> Iterator[Any]:
    """The loader's batches; its workers end with the iteration, or with the process at the latest."""
    batches = iter(loader)
    end_workers = getattr(batches, "_shutdown_workers", lambda: None)
    atexit.register(end_workers)  # Python would end them by SIGTERM, which they ignore
    try:
        yield from batches
    except DataError as error:  # from a worker it comes with the worker's traceback as its text
        raise DataError(
            str(error).strip().splitlines()[-1].partition("DataError: ")[2] or str(error)
        ) from None
    finally:
        end_workers()
        atexit.unregister(end_workers)
