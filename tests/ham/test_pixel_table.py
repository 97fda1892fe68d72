"""The table of the FFCV pipeline on a CPU gives the numbers that the device computes elsewhere."""

import pytest
import torch

from ham.data.imagenet import Normalize

pytest.importorskip("numba", reason="comes with FFCV")


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (4, 7, 7), (2, 32, 33), (0, 4, 4)])
def test_it_equals_flip_and_normalization_bit_for_bit(shape: tuple[int, int, int]) -> None:
    from ham.data.pixel_table import PixelTable

    count, rows, columns = shape
    generator = torch.Generator().manual_seed(columns)
    images = torch.randint(256, (count, rows, columns, 3), dtype=torch.uint8, generator=generator)
    flipped = torch.arange(count) % 2 == 0
    normalize = Normalize(torch.device("cpu"))
    out = torch.full((count, 3, rows, columns), torch.nan)
    PixelTable.of(normalize)(images, flipped, out)
    planes = images.permute(0, 3, 1, 2)
    expected = normalize(torch.where(flipped.view(-1, 1, 1, 1), planes.flip(3), planes))
    assert torch.equal(out, expected)
