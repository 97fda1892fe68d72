"""What the tests of all loaders do with batches."""

from __future__ import annotations

import torch

from ham.data import Batch, Loader


def whole(loader: Loader, epoch: int = 0) -> Batch:
    images, classes = zip(*loader.batches(epoch), strict=True)
    return torch.cat(images), torch.cat(classes)


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for (images, classes), (same_images, same_classes) in zip(found, expected, strict=True):
        assert torch.equal(images, same_images) and torch.equal(classes, same_classes)
