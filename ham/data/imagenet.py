"""The folder, the validation crop and the normalization of ImageNet, for both of its readers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from .base import DataError

CENTER_CROP = 224 / 256
"""Side of the validation crop relative to the image's shorter side; as in the paper's code base."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of pixels in [0, 1]


def folder(root: str) -> Path:
    """`root`, or $HAM_DATA/imagenet if it is empty."""
    return Path(root or Path(os.environ.get("HAM_DATA", ".")) / "imagenet")


def check_min_crop(min_crop: float) -> None:
    """Raise DataError unless `data.min_crop` is a fraction of an image's area."""
    if not 0 < min_crop <= 1:
        raise DataError(f"data.min_crop must be a fraction of an image's area in (0, 1], got {min_crop:g}")


class Normalize:
    """uint8 images [N, 3, H, W] -> float32 with mean 0 and standard deviation 1 over ImageNet."""

    def __init__(self, device: torch.device) -> None:
        self._mean = torch.tensor(_MEAN, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(_STD, device=device).view(3, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize a batch on the device."""
        return images.to(torch.float32, copy=True).sub_(self._mean).div_(self._std)
