"""The crop boxes of ImageNet's FFCV loader, which need no FFCV."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from ham.data.imagenet_ffcv import center_boxes, random_boxes


def moments(boxes: Tensor) -> list[Tensor]:
    """Area, logarithm of the aspect ratio, and corner of each box, [N] each."""
    top, left, height, width = boxes.unbind(1)
    return [height * width, (width / height).log(), top, left]


@pytest.mark.parametrize("min_crop", [0.08, 0.5])
def test_boxes_have_the_distribution_of_torchvision_s(min_crop: float) -> None:
    from torchvision.transforms import RandomResizedCrop as Reference
    from torchvision.transforms.v2 import RandomResizedCrop

    assert RandomResizedCrop(224).scale == (0.08, 1.0) and RandomResizedCrop(224).ratio == (3 / 4, 4 / 3)
    torch.manual_seed(0)
    for height, width, count in ((300, 400, 4000), (60, 400, 2000)):
        canvas = torch.empty(1, height, width)
        expected = torch.tensor(
            [Reference.get_params(canvas, [min_crop, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
        ).double()
        sizes = torch.tensor([[height, width]]).repeat(count, 1)
        boxes = random_boxes(sizes, min_crop, torch.Generator().manual_seed(1)).double()
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
        for ours, theirs in zip(moments(boxes), moments(expected), strict=True):
            error = math.sqrt((ours.var() + theirs.var()) / count)
            assert abs(ours.mean() - theirs.mean()) <= 4 * error
            assert abs(ours.std() - theirs.std()) <= 0.1 * theirs.std()


@pytest.mark.parametrize(
    ("size", "box"),
    [
        *(((10, 400), (0, 193, 10, 13)), ((400, 10), (193, 0, 13, 10)), ((1, 1), (0, 0, 1, 1))),
        *(((1, 400), (0, 199, 1, 1)), ((400, 1), (199, 0, 1, 1))),
    ],
)
def test_the_fallback_is_the_largest_centered_box(size: tuple[int, int], box: tuple[int, ...]) -> None:
    """By hand: 10 rows allow round(10 * 4 / 3) = 13 columns; (400 - 13) // 2 = 193 is the left margin.

    One row allows round(4 / 3) = 1 column.
    """
    sizes = torch.tensor([size]).repeat(2000, 1)
    boxes = Counter(map(tuple, random_boxes(sizes, 0.08, torch.Generator().manual_seed(0)).tolist()))
    assert boxes.most_common(1)[0][0] == box  # few tries fit into so long an image


def test_boxes_depend_only_on_their_generator() -> None:
    sizes = torch.randint(1, 500, (1000, 2), generator=torch.Generator().manual_seed(0))
    one, same, other = (random_boxes(sizes, 0.08, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_center_boxes_by_hand() -> None:
    sizes = torch.tensor([[256, 256], [300, 400], [401, 256], [1, 9]])
    expected = [[16, 16, 224, 224], [19, 69, 262, 262], [88, 16, 224, 224], [0, 4, 1, 1]]
    assert center_boxes(sizes).tolist() == expected
