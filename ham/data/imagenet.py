"""What both ways of reading ImageNet share: where it is and how an image is normalised."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from .base import DataError

CENTRE = 224 / 256
"""Side of the validation crop, of the image's shorter side; as in the paper's code base."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of pixels in [0, 1]


def folder(root: str) -> Path:
    """`root`, or `imagenet` under the environment variable HAM_DATA where it is empty."""
    return Path(root or Path(os.environ.get("HAM_DATA", ".")) / "imagenet")


def check_min_crop(share: float) -> None:
    """Raise DataError unless `data.min_crop` is a share of an image's area."""
    if not 0 < share <= 1:
        raise DataError(f"data.min_crop is the smallest crop's share of an image, in (0, 1], got {share:g}")


class Normalise:
    """uint8 images [N, 3, H, W] -> float32 with mean 0 and deviation 1 over ImageNet, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._mean = torch.tensor(_MEAN, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(_STD, device=device).view(3, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch that lies on the device."""
        return (images.float() - self._mean) / self._std
