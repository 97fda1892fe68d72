"""FFCV's file format (`.beton`), read through FFCV's reader, JPEG decoder and resize.

FFCV's own `Loader` is not used: its random crop cannot be seeded (ffcv#392), leaving an epoch early leaks a
thread (ffcv#393), an error in that thread hangs the training, a misplaced operation hangs its compilation,
and its pinned buffers can be overwritten while a copy to the device is pending. Here the crop box is an
argument, and the caller owns the output memory.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ham.errors import one_line
from ham.files import NotRegularError, open_binary

from .base import DataError

_RAW, _JPEG = 1, 0  # ffcv.fields.rgb_image.IMAGE_MODES
_CLASSES = b"SHA-256 of the class names: "


class Beton:
    """An FFCV file with the fields `image` and `label`, validated when it is opened.

    Args:
        path: the file. It is memory-mapped, so the page cache of the system is the cache.

    Attributes:
        labels: int64 [N].
        sizes: height and width of each image, int64 [N, 2].
        compressed: True for images stored as JPEG, False for raw pixels; bool [N].
        classes: see `class_digest`; "" where the file does not have it.

    Raises:
        DataError: FFCV is not installed, or the file is damaged or not an FFCV file of images and labels.
    """

    def __init__(self, path: Path) -> None:
        ffcv = import_ffcv()
        self.path = path
        try:
            open_binary(path).close()  # FFCV's reader would wait at a pipe
            reader = ffcv.reader.Reader(str(path))
            if not reader.header["alloc_table_ptr"]:
                raise ValueError("it was not written completely")
            fields = dict(zip(reader.field_names, reader.metadata_type.names, strict=True))
            images, labels = (reader.metadata[fields[name]] for name in ("image", "label"))
            self._data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
            self._sample_index = _sample_index(images, reader.alloc_table, len(self._data))
            self.labels = torch.from_numpy(labels.astype(np.int64))
            self.classes = _stored_digest(reader.field_descriptors[reader.field_names.index("label")])
        except (IsADirectoryError, NotRegularError):
            raise DataError(f"{path} is not a regular file: move it away") from None
        except (AssertionError, LookupError, ValueError, TypeError, OSError, MemoryError) as error:
            raise DataError(
                f"{path} is not a complete FFCV file of images and labels ({one_line(error)}): "
                "write it again with python scripts/write_beton.py --overwrite"
            ) from None
        self.sizes = torch.from_numpy(self._sample_index[:, 1:3].copy())
        self.compressed = torch.from_numpy(self._sample_index[:, 0] == _JPEG)
        self._decode = _kernel()

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, indices: Tensor, boxes: Tensor, out: Tensor) -> None:
        """Decode images, crop them to boxes, and resize the crops by pixel area (OpenCV's INTER_AREA).

        Releases the GIL, so that threads decode in parallel.

        Args:
            indices: indices of the images, int64 [n].
            boxes: top, left, height, width of each crop, int64 [n, 4].
            out: uint8 [n, rows, columns, 3]; overwritten.

        Raises:
            DataError: an image is damaged.
            ValueError: a box is not inside its image.
        """
        corners, sides = boxes[:, :2], boxes[:, 2:]
        if (corners < 0).any() or (sides < 1).any() or (corners + sides > self.sizes[indices]).any():
            raise ValueError("a crop box is not inside its image")
        sample_index = self._sample_index[indices.numpy()]
        decoded = self._decode(self._data, sample_index, boxes.contiguous().numpy(), out.numpy())
        if decoded < len(indices):
            raise DataError(
                f"{self.path}: image {int(indices[decoded])} cannot be decoded: "
                "write the file again with python scripts/write_beton.py --overwrite"
            )


def _sample_index(images: np.ndarray, allocated: np.ndarray, file_size: int) -> np.ndarray:
    """Mode, height, width, offset and size in bytes of each image, int64 [N, 5]; ValueError if impossible."""
    allocated = np.sort(allocated[["ptr", "size"]], order="ptr")
    if not len(images) or not len(allocated):
        raise ValueError("no images")
    entries = allocated[np.searchsorted(allocated["ptr"], images["data_ptr"]).clip(max=len(allocated) - 1)]
    columns = (images["mode"], images["height"], images["width"], entries["ptr"], entries["size"])
    sample_index = np.stack([column.astype(np.int64) for column in columns], axis=1)
    mode, height, width, start, size = sample_index.T
    if (start != images["data_ptr"].astype(np.int64)).any() or (start > file_size - size).any():
        raise ValueError("images lie beyond the end of the file: it is truncated")
    raw = mode == _RAW
    if (
        (~raw & (mode != _JPEG)).any()
        or (size[raw] != (3 * height * width)[raw]).any()
        or (sample_index[:, 1:] <= 0).any()
    ):
        raise ValueError("image sizes are impossible")
    return sample_index


def class_digest(classes: Sequence[str]) -> str:
    """Identifies the names of classes in their order, and so what labels mean; 64 hexadecimal digits."""
    return hashlib.sha256(b"\n".join(map(os.fsencode, classes))).hexdigest()


def label_field(classes: Sequence[str]) -> Any:
    """FFCV's field of a label, with the digest of the class names in its description.

    FFCV reserves 1,024 bytes for arguments of a field, and ignores those of this one.
    """
    field = import_ffcv().fields.IntField()
    arguments = np.frombuffer((_CLASSES + class_digest(classes).encode()).ljust(1024, b"\0"), dtype=np.uint8)
    field.to_binary = lambda: [arguments]
    return field


def _stored_digest(field: np.ndarray) -> str:
    content = bytes(field["arguments"])
    return content[len(_CLASSES) :].rstrip(b"\0").decode() if content.startswith(_CLASSES) else ""


def import_ffcv() -> Any:
    """The package `ffcv`. Importing it sets torch's number of threads to 1; this function restores it.

    It starts numba's threads. Those of TBB, numba's first choice, do not end on a machine with one processor;
    nothing here uses any of them.

    Raises:
        DataError: FFCV is not installed, or a library that it links to is missing.
    """
    threads = torch.get_num_threads()
    try:
        from numba import config

        if config.THREADING_LAYER == "default":  # not chosen with NUMBA_THREADING_LAYER
            config.THREADING_LAYER = "workqueue"
        import ffcv
        import ffcv.libffcv
        import ffcv.reader
    except (ImportError, OSError) as error:  # OSError: a library that it links to is missing
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"FFCV cannot be loaded ({reason}): run scripts/install_ffcv.sh (the system's libraries and "
            "pip install '.[ffcv]'), or choose data=imagenet_folder"
        ) from None
    finally:
        torch.set_num_threads(threads)
    return ffcv


@functools.cache
def _kernel() -> Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]:
    """(file, sample index, boxes, out), as in `Beton.decode` -> number of images before a damaged one."""
    library = import_ffcv().libffcv
    from numba import int64, njit, types, uint8

    decode_jpeg, resize = library.ctypes_imdecode, library.ctypes_resize
    file = types.Array(uint8, 1, "C", readonly=True)

    @njit(int64(file, int64[:, ::1], int64[:, ::1], uint8[:, :, :, ::1]), nogil=True)
    def decode(data, sample_index, boxes, out):
        pixels = np.empty(3 * (sample_index[:, 1] * sample_index[:, 2]).max(), dtype=np.uint8)
        for i in range(len(sample_index)):
            mode, height, width, start, size = sample_index[i]
            source = data.ctypes.data + start
            if mode == _JPEG:
                plain = (0, 0, 1, 1, False, False)  # no offset, no scaling, no crop, no flip
                if decode_jpeg(source, size, height, width, pixels.ctypes.data, height, width, *plain) != 0:
                    return i
                source = pixels.ctypes.data
            top, left, rows, columns = boxes[i]
            bounds = (top, top + rows, left, left + columns)
            resize(0, source, height, width, *bounds, out[i].ctypes.data, out.shape[1], out.shape[2])
        return len(sample_index)

    return decode
