"""Sources of ImageNet's images: an image-folder tree, or the official archives, read without unpacking."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ham.errors import one_line
from ham.files import open_binary

from .base import DataError
from .images import class_folders, decode_rgb, open_tree
from .tars import members, read_to_end

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
COUNTS = {"train": 1_281_167, "val": 50_000}
"""Number of images in ImageNet-1k."""


@dataclass
class Source:
    """Images in the order of torchvision's ImageFolder on the image-folder tree.

    Args:
        classes: names of the classes (WordNet ids), sorted; a label is an index into it.
        labels: labels of the images.
        sample_index: file, offset and size in bytes (None: to the end) of each image.
        names: names of the images, for error messages.
    """

    classes: list[str]
    labels: list[int] = field(default_factory=list)
    sample_index: list[tuple[str, int, int | None]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """RGB pixels, uint8 [height, width, 3], see `decode_rgb`. Opens the file itself.

        Raises:
            DataError: the image is damaged or cannot be read.
        """
        path, offset, size = self.sample_index[index]
        try:
            with open_binary(path) as file:
                file.seek(offset)
                content = file.read(-1 if size is None else size)
        except OSError as error:
            raise DataError(
                f"{self.names[index]} cannot be read ({one_line(error)}): replace or remove it"
            ) from None
        return np.asarray(decode_rgb(content, self.names[index]))


def open_source(folder: Path, split: str) -> Source:
    """Index the images of a split.

    Args:
        folder: contains train/<class>/ and val/<class>/, or the official archives.
        split: "train" or "val".

    Raises:
        DataError: the images are missing or invalid.
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
            f"{folder / ARCHIVES[split]} or {DEVKIT} is damaged ({error}): download it again"
        ) from None
    except OSError as error:
        raise DataError(f"{folder / ARCHIVES[split]} cannot be read ({one_line(error)}): check it") from None


def is_official(folder: Path, split: str) -> bool:
    """Return True if `split` is read from the official archive."""
    return not (folder / split).is_dir() and (folder / ARCHIVES[split]).is_file()


def _from_tree(folder: Path) -> Source:
    tree = open_tree(folder)
    paths, labels = zip(*tree.samples, strict=True)
    return Source(tree.classes, list(labels), [(path, 0, None) for path in paths], list(paths))


def class_names(folder: Path, split: str) -> list[str] | None:
    """Names of the classes of a split, without a look at its images; None where they are not there.

    Raises:
        DataError: the tree or the devkit is invalid.
    """
    if (folder / split).is_dir():
        return class_folders(folder / split)
    is_there = (folder / ARCHIVES[split]).is_file() and (folder / DEVKIT).is_file()
    return _devkit(folder / DEVKIT)[0] if is_there else None


def _from_train_archive(folder: Path) -> Source:
    """The training archive contains one archive per class; images are addressed by their offsets."""
    archive = folder / ARCHIVES["train"]
    with open_binary(archive) as file:
        inner = sorted(members(file, 0), key=lambda member: member.name)
        classes = [Path(member.name).stem for member in inner]
        if not classes or any(Path(member.name).suffix != ".tar" for member in inner):
            raise DataError(f"{archive} does not consist of one .tar per class: download it again")
        if (folder / DEVKIT).is_file() and classes != _devkit(folder / DEVKIT)[0]:
            raise DataError(f"the classes in {archive} are not those of {DEVKIT}: download both again")
        source = Source(classes)
        for label, outer in enumerate(inner):
            images = sorted(members(file, outer.offset_data), key=lambda member: member.name)
            end = outer.offset_data + outer.size
            if not images or any(image.offset_data + image.size > end for image in images):
                raise DataError(f"{outer.name} in {archive} is empty or damaged: download it again")
            for image in images:
                source.labels.append(label)
                source.sample_index.append((str(archive), image.offset_data, image.size))
                source.names.append(f"{image.name} in {outer.name} in {archive}")
    return source


def _from_val_archive(folder: Path) -> Source:
    """The names of validation images contain their numbers; the devkit has the label of each number."""
    archive, devkit = folder / ARCHIVES["val"], folder / DEVKIT
    if not devkit.is_file():
        raise DataError(
            f"{DEVKIT}, which has the labels of the validation images, is missing in {folder}: add it"
        )
    classes, labels = _devkit(devkit)
    with open_binary(archive) as file:
        images = list(members(file, 0))
    try:
        numbers = [int(Path(image.name).stem.rpartition("_")[2]) for image in images]
    except ValueError:
        raise DataError(f"{archive} has images without a number in their name: download it again") from None
    if sorted(numbers) != list(range(1, len(labels) + 1)):
        raise DataError(
            f"{archive} has {len(images)} images, {devkit} has {len(labels)} labels: download both again"
        )
    source = Source(classes)
    labeled = zip((labels[number - 1] for number in numbers), images, strict=True)
    for label, image in sorted(labeled, key=lambda pair: (pair[0], pair[1].name)):
        source.labels.append(label)
        source.sample_index.append((str(archive), image.offset_data, image.size))
        source.names.append(f"{image.name} in {archive}")
    return source


def _devkit(path: Path) -> tuple[list[str], list[int]]:
    """Sorted WordNet ids, and the label of every validation image: an index into them.

    The devkit numbers classes by ILSVRC2012_ID, whose order differs from that of the WordNet ids.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise DataError(f"reading {path.name} needs scipy: pip install '.[ffcv]'") from None
    prefix = "ILSVRC2012_devkit_t12/data/"
    try:
        with read_to_end(path) as archive:
            table = archive.extractfile(prefix + "meta.mat").read()
            lines = archive.extractfile(prefix + "ILSVRC2012_validation_ground_truth.txt").read().split()
        synsets = loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"].astype(int) == 0]  # the others are their hypernyms
        wnid = dict(zip(leaves["ILSVRC2012_ID"].astype(int), map(str, leaves["WNID"]), strict=True))
        classes = sorted(wnid.values())
        label_of = {name: label for label, name in enumerate(classes)}
        return classes, [label_of[wnid[int(line)]] for line in lines]
    except Exception as error:  # scipy and zlib can raise anything for a damaged file
        raise DataError(
            f"{path} is not the devkit, or is damaged ({one_line(error)}): download it again"
        ) from None
