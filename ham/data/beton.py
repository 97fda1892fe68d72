"""FFCV's file format (`.beton`), read through FFCV's reader, JPEG decoder and resize.

FFCV's own `Loader` is left aside: its random crop cannot be seeded (ffcv#392), leaving it early leaks a
thread (ffcv#393), an error in that thread hangs the training, a misplaced operation hangs its compilation,
and its pinned buffers can be overwritten while a copy to the device still waits. Here a crop box is an
argument, and the memory that is written to belongs to the caller.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import DataError

_RAW, _JPEG = 1, 0  # ffcv.fields.rgb_image.IMAGE_MODES


class Beton:
    """An FFCV file with the fields `image` and `label`, checked on opening.

    Args:
        path: the file. It is mapped, not read: the system's page cache is the cache.

    Attributes:
        classes: int64 [N].
        sizes: height and width of each image, int64 [N, 2].
        compressed: which images are JPEGs, not plain pixels; bool [N].

    Raises:
        DataError: FFCV is not installed, or the file is damaged or something else.
    """

    def __init__(self, path: Path) -> None:
        ffcv = import_ffcv()
        self.path = path
        try:
            reader = ffcv.reader.Reader(str(path))
            if not reader.header["alloc_table_ptr"]:
                raise ValueError("writing it was cut short")
            fields = dict(zip(reader.field_names, reader.metadata_type.names, strict=True))
            images, classes = (reader.metadata[fields[name]] for name in ("image", "label"))
            self._data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
            self._places = _places(images, reader.alloc_table, len(self._data))
            self.classes = torch.from_numpy(classes.astype(np.int64))
        except (AssertionError, LookupError, ValueError, TypeError, OSError, MemoryError) as error:
            said = str(error).partition("\n")[0] or type(error).__name__
            raise DataError(
                f"{path} is no whole FFCV file of images and labels ({said}): "
                "write it anew with python scripts/write_beton.py --overwrite"
            ) from None
        self.sizes = torch.from_numpy(self._places[:, 1:3].copy())
        self.compressed = torch.from_numpy(self._places[:, 0] == _JPEG)
        self._decode = _kernel()

    def __len__(self) -> int:
        return len(self.classes)

    def decode(self, numbers: Tensor, boxes: Tensor, out: Tensor) -> None:
        """Decode images, cut boxes out of them and resize these by pixel area (OpenCV's INTER_AREA).

        The interpreter's lock is released: threads decode in parallel.

        Args:
            numbers: which images, int64 [n].
            boxes: top, left, height, width of each box, int64 [n, 4].
            out: uint8 [n, rows, columns, 3], written to.

        Raises:
            DataError: an image is damaged.
            ValueError: a box does not lie within its image.
        """
        far, sizes = boxes[:, :2] + boxes[:, 2:], self.sizes[numbers]
        if (boxes[:, :2] < 0).any() or (boxes[:, 2:] < 1).any() or (far > sizes).any():
            raise ValueError("a crop box does not lie within its image")
        places = self._places[numbers.numpy()]
        done = self._decode(self._data, places, boxes.contiguous().numpy(), out.numpy())
        if done < len(numbers):
            raise DataError(
                f"{self.path}: image {int(numbers[done])} cannot be decoded: "
                "write the file anew with python scripts/write_beton.py --overwrite"
            )


def _places(images: np.ndarray, allocated: np.ndarray, file_size: int) -> np.ndarray:
    """Mode, height, width, first byte, bytes of each image, int64 [N, 5]; ValueError where they cannot be."""
    allocated = np.sort(allocated[["ptr", "size"]], order="ptr")
    if not len(images) or not len(allocated):
        raise ValueError("no images")
    found = allocated[np.searchsorted(allocated["ptr"], images["data_ptr"]).clip(max=len(allocated) - 1)]
    columns = (images["mode"], images["height"], images["width"], found["ptr"], found["size"])
    places = np.stack([column.astype(np.int64) for column in columns], axis=1)
    mode, height, width, start, size = places.T
    if (start != images["data_ptr"].astype(np.int64)).any() or (start > file_size - size).any():
        raise ValueError("images lie beyond its end: it is cut short")
    raw = mode == _RAW
    if (
        (~raw & (mode != _JPEG)).any()
        or (size[raw] != (3 * height * width)[raw]).any()
        or (places[:, 1:] <= 0).any()
    ):
        raise ValueError("images of impossible size")
    return places


def import_ffcv() -> Any:
    """The package `ffcv`. Importing it sets torch's number of threads to one; that is undone."""
    threads = torch.get_num_threads()
    try:
        import ffcv
        import ffcv.libffcv
        import ffcv.reader
    except (ImportError, OSError) as error:  # OSError: a library that it is linked to is gone
        said = str(error).partition("\n")[0]
        raise DataError(
            f"FFCV cannot be loaded ({said}): run scripts/install_ffcv.sh (the system's libraries and "
            "pip install '.[ffcv]'), or choose data=imagenet_folder"
        ) from None
    finally:
        torch.set_num_threads(threads)
    return ffcv


@functools.cache
def _kernel() -> Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]:
    """(file, places [n, 5], boxes [n, 4], out [n, rows, columns, 3]) -> number of the first damaged, or n."""
    library = import_ffcv().libffcv
    from numba import int64, njit, types, uint8

    decode_jpeg, resize = library.ctypes_imdecode, library.ctypes_resize
    file = types.Array(uint8, 1, "C", readonly=True)

    @njit(int64(file, int64[:, ::1], int64[:, ::1], uint8[:, :, :, ::1]), nogil=True)
    def decode(data, places, boxes, out):
        pixels = np.empty(3 * (places[:, 1] * places[:, 2]).max(), dtype=np.uint8)
        for i in range(len(places)):
            mode, height, width, start, size = places[i]
            source = data.ctypes.data + start
            if mode == _JPEG:
                plain = (0, 0, 1, 1, False, False)  # no offset, no scaling, no crop, no flip
                if decode_jpeg(source, size, height, width, pixels.ctypes.data, height, width, *plain) != 0:
                    return i
                source = pixels.ctypes.data
            top, left, rows, columns = boxes[i]
            bounds = (top, top + rows, left, left + columns)
            resize(0, source, height, width, *bounds, out[i].ctypes.data, out.shape[1], out.shape[2])
        return len(places)

    return decode
