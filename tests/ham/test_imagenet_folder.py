"""ImageNet as a folder tree: labels, pixels, and crops that depend only on seed, epoch and image."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import assert_equal, read_epoch
from PIL import Image
from torch import Tensor

from ham.data import DataError, ImageNetFolder, Loaders, derived_seed, imagenet, imagenet_folder

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet
PHOTOS = Path(os.environ.get("HAM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "photos"
SIZE, COLORS = 16, {"apple": (250, 10, 60), "sky": (20, 120, 255)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of one color and one of random pixels, in several sizes and formats; 7 to train each."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    shapes = [(37, 53), (20, 90), (64, 64), (33, 17), (101, 40), (18, 18), (250, 19)]
    for split, count in (("train", 7), ("val", 3)):
        for name in (*COLORS, "wood"):
            (root / split / name).mkdir(parents=True)
        for number, (height, width) in enumerate(shapes[:count]):
            for name, color in COLORS.items():
                Image.new("RGB", (width, height), color).save(root / split / name / f"{number}.png")
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            image = image.convert("L") if number == 1 else image
            image.save(root / split / "wood" / f"{number}.{'png' if number % 2 else 'JPEG'}")
    return root


def folder(root: Path, workers: int = 0, batch_size: int = 4, seed: int = 0, **fields: int) -> Loaders:
    data = ImageNetFolder(root=str(root), workers=workers, **{"num_classes": 3, "image_size": SIZE, **fields})
    return data.load(batch_size=batch_size, seed=seed, device=CPU)


def normalized(color: tuple[int, int, int]) -> Tensor:
    return (torch.tensor(color) / 255 - MEAN) / STD


def test_folder_images_have_the_right_label_size_and_normalization(tree: Path) -> None:
    loaders = folder(tree)
    assert [len(labels) for _, labels in loaders.train.batches(0)] == [4] * 5 and len(loaders.train) == 5
    assert [len(labels) for _, labels in loaders.test.batches(0)] == [4, 4, 1] and len(loaders.test) == 3
    assert Counter(read_epoch(loaders.test)[1].tolist()) == {0: 3, 1: 3, 2: 3}
    for loader in (loaders.train, loaders.test):
        images, labels = read_epoch(loader)
        assert images.shape[1:] == (3, SIZE, SIZE) and images.dtype == torch.float32
        assert labels.dtype == torch.int64
        for number, color in enumerate(COLORS.values()):  # a crop of an image of one color has that color
            crops = images[labels == number]
            assert len(crops)
            expected = normalized(color).view(1, 3, 1, 1).expand_as(crops)
            torch.testing.assert_close(crops, expected, rtol=0, atol=1e-5)


def test_folder_test_images_are_center_crops(tmp_path: Path) -> None:
    """At a ratio of 224/256, a crop of 16 pixels needs 18: an image of 18 pixels is not resized."""
    pixels = np.random.default_rng(1).integers(0, 256, (18, 18, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "only").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / split / "only" / "0.png")
    ((image,), _) = read_epoch(folder(tmp_path, num_classes=1, batch_size=1).test)
    expected = torch.from_numpy(pixels[1:17, 1:17].copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(image, (expected - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1), rtol=0, atol=1e-5)


def test_images_are_resized_by_the_mean_of_what_a_pixel_covers(tmp_path: Path) -> None:
    """Pillow's bilinear filter is antialiased too: without it, single pixels of noise would be taken."""
    pixels = np.random.default_rng(2).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "only").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / split / "only" / "0.png")
    loaders = folder(tmp_path, num_classes=1, batch_size=1)
    ((image,), _) = read_epoch(loaders.test)
    resized = np.asarray(Image.fromarray(pixels).resize((18, 18), Image.BILINEAR))[1:17, 1:17]
    actual = (image * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)) * 255
    assert (actual - torch.from_numpy(resized.copy()).permute(2, 0, 1)).abs().max() <= 1.01
    _, crop, _ = loaders.train._loader.dataset.dataset.transform.transforms
    assert (tuple(crop.size), crop.scale, crop.ratio, crop.antialias) == (
        *((SIZE, SIZE), (0.08, 1.0), (3 / 4, 4 / 3), True),
    )


def test_half_of_the_training_images_are_mirrored(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    for split in ("train", "val"):
        (tmp_path / split / "only").mkdir(parents=True)
        for number in range(60):
            Image.fromarray(pixels).save(tmp_path / split / "only" / f"{number}.png")
    images, _ = read_epoch(folder(tmp_path, num_classes=1, batch_size=60, min_crop=1.0).train)
    mirrored = images[:, 0, :, 0].mean(1) > images[:, 0, :, -1].mean(1)
    assert 15 < mirrored.sum() < 45


def test_the_order_of_an_epoch_is_cut_into_batches_that_know_its_seed() -> None:
    order = imagenet_folder._EpochSampler(4)
    assert (len(order), list(order)) == (0, [])
    order.seed, order.indices = 7, torch.tensor([9, 8, 7, 6, 5, 4, 3, 2, 1])
    assert len(order) == 3
    assert list(order) == [[(7, n) for n in (9, 8, 7, 6)], [(7, n) for n in (5, 4, 3, 2)], [(7, 1)]]


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_the_crops_of_an_epoch_have_the_seed_of_the_run(seed: int, tree: Path) -> None:
    loader = folder(tree, seed=seed).train
    next(loader.batches(3, start=2))
    assert loader._order.seed == derived_seed(seed, "crops 3")
    assert loader._order.indices.tolist() == loader.sampler.indices(3)[8:].tolist()


def test_workers_ignore_the_signals_that_stop_a_run() -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        imagenet_folder._ignore_stop_signals(0)
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 3
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_stay_between_epochs_where_there_are_some(workers: int, tree: Path) -> None:
    loader = folder(tree, workers=workers).train._loader
    assert (loader.num_workers, loader.persistent_workers) == (workers, workers > 0)


def crops_of_noise(loaders: Loaders, epoch: int) -> set[bytes]:
    images, labels = read_epoch(loaders.train, epoch)
    return {image.numpy().tobytes() for image in images[labels == 2]}


def test_crops_of_a_folder_depend_only_on_seed_epoch_and_image(tree: Path) -> None:
    loaders = folder(tree, seed=1)
    first = list(loaders.train.batches(0))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    for workers, batch in ((0, 4), (2, 4)):
        again = folder(tree, workers=workers, seed=1, batch_size=batch)
        for start in (0, 1, 4, 5):
            assert_equal(list(again.train.batches(0, start=start)), first[start:])
        assert_equal(list(again.test.batches(0)), list(loaders.test.batches(1)))
    assert torch.equal(torch.get_rng_state(), before), "the global generator belongs to the model"
    variants = [crops_of_noise(folder(tree, seed=seed), epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert min(map(len, variants)) >= 5
    for one, other in combinations(variants, 2):  # small images can have the same fallback crop
        assert len(one & other) <= 2


@pytest.mark.parametrize(("device", "is_pinned"), [("cuda", True), ("cpu", False), ("meta", False)])
def test_batches_wait_in_pinned_memory_for_a_cuda_device_alone(
    device: str, is_pinned: bool, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA copies from pinned memory in the background; on a CPU it would be one more copy."""
    monkeypatch.setattr(imagenet_folder, "Normalize", lambda device: None)  # which needs the device
    data = ImageNetFolder(root=str(tree), workers=0, num_classes=3, image_size=SIZE)
    loaders = data.load(batch_size=4, seed=0, device=torch.device(device))
    assert loaders.train._loader.pin_memory is loaders.test._loader.pin_memory is is_pinned


def children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}


def test_workers_start_once_and_end_with_the_loaders(tree: Path) -> None:
    before = children()
    loaders, alone = folder(tree, workers=2), folder(tree)
    list(loaders.train.batches(0))
    workers = children() - before
    assert len(workers) == 2
    left = loaders.train.batches(1)
    next(left)
    left.close()  # an epoch that is not read to its end changes nothing in the next
    for epoch in (1, 2):
        assert_equal(list(loaders.train.batches(epoch)), list(alone.train.batches(epoch)))
    assert children() - before == workers
    list(loaders.test.batches(0))
    assert len(children() - before) == 4
    del loaders, left
    assert children() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_two_passes_at_the_same_time_are_refused(workers: int, tree: Path) -> None:
    loaders = folder(tree, workers=workers)
    first, second = loaders.train.batches(0), loaders.train.batches(1)
    next(first)
    batch = next(second)
    with pytest.raises(RuntimeError, match="another pass over this FolderLoader has begun"):
        next(first)
    assert_equal([batch, *second], list(folder(tree).train.batches(1)))


LOADS = """
import multiprocessing, sys, torch
from ham.data import ImageNetFolder

def work(status):
    global loaders, batches  # that nothing deletes before the process ends
    data = ImageNetFolder(root=sys.argv[1], workers=2, num_classes=3, image_size=16)
    loaders = data.load(batch_size=4, seed=0, device=torch.device("cpu"))
    batches = loaders.train.batches(0)
    print(len(next(batches)[1]), len(list(loaders.test.batches(0))), flush=True)
    sys.exit(status)
"""


@pytest.mark.parametrize("place", ["the process itself", "a child"])
def test_a_process_ends_in_mid_epoch(place: str, tree: Path) -> None:
    """The workers ignore SIGTERM, with which multiprocessing would end them, and wait for them."""
    child = "child = multiprocessing.get_context('fork').Process(target=work, args=(3,)); child.start(); "
    child += "child.join(90); print(child.exitcode, flush=True); child.kill()"
    script = LOADS + ("work(3)" if place == "the process itself" else child)
    command = [sys.executable, "-W", "ignore", "-c", script, str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    expected = (3, "4 3\n") if place == "the process itself" else (0, "4 3\n3\n")
    assert (done.returncode, done.stdout, done.stderr) == (*expected, "")


def write_tree(root: Path, change: str) -> None:
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(root / split / name / "0.png")
    if change.startswith("no "):
        os.rename(root / change[3:], root / "elsewhere")
    elif change == "an empty class":
        (root / "train" / "b" / "0.png").unlink()
    elif change == "an additional class":
        os.renames(root / "train" / "c" / "0.png", root / "train" / "d" / "0.png")
        (root / "train" / "c").mkdir()
        Image.new("RGB", (20, 20)).save(root / "train" / "c" / "0.png")
    elif change == "other classes in val":
        (root / "val" / "a").rename(root / "val" / "z")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no train", ["/train", "data.root", "+demo=digits"]),
        ("no val", ["/val", "data.root", "+demo=digits"]),
        ("an empty class", ["/train has class folders without images (b): add images"]),
        ("an additional class", ["/train", "4 class folders", "expected 3", "data.num_classes=4"]),
        ("other classes in val", ["train and val differ in 2 classes (a, z)"]),
    ],
)
def test_a_wrong_tree_is_reported_in_one_line_with_the_cure(
    change: str, words: list[str], tmp_path: Path
) -> None:
    write_tree(tmp_path, change)
    with pytest.raises(DataError) as caught:
        folder(tmp_path, batch_size=1)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == [], message


def test_a_batch_size_above_the_number_of_images_is_refused(tree: Path) -> None:
    assert len(folder(tree, batch_size=21).train) == 1
    with pytest.raises(DataError, match=r"batch_size=22 .*21"):
        folder(tree, batch_size=22)


@pytest.mark.parametrize("min_crop", [0.0, 1.5, -1.0])
def test_a_min_crop_out_of_range_is_refused(min_crop: float, photos: Path) -> None:
    data = ImageNetFolder(root=str(photos), num_classes=5, min_crop=min_crop)
    with pytest.raises(DataError, match=r"data\.min_crop .*\(0, 1\]"):
        data.load(batch_size=8, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize("min_crop", [1e-6, 0.08, 1.0])
def test_a_crop_may_cover_all_of_an_image(min_crop: float) -> None:
    imagenet.check_min_crop(min_crop)


def test_pixels_are_normalized_into_new_memory() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    result = imagenet.Normalize(CPU)(pixels)
    ends = torch.stack([-MEAN / STD, (1 - MEAN) / STD], dim=1)
    torch.testing.assert_close(result, ends.view(1, 3, 1, 2), rtol=1e-6, atol=0)
    assert result.dtype == torch.float32 and pixels[0, 0, 0].tolist() == [0, 255]
    assert imagenet.CENTER_CROP == 0.875


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line(workers: int, tree: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    damaged = root / "train" / "wood" / "4.JPEG"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:100])
    before, loaders = children(), folder(root, workers)
    with pytest.raises(DataError) as caught:
        list(loaders.train.batches(epoch=0))
    assert children() == before, "its workers have ended"
    message = str(caught.value)
    assert str(damaged) in message and "replace or remove" in message and len(message.splitlines()) == 1
    damaged.write_bytes(content)
    assert_equal(list(loaders.train.batches(0)), list(folder(tree).train.batches(0)))


def test_a_loader_that_the_garbage_collector_finds_has_no_workers_left(tree: Path) -> None:
    """Its queues then end before the iterator could ask the workers to end, and these ignore SIGTERM."""
    before, loaders = children(), folder(tree, 2)
    list(loaders.train.batches(0))
    assert len(children() - before) == 2
    loaders.train.itself = loaders.train
    del loaders
    gc.collect()
    assert children() <= before


def test_the_root_defaults_to_ham_data(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imagenet").symlink_to(tree)
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    data = ImageNetFolder(num_classes=3, image_size=SIZE, workers=0)
    assert len(data.load(batch_size=4, seed=0, device=CPU).train) == 5


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}; HAM_DATA names their parent folder")
@pytest.mark.parametrize("workers", [0, 2])
def test_real_photos_give_every_label_and_valid_pixels(workers: int) -> None:
    counts = {split: len(list((PHOTOS / split).glob("*/*"))) for split in ("train", "val")}
    names = sorted(path.name for path in (PHOTOS / "train").iterdir())
    loaders = folder(PHOTOS, workers, batch_size=64, num_classes=len(names), image_size=32)
    assert len(loaders.train) == counts["train"] // 64
    assert_equal(list(loaders.train.batches(1, start=2)), list(loaders.train.batches(1))[2:])
    images, labels = read_epoch(loaders.test)
    assert images.shape == (counts["val"], 3, 32, 32)
    expected = {number: len(list((PHOTOS / "val" / name).iterdir())) for number, name in enumerate(names)}
    assert Counter(labels.tolist()) == expected
    pixels = images * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert -1e-5 <= pixels.min() < 0.1 and 0.9 < pixels.max() <= 1 + 1e-5
