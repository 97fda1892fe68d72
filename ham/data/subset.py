"""Smaller versions of a data set of small images: fewer images per class, and fewer pixels."""

from __future__ import annotations

import hashlib

import numpy as np

Images = tuple[np.ndarray, np.ndarray]
"""Images, uint8 [N, 3, S, S], and their labels, int64 [N]."""


def draw_per_class(
    pixels: np.ndarray, labels: np.ndarray, train: int, validation: int
) -> tuple[Images, Images]:
    """Disjoint subsets with the same number of images of each class.

    The images of a class are ordered by a hash of their pixels, which is as good as random and the same in
    every copy of the data set, whatever the order of its file. The subsets are the first images of that order
    and the last ones. Images with equal pixels are neighbors in it.

    Args:
        pixels: uint8 [N, 3, S, S], with the same number of images of each class.
        labels: int64 [N].
        train: images of each class in the first subset; 0: all that are not in the second.
        validation: images of each class in the second subset.

    Returns:
        The two subsets, each in the order of the hash.
    """
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels]
    order = np.array(sorted(range(len(labels)), key=digests.__getitem__))
    of_class = [order[labels[order] == label] for label in np.unique(labels)]
    first = [own[: train or len(own) - validation] for own in of_class]
    last = [own[len(own) - validation :] for own in of_class]
    rank = np.argsort(order)  # of each image in the order of the hash
    chosen = (np.concatenate(part) for part in (first, last))
    chosen = [part[np.argsort(rank[part])] for part in chosen]
    return tuple((pixels[part], labels[part]) for part in chosen)


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """Replace areas of pixels by their mean, rounded to the nearest integer, halves up.

    Args:
        pixels: uint8 [N, 3, S, S].
        side: the new size, a divisor of S.

    Returns:
        uint8 [N, 3, side, side].
    """
    factor = pixels.shape[-1] // side
    if factor == 1:
        return pixels
    areas = pixels.reshape(*pixels.shape[:2], side, factor, side, factor)
    area = factor * factor
    return ((areas.sum(axis=(3, 5), dtype=np.uint32) + area // 2) // area).astype(np.uint8)
