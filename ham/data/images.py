"""Image files as 8-bit RGB, and trees of class folders: the same for ImageNet's folders and its FFCV files.

Alpha channels are dropped and EXIF orientations ignored, as in torchvision's ImageFolder.
"""

from __future__ import annotations

import errno
import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ham.errors import one_line
from ham.files import read_bytes

from .base import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_NOT_DATA = {
    *("@eadir", "@recycle", "@tmp", "@recently-snapshot", "#recycle", "#snapshot"),  # of file servers
    *("$recycle.bin", "system volume information", "thumbs.db", "desktop.ini", "lost+found"),
    *("__macosx", "__pycache__"),
}


def decode_rgb(content: bytes, name: str) -> Image:
    """The first image in a file as 8-bit RGB.

    Images of 16 bits per channel keep the upper 8, whether gray or color. Palettes, CMYK and gray become RGB.

    Args:
        content: content of the file, in a format of Pillow.
        name: name of the file, for error messages.

    Raises:
        DataError: the image is damaged, has more pixels than Pillow's limit, or values without a known range.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _to_rgb(Image.open(io.BytesIO(content)))
    except Exception as error:  # Pillow's decoders can raise any exception
        reason = one_line(error)
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is not an image" if content else "it is empty"
        raise DataError(f"{name} cannot be decoded ({reason}): replace or remove it") from None


def _to_rgb(image: Image) -> Image:
    """Pillow's conversion, except for values of more than 8 bits, which it clips."""
    from PIL import Image

    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # also for nan
            raise ValueError("its numbers are not in 0 to 1; store it with 8 bits")
        pixels = np.rint(values * 255)
    elif image.mode.startswith("I"):  # I;16 and its byte orders; I is also Pillow's mode for 16 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError("its numbers are not in 0 to 65535; store it with 8 bits")
        pixels = values >> 8
    else:
        return image.convert("RGB")
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def read_rgb(path: str) -> Image:
    """`decode_rgb` of a file. Raises DataError also where it cannot be read."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): replace or remove it") from None
    return decode_rgb(content, path)


def is_data(name: str) -> bool:
    """Return True if a file or folder with this name is data, not a hidden or system file."""
    return not name.startswith(".") and name.lower() not in _NOT_DATA


def class_folders(tree: Path) -> list[str]:
    """Names of the class folders, sorted; a label is an index into them.

    Raises:
        DataError: the tree has no class folders, or cannot be read.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(tree) if _is_folder(entry) and is_data(entry.name))
    except OSError as error:
        raise DataError(f"{tree} cannot be read ({one_line(error)}): check the path") from None
    if not names:
        raise DataError(f"{tree} has no class folders: put the images of each class into a folder of its own")
    return names


@dataclass(frozen=True)
class ImageTree:
    """The images in a tree of class folders, in the order of torchvision's ImageFolder.

    Args:
        classes: names of the class folders; a label is an index into them.
        samples: path and label of each image.
        transform: transform of an RGB image.
    """

    classes: list[str]
    samples: list[tuple[str, int]]
    transform: Callable[[Image], Any]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Transformed image and label. Raises DataError if the image is damaged."""
        path, label = self.samples[index]
        return self.transform(read_rgb(path)), label


def open_tree(tree: Path, transform: Callable[[Image], Any] = np.asarray) -> ImageTree:
    """List the images of a tree; files and folders that `is_data` excludes do not count.

    Raises:
        DataError: class folders are missing, one has no images, the tree cannot be read, or a link in it
            leads to a folder that holds the link.
    """
    from torchvision.datasets.folder import is_image_file

    classes, samples, empty = class_folders(tree), [], []
    for label, name in enumerate(classes):
        folders = sorted(_folders(tree / name, os.path.realpath(tree)))
        paths = [os.path.join(folder, file) for folder, files in folders for file in sorted(files)]
        images = [(path, label) for path in paths if is_image_file(path)]
        samples += images
        empty += [] if images else [name]
    if empty:
        raise DataError(
            f"{tree} has class folders without images ({_first_names(empty)}): add images, or remove the "
            "folders"
        )
    return ImageTree(classes, samples, transform)


def _folders(folder: Path, *above: str) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below, through links, and the names of the files in each that `is_data` accepts.

    Args:
        folder: the folder.
        above: real paths of the folders that lead here: of the one above `folder`, and of those above a link.

    Raises:
        DataError: a folder cannot be read, or a link leads to a folder that holds it.
    """
    real = os.path.join(above[0], folder.name)
    if folder.is_symlink():
        real = os.path.realpath(folder)
        if any(Path(parent).is_relative_to(real) for parent in above):
            raise DataError(f"{folder} is a link to {real}, a folder that holds it: remove the link")
    else:
        above = above[1:]
    try:
        entries = [entry for entry in os.scandir(folder) if is_data(entry.name)]
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({one_line(error)}): check the folder") from None
    files = []
    for entry in entries:
        if _is_folder(entry):
            yield from _folders(Path(entry.path), real, *above)
        else:
            files.append(entry.name)
    yield str(folder), files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise DataError(f"{entry.path} cannot be read ({one_line(error)}): check the link") from None


def check_same_classes(train: list[str], val: list[str], place: Path) -> None:
    """Raise DataError unless both splits have the same classes, so that their labels mean the same.

    Args:
        train: names of the classes.
        val: names of the classes.
        place: location of the files, for the error message.
    """
    if unmatched := sorted(set(train) ^ set(val)):
        raise DataError(
            f"{place}: train and val differ in {len(unmatched)} classes ({_first_names(unmatched)}): "
            "both need the same folders"
        )


def _first_names(names: list[str]) -> str:
    """At most three of the names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
