"""Writes ImageNet as FFCV's files and checks them; beton.py reads them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ham.files import lock_file, open_binary

from .base import DataError
from .beton import Beton, class_digest, import_ffcv, label_field
from .beton_encoder import encode_all
from .imagenet_source import COUNTS, Source, class_names, is_official, open_source
from .images import check_same_classes

_CHECKED = 16  # images whose pixels are compared
_LARGEST = 26_754  # pixels a side: a page of FFCV holds 2**31 bytes


@dataclass(frozen=True)
class Format:
    """How images are stored; the defaults are those of the paper's code base (write_imagenet.sh 500 0.50 90).

    Args:
        max_resolution: pixels of the longer side, at most.
        jpeg_share: fraction of images stored as JPEG; the others are raw pixels.
        quality: quality of the JPEGs, 1 to 100.
    """

    max_resolution: int = 500
    jpeg_share: float = 0.5
    quality: int = 90

    def __post_init__(self) -> None:
        """Raise DataError if a value is out of range."""
        is_valid = 1 <= self.max_resolution <= _LARGEST and 0 <= self.jpeg_share <= 1
        if not is_valid or not 1 <= self.quality <= 100:
            raise DataError(
                f"{self} is out of range: use a resolution in [1, {_LARGEST}], a share in [0, 1] and a "
                "quality in [1, 100]"
            )

    def file_name(self, split: str) -> str:
        """The name that ffcv-imagenet gives the file."""
        return f"{split}_{self.max_resolution}_{self.jpeg_share:.2f}_{self.quality}.beton"

    def fields(self, classes: Sequence[str]) -> dict[str, Any]:
        """FFCV's fields of an image and its label, an index into `classes`."""
        fields = import_ffcv().fields
        image = fields.RGBImageField(
            write_mode="proportion",
            max_resolution=self.max_resolution,
            compress_probability=self.jpeg_share,
            jpeg_quality=self.quality,
        )
        return {"image": image, "label": label_field(classes)}


def write_split(
    source: Path,
    to: Path,
    split: str,
    image_format: Format,
    workers: int,
    expect: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write the file of a split, or check the existing one; returns a line that describes it.

    Args:
        source: folder with the split's tree or ILSVRC2012's archives.
        to: folder of the file; created if missing.
        split: "train" or "val".
        image_format: storage format of the images.
        workers: number of processes.
        expect: "imagenet" rejects other numbers of images and classes, "any" does not; None is "imagenet"
            for the official archives.
        overwrite: replace an existing file.

    Raises:
        DataError: the source is damaged, or the existing file does not match it.
        OSError: the file cannot be written.
    """
    is_imagenet = is_official(source, split) if expect is None else expect == "imagenet"
    images = open_source(source, split)
    if (others := class_names(source, "val" if split == "train" else "train")) is not None:
        check_same_classes(images.classes, others, source)
    if is_imagenet:
        _expect_imagenet(images, split)
    to.mkdir(parents=True, exist_ok=True)
    path = to / image_format.file_name(split)
    contents = f"{len(images)} images of {len(images.classes)} classes"
    if path.exists() and not overwrite:
        check(path, images, image_format)
        return f"{path}: kept, {contents}"
    write(path, images, image_format, max(1, workers))
    return f"{path}: {contents}, {path.stat().st_size / 1e9:.2f} GB"


def check_targets(to: Path, names: Sequence[str], overwrite: bool) -> None:
    """Check that these files can be written to a folder, unless they exist and are kept.

    Raises:
        DataError: a folder, a pipe or a device has the name of a file.
        OSError: the folder cannot be written to.
    """
    for path in (to / name for name in names):
        if path.exists() and not path.is_file():
            problem = "a folder" if path.is_dir() else "not a regular file"
            raise DataError(f"{path} is {problem}: move it away, or write to another folder")
    if overwrite or not all((to / name).exists() for name in names):
        existing = next(folder for folder in (to, *to.absolute().parents) if os.path.lexists(folder))
        try:
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            error.filename = str(to)
            raise


def _expect_imagenet(source: Source, split: str) -> None:
    actual, expected = (len(source), len(source.classes)), (COUNTS[split], 1000)
    if actual != expected:
        raise DataError(
            f"{split}: {actual[0]} images of {actual[1]} classes, ImageNet has {expected[0]} of "
            f"{expected[1]}: download it again, or give --expect any"
        )


def write(path: Path, source: Source, image_format: Format, workers: int) -> None:
    """Write a file under a temporary name, check it, and rename it.

    Raises:
        DataError: an image of the source is damaged, or another process is writing the same file.
        OSError: the disk is full or cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")  # its fixed name reuses what a killed run left
    existed = partial.exists()
    try:
        lock = lock_file(partial)
    except BlockingIOError as error:
        raise DataError(f"another process is writing {path} ({error.strerror}): wait for it") from None
    except OSError:
        if not existed:
            partial.unlink(missing_ok=True)
        raise
    with lock:
        try:
            fields = image_format.fields(source.classes)
            encode_all(partial, source, fields, image_format.max_resolution, min(workers, len(source)))
            with open_binary(partial) as file:
                os.fsync(file.fileno())
            check(partial, source, image_format)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):  # the folder may be gone, or read-only by now
                partial.unlink()
            raise


def check(path: Path, source: Source, image_format: Format) -> None:
    """Compare a file with its source: class names, all labels, and size and pixels of some images.

    Raises:
        DataError: it is not what `source` and `image_format` give.
    """
    import cv2

    cv2.setNumThreads(0)  # a later fork must not inherit OpenCV's threads
    beton = Beton(path)
    if beton.classes not in ("", class_digest(source.classes)):
        raise DataError(f"{path} has other classes than the source: write it again with --overwrite")
    if beton.labels.tolist() != source.labels:
        raise DataError(f"{path} has other images or labels than the source: write it again with --overwrite")
    for number in np.linspace(0, len(source) - 1, min(len(source), _CHECKED), dtype=int).tolist():
        is_jpeg = bool(beton.compressed[number])
        expected = _stored_pixels(source.image(number), image_format, is_jpeg)
        height, width = beton.sizes[number].tolist()
        actual = torch.empty(1, height, width, 3, dtype=torch.uint8)
        beton.decode(torch.tensor([number]), torch.tensor([[0, 0, height, width]]), actual)
        difference = np.inf
        if expected.shape == (height, width, 3):
            difference = np.abs(actual[0].numpy().astype(int) - expected).mean()
        if difference > (2 if is_jpeg else 0):  # JPEG decoders differ in rounding
            raise DataError(
                f"{path}: {source.names[number]} is stored wrongly: write it again with --overwrite"
            )


def _stored_pixels(image: np.ndarray, image_format: Format, is_jpeg: bool) -> np.ndarray:
    """The image [H, W, 3] as it is read back: resized and, if so stored, encoded as JPEG."""
    import cv2

    resized = import_ffcv().fields.rgb_image.resizer(image, image_format.max_resolution)
    if not is_jpeg:
        return resized
    quality = [cv2.IMWRITE_JPEG_QUALITY, image_format.quality]
    packed = cv2.imencode(".jpg", cv2.cvtColor(resized, cv2.COLOR_RGB2BGR), quality)[1]
    return cv2.cvtColor(cv2.imdecode(packed, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
