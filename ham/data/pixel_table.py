"""uint8 pixels to normalized numbers by a table, in the threads that decode: for training on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PixelTable:
    """Flips images and replaces each value of a pixel by a number, in one pass without the GIL.

    Args:
        table: float32 [3, 256], the number of each value of each channel.
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table.contiguous().numpy()
        self._fill = _kernel()

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor]) -> PixelTable:
        """The table of a function of uint8 images [N, 3, H, W] that maps each pixel by itself to float32."""
        values = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
        return cls(function(values).view(3, 256))

    def __call__(self, images: Tensor, flipped: Tensor, out: Tensor) -> None:
        """Write the numbers of a batch.

        Args:
            images: uint8 [n, H, W, 3].
            flipped: bool [n], True for images that are mirrored left to right.
            out: float32 [n, 3, H, W]; overwritten.
        """
        self._fill(images.numpy(), flipped.numpy(), self._table, out.numpy())


@functools.cache
def _kernel() -> Any:
    from numba import boolean, float32, njit, uint8, void

    signature = void(uint8[:, :, :, ::1], boolean[::1], float32[:, ::1], float32[:, :, :, ::1])

    @njit(signature, nogil=True)
    def fill(images, flipped, table, out):
        _, rows, columns, channels = images.shape
        for i in range(len(images)):
            for row in range(rows):
                for channel in range(channels):
                    line, numbers = out[i, channel, row], table[channel]
                    pixels = images[i, row]
                    if flipped[i]:
                        for column in range(columns):
                            line[columns - 1 - column] = numbers[pixels[column, channel]]
                    else:
                        for column in range(columns):
                            line[column] = numbers[pixels[column, channel]]

    return fill
