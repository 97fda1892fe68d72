"""Where ImageNet's images come from: an image-folder tree, or the official archives, which stay packed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .base import DataError

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
COUNTS = {"train": 1_281_167, "val": 50_000}
"""Images of ImageNet-1k."""


@dataclass
class Source:
    """Images in the order in which torchvision's ImageFolder has them on the usual tree.

    Args:
        classes: names of the classes (WordNet ids), sorted; a label is a position in it.
        labels: of each image.
        places: file, first byte and bytes (None: all) of each image.
        names: what to call each image in a message.
    """

    classes: list[str]
    labels: list[int] = field(default_factory=list)
    places: list[tuple[str, int, int | None]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, number: int) -> np.ndarray:
        """RGB pixels, uint8 [height, width, 3]; grey and CMYK images are converted. Opens its own handle.

        Raises:
            DataError: the image is damaged.
        """
        from PIL import Image

        path, first, size = self.places[number]
        try:
            with open(path, "rb") as file:
                file.seek(first)
                content = file.read(-1 if size is None else size)
            return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        except Exception as error:  # Pillow's decoders raise almost anything
            raise DataError(
                f"{self.names[number]} cannot be decoded ({error}): replace or remove it"
            ) from None


def open_source(folder: Path, split: str) -> Source:
    """The images of `split` ("train" or "val") under `folder`.

    Args:
        folder: with train/<class>/ and val/<class>/, or with the official archives.
        split: which part.

    Raises:
        DataError: neither is there, or it is not what it should be.
    """
    if (folder / split).is_dir():
        return _from_tree(folder / split)
    if not (folder / ARCHIVES[split]).is_file():
        raise DataError(
            f"no {split} images at {folder}: --from must have {split}/<class>/ or {ARCHIVES[split]}"
        )
    try:
        return _from_train_archive(folder) if split == "train" else _from_val_archive(folder)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{folder / ARCHIVES[split]} or {DEVKIT} is damaged ({error}): fetch it anew"
        ) from None


def is_official(folder: Path, split: str) -> bool:
    """Whether `split` is read from the official archive."""
    return not (folder / split).is_dir() and (folder / ARCHIVES[split]).is_file()


def _from_tree(folder: Path) -> Source:
    from torchvision.datasets import ImageFolder

    try:
        tree = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} has no class folder, or one without images: {error}".splitlines()[0]
        ) from None
    paths, labels = zip(*tree.samples, strict=True)
    return Source(tree.classes, list(labels), [(path, 0, None) for path in paths], list(paths))


def _from_train_archive(folder: Path) -> Source:
    """An archive of one archive a class; its members are found by their offsets."""
    archive = folder / ARCHIVES["train"]
    with open(archive, "rb") as file:
        inner = sorted(_members(file, 0), key=lambda member: member.name)
        classes = [Path(member.name).stem for member in inner]
        if not classes or any(Path(member.name).suffix != ".tar" for member in inner):
            raise DataError(f"{archive} holds something else than one .tar a class: fetch it anew")
        if (folder / DEVKIT).is_file() and classes != _devkit(folder / DEVKIT)[0]:
            raise DataError(f"the classes in {archive} are not those of {DEVKIT}: fetch both anew")
        source = Source(classes)
        for label, outer in enumerate(inner):
            images = sorted(_members(file, outer.offset_data), key=lambda member: member.name)
            end = outer.offset_data + outer.size
            if not images or any(image.offset_data + image.size > end for image in images):
                raise DataError(f"{outer.name} in {archive} is empty or damaged: fetch it anew")
            for image in images:
                source.labels.append(label)
                source.places.append((str(archive), image.offset_data, image.size))
                source.names.append(f"{image.name} in {outer.name} in {archive}")
    return source


def _from_val_archive(folder: Path) -> Source:
    """Images numbered in their names; their classes are lines of the devkit."""
    archive, devkit = folder / ARCHIVES["val"], folder / DEVKIT
    if not devkit.is_file():
        raise DataError(
            f"the classes of the validation images are in {DEVKIT}, which is not in {folder}: add it"
        )
    classes, truth = _devkit(devkit)
    with open(archive, "rb") as file:
        images = list(_members(file, 0))
    try:
        numbers = [int(Path(image.name).stem.rpartition("_")[2]) for image in images]
    except ValueError:
        raise DataError(f"{archive} holds images without a number in their name: fetch it anew") from None
    if sorted(numbers) != list(range(1, len(truth) + 1)):
        raise DataError(
            f"{archive} has {len(images)} images, {devkit} {len(truth)} classes of them: fetch both anew"
        )
    source = Source(classes)
    labelled = zip((truth[number - 1] for number in numbers), images, strict=True)
    for label, image in sorted(labelled, key=lambda pair: (pair[0], pair[1].name)):
        source.labels.append(label)
        source.places.append((str(archive), image.offset_data, image.size))
        source.names.append(f"{image.name} in {archive}")
    return source


def _members(file: BinaryIO, start: int) -> Iterator[tarfile.TarInfo]:
    """Files of the archive that begins at byte `start`; their offsets count from the beginning of `file`."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        yield from (member for member in archive if member.isfile())


def _devkit(path: Path) -> tuple[list[str], list[int]]:
    """Sorted WordNet ids, and the label of every validation image: a position among them.

    The devkit counts classes in an order of its own (ILSVRC2012_ID), which is not that of the WordNet ids.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise DataError(f"{path.name} is read with scipy: pip install '.[ffcv]'") from None
    inside = "ILSVRC2012_devkit_t12/data/"
    try:
        with tarfile.open(path, "r:gz") as archive:
            table = archive.extractfile(inside + "meta.mat").read()
            lines = archive.extractfile(inside + "ILSVRC2012_validation_ground_truth.txt").read().split()
        synsets = loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"].astype(int) == 0]  # the rest are their hypernyms
        wnid = dict(zip(leaves["ILSVRC2012_ID"].astype(int), map(str, leaves["WNID"]), strict=True))
        classes = sorted(wnid.values())
        label = {name: position for position, name in enumerate(classes)}
        return classes, [label[wnid[int(line)]] for line in lines]
    except (LookupError, ValueError, TypeError, OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is not the devkit, or damaged ({error}): fetch it anew") from None
