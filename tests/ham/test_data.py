"""Data sets: every image once, in an order that depends on seed and epoch alone, from any batch on."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import assert_equal, whole
from PIL import Image
from torch import Tensor

from ham.data import DataError, Digits, ImageNetFolder, Loaders

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet
PHOTOS = Path(os.environ.get("HAM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "photos"

# SHA-256 of the test images' pixels, int64 0-16, in order: another split would make accuracies incomparable
TEST_SPLIT = "9b4748ed14c4bfc5cdd42056d6d1e97cccc9f5e57ccb4756291cf7267f62df83"


def digits(batch_size: int = 100, seed: int = 0) -> Loaders:
    return Digits().load(batch_size=batch_size, seed=seed, device=CPU)


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels 0-16 [1797, 64] and classes, from scikit-learn."""
    from sklearn.datasets import load_digits

    table = load_digits()
    return table.data.astype(np.int64), table.target


def split_of_digits() -> tuple[list[bytes], list[bytes], Tensor, Tensor]:
    """Pixels of training and test images as bytes, their normalisation undone, and both sets as loaded."""
    test_images, _ = whole(digits().test)
    train_images, _ = whole(digits(batch_size=1437).train)
    pixels, _ = read_digits()
    darkest, brightest = test_images.min(), test_images.max()  # 0 and 16 occur in both parts
    scaled = [((part - darkest) / (brightest - darkest) * 16).round() for part in (train_images, test_images)]
    train, test = ([image[0].numpy().astype(np.int64).tobytes() for image in part] for part in scaled)
    assert {*train, *test} <= {image.tobytes() for image in pixels}
    return train, test, train_images, test_images


def test_digits_are_split_into_1437_and_360_once_and_for_all() -> None:
    train, test, _, _ = split_of_digits()
    pixels, classes = read_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert Counter(train + test) == Counter(image.tobytes() for image in pixels), "each image in one part"
    names = {image.tobytes(): name for image, name in zip(pixels, classes, strict=True)}
    for loader, part in ((digits().test, test), (digits(batch_size=1437).train, train)):
        assert whole(loader)[1].tolist() == [names[image] for image in part]
    assert hashlib.sha256(b"".join(test)).hexdigest() == TEST_SPLIT


def test_digits_are_normalised_by_the_training_part_over_three_equal_channels() -> None:
    train, test, train_images, test_images = split_of_digits()
    raw = np.frombuffer(b"".join(train), dtype=np.int64) / 16
    mean, std = raw.mean(), raw.std(ddof=1)
    for part, images in ((train, train_images), (test, test_images)):
        assert images.shape[1:] == (3, 8, 8) and images.dtype == torch.float32
        assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
        expected = (np.frombuffer(b"".join(part), dtype=np.int64).reshape(-1, 8, 8) / 16 - mean) / std
        torch.testing.assert_close(images[:, 0].double(), torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_an_epoch_of_digits_drops_the_ragged_batch_in_training_only() -> None:
    loaders = digits(batch_size=100)
    sizes = [len(classes) for _, classes in loaders.train.batches(0)]
    assert sizes == [100] * 14 and len(loaders.train) == 14
    sizes = [len(classes) for _, classes in loaders.test.batches(0)]
    assert sizes == [100, 100, 100, 60] and len(loaders.test) == 4
    images, _ = whole(loaders.train)
    assert len({image.numpy().tobytes() for image in images}) == 1400


def test_orders_of_digits_depend_on_seed_and_epoch_alone() -> None:
    first = list(digits(seed=1).train.batches(0))
    torch.manual_seed(123)
    loader = digits(seed=1).train
    list(loader.batches(7))
    before = torch.get_rng_state()
    assert_equal(list(loader.batches(0)), first)
    assert torch.equal(torch.get_rng_state(), before)
    orders = [
        tuple(whole(digits(seed=seed).train, epoch)[1].tolist()) for seed in range(3) for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert_equal(list(digits(seed=5).test.batches(3)), list(digits(seed=1).test.batches(0)))


@pytest.mark.parametrize("start", [0, 1, 6, 13, 14])
def test_an_epoch_of_digits_can_be_entered_anywhere(start: int) -> None:
    loader = digits().train
    assert_equal(list(loader.batches(2, start=start)), list(loader.batches(2))[start:])


@pytest.mark.parametrize("batch_size", [0, -1, 1438])
def test_digits_refuse_a_batch_that_does_not_fit(batch_size: int) -> None:
    with pytest.raises(DataError, match=f"batch_size={batch_size} .*1437"):
        digits(batch_size=batch_size)


# ImageNet's folder tree, small


SIZE, COLOURS = 16, {"apple": (250, 10, 60), "sky": (20, 120, 255)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of one colour each and one of noise, in odd sizes and formats, 7 images each to train."""
    root = tmp_path_factory.mktemp("imagenet")
    noise = np.random.default_rng(0)
    shapes = [(37, 53), (20, 90), (64, 64), (33, 17), (101, 40), (18, 18), (250, 19)]
    for split, count in (("train", 7), ("val", 3)):
        for name in (*COLOURS, "wood"):
            (root / split / name).mkdir(parents=True)
        for number, (height, width) in enumerate(shapes[:count]):
            for name, colour in COLOURS.items():
                Image.new("RGB", (width, height), colour).save(root / split / name / f"{number}.png")
            pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            image = image.convert("L") if number == 1 else image
            image.save(root / split / "wood" / f"{number}.{'png' if number % 2 else 'JPEG'}")
    return root


def folder(root: Path, workers: int = 0, batch_size: int = 4, seed: int = 0, **fields: int) -> Loaders:
    data = ImageNetFolder(root=str(root), workers=workers, **{"num_classes": 3, "image_size": SIZE, **fields})
    return data.load(batch_size=batch_size, seed=seed, device=CPU)


def normalised(colour: tuple[int, int, int]) -> Tensor:
    return (torch.tensor(colour) / 255 - MEAN) / STD


def test_folder_images_have_their_class_size_and_normalisation(tree: Path) -> None:
    loaders = folder(tree)
    assert [len(classes) for _, classes in loaders.train.batches(0)] == [4] * 5 and len(loaders.train) == 5
    assert [len(classes) for _, classes in loaders.test.batches(0)] == [4, 4, 1] and len(loaders.test) == 3
    assert Counter(whole(loaders.test)[1].tolist()) == {0: 3, 1: 3, 2: 3}
    for loader in (loaders.train, loaders.test):
        images, classes = whole(loader)
        assert images.shape[1:] == (3, SIZE, SIZE) and images.dtype == torch.float32
        assert classes.dtype == torch.int64
        for number, colour in enumerate(COLOURS.values()):  # a crop of one colour is that colour
            crops = images[classes == number]
            assert len(crops)
            expected = normalised(colour).view(1, 3, 1, 1).expand_as(crops)
            torch.testing.assert_close(crops, expected, rtol=0, atol=1e-5)


def test_folder_test_images_are_their_centre(tmp_path: Path) -> None:
    """At 224 of 256 pixels a 16 pixel crop is cut from 18, so that an 18 pixel image is not resized."""
    pixels = np.random.default_rng(1).integers(0, 256, (18, 18, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "only").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / split / "only" / "0.png")
    ((image,), _) = whole(folder(tmp_path, num_classes=1, batch_size=1).test)
    expected = torch.from_numpy(pixels[1:17, 1:17].copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(image, (expected - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1), rtol=0, atol=1e-5)


def crops_of_noise(loaders: Loaders, epoch: int) -> set[bytes]:
    images, classes = whole(loaders.train, epoch)
    return {image.numpy().tobytes() for image in images[classes == 2]}


def test_crops_of_a_folder_depend_on_seed_epoch_and_image_alone(tree: Path) -> None:
    loaders = folder(tree, seed=1)
    first = list(loaders.train.batches(0))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    for workers, batch in ((0, 4), (2, 4)):
        again = folder(tree, workers=workers, seed=1, batch_size=batch)
        for start in (0, 1, 4, 5):
            assert_equal(list(again.train.batches(0, start=start)), first[start:])
        assert_equal(list(again.test.batches(0)), list(loaders.test.batches(1)))
    assert torch.equal(torch.get_rng_state(), before), "the global stream is the model's"
    variants = [crops_of_noise(folder(tree, seed=seed), epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert min(map(len, variants)) >= 5
    for one, other in combinations(variants, 2):  # small images may meet in the crop of last resort
        assert len(one & other) <= 2


def spoil(root: Path, change: str) -> None:
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(root / split / name / "0.png")
    if change.startswith("no "):
        os.rename(root / change[3:], root / "elsewhere")
    elif change == "an empty class":
        (root / "train" / "b" / "0.png").unlink()
    elif change == "a class more":
        os.renames(root / "train" / "c" / "0.png", root / "train" / "d" / "0.png")
        (root / "train" / "c").mkdir()
        Image.new("RGB", (20, 20)).save(root / "train" / "c" / "0.png")
    elif change == "other classes to test":
        (root / "val" / "a").rename(root / "val" / "z")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no train", ["/train", "data.root", "+demo=digits"]),
        ("no val", ["/val", "data.root", "+demo=digits"]),
        ("an empty class", ["/train", "without images", "classes b."]),
        ("a class more", ["/train", "4 class folders", "expected 3", "data.num_classes=4"]),
        ("other classes to test", ["/val", "z"]),
    ],
)
def test_a_wrong_tree_is_one_line_with_the_cure(change: str, words: list[str], tmp_path: Path) -> None:
    spoil(tmp_path, change)
    with pytest.raises(DataError) as caught:
        folder(tmp_path, batch_size=1)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == [], message


def test_a_batch_larger_than_the_folder_is_refused(tree: Path) -> None:
    with pytest.raises(DataError, match=r"batch_size=22 .*21"):
        folder(tree, batch_size=22)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_crop_of_no_part_of_the_image_is_refused(share: float, photos: Path) -> None:
    data = ImageNetFolder(root=str(photos), num_classes=5, min_crop=share)
    with pytest.raises(DataError, match=r"data\.min_crop .*\(0, 1\]"):
        data.load(batch_size=8, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_on_one_line(workers: int, tree: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    damaged = root / "train" / "wood" / "4.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataError) as caught:
        list(folder(root, workers).train.batches(epoch=0))
    message = str(caught.value)
    assert str(damaged) in message and "replace or remove" in message and len(message.splitlines()) == 1


def test_the_root_is_found_through_the_environment(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imagenet").symlink_to(tree)
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    data = ImageNetFolder(num_classes=3, image_size=SIZE, workers=0)
    assert len(data.load(batch_size=4, seed=0, device=CPU).train) == 5


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}; HAM_DATA names their parent folder")
@pytest.mark.parametrize("workers", [0, 2])
def test_real_photos(workers: int) -> None:
    counts = {split: len(list((PHOTOS / split).glob("*/*"))) for split in ("train", "val")}
    names = sorted(path.name for path in (PHOTOS / "train").iterdir())
    loaders = folder(PHOTOS, workers, batch_size=64, num_classes=len(names), image_size=32)
    assert len(loaders.train) == counts["train"] // 64
    assert_equal(list(loaders.train.batches(1, start=2)), list(loaders.train.batches(1))[2:])
    images, classes = whole(loaders.test)
    assert images.shape == (counts["val"], 3, 32, 32)
    expected = {number: len(list((PHOTOS / "val" / name).iterdir())) for number, name in enumerate(names)}
    assert Counter(classes.tolist()) == expected
    pixels = images * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert -1e-5 <= pixels.min() < 0.1 and 0.9 < pixels.max() <= 1 + 1e-5
