"""Helpers for the tests of all loaders."""

from __future__ import annotations

import torch

from ham.data import Batch, Loader


def read_epoch(loader: Loader, epoch: int = 0) -> Batch:
    """All images and labels of an epoch."""
    images, labels = zip(*loader.batches(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def assert_equal(actual: list[Batch], expected: list[Batch]) -> None:
    """The batches are equal bit for bit."""
    assert len(actual) == len(expected)
    for (images, labels), (same_images, same_labels) in zip(actual, expected, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
