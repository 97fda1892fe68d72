"""The digits: one fixed split, every image once, in an order that depends only on seed and epoch."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import assert_equal, read_epoch
from torch import Tensor

from ham.data import DataError, Digits, Loaders
from ham.data import digits as digits_module

CPU = torch.device("cpu")

# SHA-256 of the test images' pixels, int64 0-16, in order: accuracies on another split are not comparable
TEST_SPLIT = "9b4748ed14c4bfc5cdd42056d6d1e97cccc9f5e57ccb4756291cf7267f62df83"


def digits(batch_size: int = 100, seed: int = 0) -> Loaders:
    return Digits().load(batch_size=batch_size, seed=seed, device=CPU)


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels 0-16 [1797, 64] and labels, from scikit-learn."""
    from sklearn.datasets import load_digits

    table = load_digits()
    return table.data.astype(np.int64), table.target


def split_of_digits() -> tuple[list[bytes], list[bytes], Tensor, Tensor]:
    """Pixels of training and test images as bytes, without normalization, and both parts as loaded."""
    test_images, _ = read_epoch(digits().test)
    train_images, _ = read_epoch(digits(batch_size=1437).train)
    pixels, _ = read_digits()
    darkest, brightest = test_images.min(), test_images.max()  # 0 and 16 occur in both parts
    scaled = [((part - darkest) / (brightest - darkest) * 16).round() for part in (train_images, test_images)]
    train, test = ([image[0].numpy().astype(np.int64).tobytes() for image in part] for part in scaled)
    assert {*train, *test} <= {image.tobytes() for image in pixels}
    return train, test, train_images, test_images


def test_digits_are_those_of_scikit_learn() -> None:
    images, labels = digits_module.read_digits()
    pixels, numbers = read_digits()
    assert torch.equal(images.view(-1, 64) * 16, torch.from_numpy(pixels).float())
    assert torch.equal(labels, torch.from_numpy(numbers).long())


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no gzip", gzip.compress(b"1,2\nx"), gzip.compress(b"1,2")[:-9]],
    ids=["missing", "empty", "no gzip", "no number", "cut"],
)
def test_a_damaged_scikit_learn_is_one_line(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sklearn" / "datasets" / "data"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "digits.csv.gz").write_bytes(content)
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path / "sklearn")])
    monkeypatch.setattr(digits_module, "find_spec", lambda name: package)
    with pytest.raises(DataError, match=r"^the digits of scikit-learn cannot be read .*force-reinstall"):
        digits_module.read_digits()
    monkeypatch.setattr(digits_module, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^the digits need scikit-learn: pip install "):
        digits_module.read_digits()


def test_digits_have_one_split_into_1437_and_360_images() -> None:
    train, test, _, _ = split_of_digits()
    pixels, labels = read_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert Counter(train + test) == Counter(image.tobytes() for image in pixels), "each image in one part"
    label_of = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    for loader, part in ((digits().test, test), (digits(batch_size=1437).train, train)):
        assert read_epoch(loader)[1].tolist() == [label_of[image] for image in part]
    assert hashlib.sha256(b"".join(test)).hexdigest() == TEST_SPLIT


def test_digits_are_normalized_by_the_training_part_and_have_three_equal_channels() -> None:
    train, test, train_images, test_images = split_of_digits()
    raw = np.frombuffer(b"".join(train), dtype=np.int64) / 16
    mean, std = raw.mean(), raw.std(ddof=1)
    for part, images in ((train, train_images), (test, test_images)):
        assert images.shape[1:] == (3, 8, 8) and images.dtype == torch.float32
        assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
        expected = (np.frombuffer(b"".join(part), dtype=np.int64).reshape(-1, 8, 8) / 16 - mean) / std
        torch.testing.assert_close(images[:, 0].double(), torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_an_epoch_of_digits_drops_an_incomplete_batch_in_training_only() -> None:
    loaders = digits(batch_size=100)
    sizes = [len(labels) for _, labels in loaders.train.batches(0)]
    assert sizes == [100] * 14 and len(loaders.train) == 14
    sizes = [len(labels) for _, labels in loaders.test.batches(0)]
    assert sizes == [100, 100, 100, 60] and len(loaders.test) == 4
    images, _ = read_epoch(loaders.train)
    assert len({image.numpy().tobytes() for image in images}) == 1400


def test_the_order_of_digits_depends_only_on_seed_and_epoch() -> None:
    first = list(digits(seed=1).train.batches(0))
    torch.manual_seed(123)
    loader = digits(seed=1).train
    list(loader.batches(7))
    before = torch.get_rng_state()
    assert_equal(list(loader.batches(0)), first)
    assert torch.equal(torch.get_rng_state(), before)
    orders = [
        tuple(read_epoch(digits(seed=seed).train, epoch)[1].tolist())
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert_equal(list(digits(seed=5).test.batches(3)), list(digits(seed=1).test.batches(0)))


@pytest.mark.parametrize("start", [0, 1, 6, 13, 14])
def test_an_epoch_of_digits_can_start_at_any_batch(start: int) -> None:
    loader = digits().train
    assert_equal(list(loader.batches(2, start=start)), list(loader.batches(2))[start:])


@pytest.mark.parametrize("batch_size", [0, -1, 1438])
def test_digits_refuse_a_batch_size_out_of_range(batch_size: int) -> None:
    with pytest.raises(DataError, match=f"batch_size={batch_size} .*1437"):
        digits(batch_size=batch_size)


def test_batches_of_one_image_and_of_all_are_the_limits() -> None:
    assert len(digits(batch_size=1).train) == 1437
    assert len(digits(batch_size=1437).train) == 1


@pytest.mark.parametrize("fields", [{"num_classes": 11}, {"image_size": 9}])
def test_facts_of_the_digits_cannot_be_changed(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^digits has 10 classes and 8 px: do not set "):
        Digits(**fields)


def test_ranks_share_the_batches_of_digits() -> None:
    single, shared = digits(batch_size=100), {"batch_size": 100, "seed": 0, "device": CPU, "world_size": 2}
    ranks = [Digits().load(rank=rank, **shared) for rank in range(2)]
    parts = zip(*(loaders.train.batches(0) for loaders in ranks), strict=True)
    joined = [tuple(map(torch.cat, zip(*part, strict=True))) for part in parts]
    assert_equal(joined, list(single.train.batches(0)))
    labels = read_epoch(single.test)[1]
    for rank, loaders in enumerate(ranks):
        assert read_epoch(loaders.test)[1].tolist() == labels[rank::2].tolist()
