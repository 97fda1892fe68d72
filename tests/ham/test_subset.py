"""Smaller versions of CIFAR-100: fewer images per class, fewer pixels, and images to tune on."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from pathlib import Path

import cifar_noise
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ham.data import Cifar100, Loaders, cifar_files
from ham.data.subset import draw_per_class, shrink


def images(seed: int, per_class: int = 6, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Random images, uint8 [N, 3, 4, 4], and shuffled labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), per_class))
    return rng.integers(0, 256, (len(labels), 3, 4, 4), dtype=np.uint8), labels


def names(pixels: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in pixels]


def load(root: Path, **fields: int) -> Loaders:
    data = Cifar100(root=str(root), **fields)
    return data.load(batch_size=10, seed=0, device=torch.device("cpu"))


@given(seed=st.integers(0, 99), train=st.integers(0, 6), validation=st.integers(0, 5), order=st.randoms())
def test_subsets_are_disjoint_balanced_and_independent_of_the_order_of_the_file(
    seed: int, train: int, validation: int, order: st.DataObject
) -> None:
    pixels, labels = images(seed)
    train = min(train, 6 - validation)
    shuffled = list(range(len(labels)))
    order.shuffle(shuffled)
    first, last = draw_per_class(pixels, labels, train, validation)
    for part, other in zip(
        (first, last), draw_per_class(pixels[shuffled], labels[shuffled], train, validation), strict=True
    ):
        assert np.array_equal(part[0], other[0]) and np.array_equal(part[1], other[1])
    assert not {*names(first[0])} & {*names(last[0])}
    assert Counter(first[1].tolist()) == dict.fromkeys(range(4), train or 6 - validation)
    assert Counter(last[1].tolist()) == (dict.fromkeys(range(4), validation) if validation else {})
    label_of = dict(zip(names(pixels), labels.tolist(), strict=True))
    for part in (first, last):
        assert [label_of[name] for name in names(part[0])] == part[1].tolist()


def test_images_are_drawn_in_the_order_of_the_hash_of_their_pixels() -> None:
    """BLAKE2b of 16 bytes; the first ones of a class are trained on, and its last one validates."""
    pixels, labels = images(3)
    ranked = sorted(
        zip(names(pixels), labels.tolist(), strict=True),
        key=lambda pair: hashlib.blake2b(pair[0], digest_size=16).hexdigest(),
    )
    place = {label: [name for name, own in ranked if own == label] for label in range(4)}
    train, validation = draw_per_class(pixels, labels, 2, 1)
    assert names(train[0]) == [name for name, label in ranked if name in place[label][:2]]
    assert names(validation[0]) == [name for name, label in ranked if name == place[label][-1]]


def test_a_larger_subset_contains_a_smaller_one() -> None:
    pixels, labels = images(0)
    small, large = (draw_per_class(pixels, labels, count, 0)[0][0] for count in (2, 4))
    assert {*names(small)} < {*names(large)}


@pytest.mark.parametrize("side", [1, 2, 8, 16, 32])
def test_a_shrunk_pixel_is_the_mean_of_its_area(side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    means = F.avg_pool2d(torch.from_numpy(pixels).double(), 32 // side)
    expected = (means + 0.5).floor().to(torch.uint8)  # halves up
    assert np.array_equal(shrink(pixels, side), expected.numpy())


def test_a_shrunk_image_by_hand() -> None:
    pixels = np.array(
        [[[[0, 1, 255, 255], [0, 1, 255, 254], [9, 0, 1, 1], [0, 0, 1, 1]]] * 3], dtype=np.uint8
    )
    # means 0.5, 254.75, 2.25 and 1
    assert shrink(pixels, 2)[0, 0].tolist() == [[1, 255], [2, 1]]


def test_a_subset_trains_on_its_images_and_tests_on_all_test_images(small_cifar100: Path) -> None:
    loaders = load(small_cifar100, per_class=2, image_size=16, translate=1)
    assert loaders.train.pixels.shape == (200, 3, 16, 16) and loaders.test.pixels.shape == (100, 3, 16, 16)
    assert Counter(loaders.train.labels.tolist()) == dict.fromkeys(range(100), 2)
    (batch, _), *_ = loaders.train.batches(0)
    assert batch.shape == (10, 3, 16, 16)
    test = cifar_noise.record("test")
    assert loaders.test.labels.tolist() == test[b"fine_labels"]
    expected = shrink(test[b"data"].reshape(-1, 3, 32, 32), 16)
    assert np.array_equal(loaders.test.pixels.numpy(), expected)


def test_validation_images_replace_the_test_images_and_are_not_trained_on(small_cifar100: Path) -> None:
    loaders = load(small_cifar100, per_class=2, validation_per_class=1)
    train, validation = names(loaders.train.pixels.numpy()), names(loaders.test.pixels.numpy())
    everything = names(cifar_noise.record("train")[b"data"])
    assert len(train) == 200 and len(validation) == 100
    assert {*train} | {*validation} == {*everything} and not {*train} & {*validation}
    rest = load(small_cifar100, validation_per_class=1)  # all others are trained on
    assert names(rest.train.pixels.numpy()) == train
    assert names(load(small_cifar100, per_class=2).train.pixels.numpy()) == train


def test_without_options_the_order_of_the_file_stays(small_cifar100: Path) -> None:
    assert names(load(small_cifar100).train.pixels.numpy()) == names(cifar_noise.record("train")[b"data"])


def test_a_file_in_another_order_gives_the_same_batches(small_cifar100: Path) -> None:
    before = [labels.tolist() for _, labels in load(small_cifar100, per_class=1).train.batches(0)]
    record = cifar_noise.record("train")
    order = np.random.default_rng(7).permutation(len(record[b"data"]))
    shuffled = {
        b"data": record[b"data"][order],
        b"fine_labels": np.array(record[b"fine_labels"])[order].tolist(),
    }
    (small_cifar100 / "train").write_bytes(pickle.dumps(shuffled))
    assert cifar_files.read_official(small_cifar100)["train"][1].tolist() == shuffled[b"fine_labels"]
    assert [labels.tolist() for _, labels in load(small_cifar100, per_class=1).train.batches(0)] == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 20}, "must divide 32, such as 16: got 20"),
        ({"image_size": 0}, "must divide 32"),
        ({"image_size": 64}, "must divide 32"),
        ({"image_size": 8, "translate": 8}, "0 to 7 pixels"),
        ({"per_class": -1}, "must share the 500 training images"),
        ({"validation_per_class": -1}, "got 0 and -1"),
        ({"per_class": 2, "validation_per_class": 499}, "got 2 and 499"),
        ({"per_class": 480, "validation_per_class": 50}, "got 480 and 50"),
        ({"validation_per_class": 500}, "got 0 and 500"),
    ],
)
def test_sizes_that_cifar100_does_not_have_are_refused(fields: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Cifar100(**fields)
    assert len(str(caught.value).splitlines()) == 1
