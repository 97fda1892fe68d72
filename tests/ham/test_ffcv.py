"""ImageNet from FFCV files: the pixels are FFCV's, and an epoch depends only on (seed, epoch)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import assert_equal, read_epoch
from PIL import Image
from torch import Tensor

from ham.data import DataError, ImageNetFFCV, ImageNetFolder, Loaders
from ham.data.base import RankSampler
from ham.data.beton import Beton, import_ffcv
from ham.data.imagenet import Normalize
from ham.data.imagenet_ffcv import FFCVLoader, center_boxes

try:
    import_ffcv()
except DataError as error:
    pytest.skip(str(error), allow_module_level=True)

CPU = torch.device("cpu")
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)  # of ImageNet
FILES = {"train": "train_500_0.50_90.beton", "val": "val_500_0.50_90.beton"}


def ffcv(root: Path, **given: object) -> Loaders:
    arguments = {"batch_size": 32, "seed": 0, "device": CPU, "rank": 0, "world_size": 1}
    fields = {"num_classes": 5, "image_size": 64, "workers": 2}
    for name, value in given.items():
        (arguments if name in arguments else fields)[name] = value
    return ImageNetFFCV(root=str(root), **fields).load(**arguments)


@pytest.fixture(scope="module")
def loaders(betons: Path) -> Loaders:
    return ffcv(betons)


class Numbered:
    """Stand-in for a Beton: the pixels of an image are its index; records the decoded indices."""

    def __init__(self, beton: Beton) -> None:
        self.sizes, self.decoded = beton.sizes, []
        self.labels = torch.arange(len(beton))

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, indices: Tensor, boxes: Tensor, out: Tensor) -> None:
        self.decoded += indices.tolist()
        out.copy_(indices.view(-1, 1, 1, 1) % 251)


def numbered(loader: FFCVLoader, sampler: RankSampler) -> FFCVLoader:
    return FFCVLoader(Numbered(loader.beton), sampler, 8, 0.08, loader._pool, loader._workers, CPU)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_epoch_has_every_image_once(loaders: Loaders, split: str, world_size: int) -> None:
    loader_of_split = getattr(loaders, split)
    count = len(loader_of_split.beton)
    seed, batch = (3, 32) if split == "train" else (None, 16)
    read: list[int] = []
    for rank in range(world_size):
        loader = numbered(loader_of_split, RankSampler(count, batch, seed, rank, world_size))
        stop = min(2, len(loader))  # the epoch is stopped after two batches and resumed
        for done, (_, labels) in enumerate(loader.batches(1), start=1):
            read += labels.tolist()
            if done == stop:
                break
        resumed = numbered(loader_of_split, RankSampler(count, batch, seed, rank, world_size))
        rest = [label for _, labels in resumed.batches(1, start=stop) for label in labels.tolist()]
        assert resumed.beton.decoded and sorted(resumed.beton.decoded) == sorted(rest), (
            "earlier ones are skipped"
        )
        read += rest
    assert max(Counter(read).values()) == 1
    assert len(read) == (count // 32 * 32 if split == "train" else count)


def test_batches_have_the_labels_of_the_folder_tree(loaders: Loaders, photos: Path) -> None:
    names = sorted(path.name for path in (photos / "val").iterdir())
    expected = Counter({k: len(list((photos / "val" / name).iterdir())) for k, name in enumerate(names)})
    images, labels = read_epoch(loaders.test)
    assert Counter(labels.tolist()) == expected and labels.dtype == torch.int64
    assert images.shape == (expected.total(), 3, 64, 64) and images.dtype == torch.float32
    assert [len(part) for _, part in loaders.test.batches(0)][:-1] == [32] * (len(loaders.test) - 1)
    train = len(loaders.train.beton)
    assert [len(part) for _, part in loaders.train.batches(0)] == [32] * (train // 32)
    assert len(loaders.train) == train // 32


@pytest.mark.parametrize("split", ["train", "test"])
def test_on_a_cpu_images_are_those_that_a_device_would_compute(loaders: Loaders, split: str) -> None:
    """There, uint8 images are flipped and normalized by torch; here, by a table in the decoding threads."""
    loader = getattr(loaders, split)
    boxes, flipped = loader._augmentation(2)
    normalize = Normalize(CPU)
    for number, (images, _) in enumerate(loader.batches(2)):
        indices = loader.sampler.indices(2)[number * 32 : number * 32 + 32]
        raw = torch.empty(len(indices), 64, 64, 3, dtype=torch.uint8)
        loader.beton.decode(indices, boxes[indices], raw)
        planes = raw.permute(0, 3, 1, 2)
        expected = torch.where(flipped[indices].view(-1, 1, 1, 1), planes.flip(3), planes)
        assert torch.equal(images, normalize(expected))


def test_an_epoch_read_twice_is_bit_equal(betons: Path, loaders: Loaders) -> None:
    first = list(loaders.train.batches(0))
    torch.manual_seed(123)
    np.random.seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(loaders.train.batches(7))
    assert_equal(list(loaders.train.batches(0)), first)
    again = ffcv(betons, workers=1)
    assert_equal(list(again.train.batches(0)), first)
    assert_equal(list(again.test.batches(0)), list(loaders.test.batches(5)))
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    for other in (list(loaders.train.batches(1)), list(ffcv(betons, seed=1).train.batches(0))):
        assert not any(torch.equal(images, same) for (images, _), (same, _) in zip(other, first, strict=True))


def test_the_crop_of_an_image_changes_with_the_epoch(loaders: Loaders) -> None:
    """Boxes differ, half of the images are flipped in each epoch, and half of the flips change."""
    (one, flip_one), (two, flip_two) = (loaders.train._augmentation(epoch) for epoch in (0, 1))
    assert (one != two).any(dim=1).float().mean() > 0.9
    count = len(flip_one)
    for flips in (flip_one, flip_one ^ flip_two):
        assert abs(flips.float().mean() - 0.5) < 4 * 0.5 / count**0.5


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_an_epoch_can_start_at_any_batch(betons: Path, loaders: Loaders, start: int) -> None:
    expected = list(loaders.train.batches(2))
    abandoned = loaders.train.batches(2)
    for _ in range(start):
        next(abandoned)
    abandoned.close()
    assert_equal(list(ffcv(betons).train.batches(2, start=start)), expected[start:])


def test_the_ranks_batches_joined_equal_the_single_process_batch(betons: Path, loaders: Loaders) -> None:
    per_rank = [list(ffcv(betons, rank=rank, world_size=2).train.batches(0)) for rank in range(2)]
    joined = [
        (torch.cat(images), torch.cat(labels))
        for images, labels in (zip(*parts, strict=True) for parts in zip(*per_rank, strict=True))
    ]
    assert_equal(joined, list(loaders.train.batches(0)))
    tests = [read_epoch(ffcv(betons, rank=rank, world_size=2).test) for rank in range(2)]
    images, labels = read_epoch(loaders.test)
    for rank, (rank_images, rank_labels) in enumerate(tests):
        assert torch.equal(rank_images, images[rank::2]) and torch.equal(rank_labels, labels[rank::2])


# pixels


def test_validation_pixels_are_bit_equal_to_ffcv_s(betons: Path, loaders: Loaders) -> None:
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader as Reference
    from ffcv.transforms import ToTensor, ToTorchImage

    threads = torch.get_num_threads()
    reference = Reference(
        str(betons / FILES["val"]),
        batch_size=32,
        num_workers=1,
        drop_last=False,
        pipelines={
            "image": [CenterCropRGBImageDecoder((64, 64), 224 / 256), ToTensor(), ToTorchImage()],
            "label": None,
        },
    )
    pixels = torch.cat([images.clone() for (images,) in reference])
    torch.set_num_threads(threads)
    images, _ = read_epoch(loaders.test)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    torch.testing.assert_close(images, (pixels.float() / 255 - mean) / STD, rtol=0, atol=2e-6)
    restored = ((images * STD + mean) * 255).round().to(torch.uint8)
    assert torch.equal(restored, pixels)


def test_training_images_are_their_boxes_with_or_without_flip(loaders: Loaders) -> None:
    """Against OpenCV's resize of a slice of the full image."""
    import cv2

    loader = loaders.train
    boxes, flipped = loader._augmentation(0)
    numbers = loader.sampler.indices(0)[:32]
    images, _ = next(loader.batches(0))
    for number, image in zip(numbers.tolist(), images, strict=True):
        height, width = loader.beton.sizes[number].tolist()
        plain = torch.empty(1, height, width, 3, dtype=torch.uint8)
        loader.beton.decode(torch.tensor([number]), torch.tensor([[0, 0, height, width]]), plain)
        top, left, rows, columns = boxes[number].tolist()
        crop = plain[0, top : top + rows, left : left + columns].numpy()
        expected = torch.from_numpy(cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA))
        expected = expected.permute(2, 0, 1).float()
        expected = expected.flip(2) if flipped[number] else expected
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        difference = (
            (image * STD + mean) * 255 - expected
        ).abs()  # two builds of OpenCV can round differently
        assert difference.max() <= 1.01 and difference.mean() < 0.05


def test_validation_images_are_close_to_those_of_the_folder_loader(
    betons: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/decisions.md states the number."""
    given = dict(num_classes=5, image_size=224, root=str(photos), workers=0)
    folder = ImageNetFolder(**given).load(batch_size=32, seed=0, device=CPU)
    images, labels = read_epoch(ffcv(betons, image_size=224).test)
    others, same = read_epoch(folder.test)
    assert torch.equal(labels, same)
    difference = ((images - others) * STD * 255).abs().mean().item()
    with capsys.disabled():
        print(f"\nmean absolute difference of validation pixels, FFCV and folder: {difference:.2f} of 255")
    assert difference < 8


def test_raw_pixels_of_the_same_box_agree_with_pillow_s_bilinear(betons: Path, photos: Path) -> None:
    """Pillow gets the same box, so that only the filters differ: area and antialiased triangle."""
    beton = Beton(betons / FILES["val"])
    boxes = center_boxes(beton.sizes)
    out = torch.empty(len(beton), 224, 224, 3, dtype=torch.uint8)
    beton.decode(torch.arange(len(beton)), boxes, out)
    differences = []
    for number, path in enumerate(sorted((photos / "val").glob("*/*"))):
        image = Image.open(path).convert("RGB")
        if beton.compressed[number] or image.size[::-1] != tuple(beton.sizes[number].tolist()):
            continue
        top, left, rows, columns = boxes[number].tolist()
        expected = image.resize((224, 224), Image.BILINEAR, box=(left, top, left + columns, top + rows))
        differences.append(np.abs(out[number].numpy().astype(int) - np.asarray(expected)).mean())
    assert len(differences) >= 10 and np.mean(differences) < 1.0


# threads and memory


def test_no_thread_runs_after_an_epoch_is_left_early(betons: Path) -> None:
    loaders = ffcv(betons)
    list(loaders.train.batches(0))
    before = threading.active_count()
    for _ in range(5):
        for _ in loaders.train.batches(0):
            break
    assert threading.active_count() == before
    stand_in = numbered(loaders.train, loaders.train.sampler)
    next(stand_in.batches(0))  # the iterator is garbage-collected at once
    decoded = len(stand_in.beton.decoded)
    time.sleep(0.2)
    assert len(stand_in.beton.decoded) == decoded < len(stand_in.beton)
    threads = set(loaders.train._pool._threads)
    del loaders, stand_in
    deadline = time.monotonic() + 5
    while any(thread.is_alive() for thread in threads):
        assert time.monotonic() < deadline, "the decoding threads outlive their loaders"
        time.sleep(0.01)


def test_a_batch_that_the_caller_keeps_is_not_overwritten(loaders: Loaders) -> None:
    kept = list(loaders.train.batches(0))
    copies = [(images.clone(), labels.clone()) for images, labels in kept]
    list(loaders.train.batches(1))
    assert_equal(kept, copies)


def test_training_and_test_can_be_read_at_the_same_time(loaders: Loaders) -> None:
    expected, test = list(loaders.train.batches(0)), list(loaders.test.batches(0))
    batches = []
    for number, batch in enumerate(loaders.train.batches(0)):
        batches.append(batch)
        if number == 2:
            assert_equal(list(loaders.test.batches(0)), test)
    assert_equal(batches, expected)


def test_loading_does_not_change_torch_s_number_of_threads(betons: Path) -> None:
    """Importing FFCV sets it to 1."""
    code = (
        "import torch; torch.set_num_threads(3)\n"
        "from ham.data import ImageNetFFCV\n"
        f"loaders = ImageNetFFCV(root={str(betons)!r}, num_classes=5, workers=2, image_size=16).load(\n"
        "    batch_size=8, seed=0, device=torch.device('cpu'))\n"
        "next(iter(loaders.test.batches(0)))\n"
        "print(torch.get_num_threads())\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_slow_device_gets_the_same_batches(betons: Path, loaders: Loaders) -> None:
    """No step waits for the device, and no buffer is reused before its copy is complete."""
    device = torch.device("cuda")
    on_device = ffcv(betons, device=device).train
    list(on_device.batches(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = []
        for batch in on_device.batches(0):
            torch.cuda._sleep(50_000_000)
            batches.append(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (cpu_images, cpu_labels) in zip(batches, loaders.train.batches(0), strict=True):
        torch.testing.assert_close(images.cpu(), cpu_images, rtol=0, atol=1e-6)
        assert torch.equal(labels.cpu(), cpu_labels)


# errors


def header_only(path: Path) -> None:
    """What a killed FFCV writer leaves: the header has no pointer to the allocation table."""
    content = bytearray(path.read_bytes())
    content[16:24] = bytes(8)
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "truncated near the end": lambda path: path.write_bytes(path.read_bytes()[:-4000]),
    "empty": lambda path: path.write_bytes(b""),
    "another format": lambda path: path.write_bytes(b"\x89PNG" + bytes(range(256)) * 40),
    "without a table": header_only,
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_reported_in_one_line_with_the_cure(
    change: Callable[[Path], object], betons: Path, tmp_path: Path
) -> None:
    for name in FILES.values():
        shutil.copy(betons / name, tmp_path / name)
    change(tmp_path / FILES["val"])
    with pytest.raises(DataError) as caught:
        ffcv(tmp_path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(tmp_path / FILES["val"]) in message and "write_beton.py" in message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_classes": 1000}, ["5 classes", "expected 1000", "data.num_classes=5"]),
        ({"num_classes": 3}, ["labels from 0 to 4", "data.num_classes=5"]),
        ({"batch_size": 5000}, ["batch_size=5000", "training images"]),
        (
            {"train": "missing.beton"},
            ["missing.beton", "write_beton.py --from", "data=imagenet_folder", "+demo=digits"],
        ),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line_with_the_cure(
    given: dict, words: list[str], betons: Path
) -> None:
    with pytest.raises(DataError) as caught:
        ffcv(betons, **given)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("box", [[0, 0, 1, 10**6], [-1, 0, 5, 5], [0, 0, 0, 5], [10**6, 0, 1, 1]])
def test_a_box_outside_the_image_is_refused_before_memory_is_accessed(
    loaders: Loaders, box: list[int]
) -> None:
    out = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="not inside its image"):
        loaders.test.beton.decode(torch.tensor([0]), torch.tensor([box]), out)


def test_a_damaged_image_is_named_in_one_line(betons: Path, tmp_path: Path) -> None:
    for name in FILES.values():
        shutil.copy(betons / name, tmp_path / name)
    beton = Beton(tmp_path / FILES["val"])
    number = int(beton.compressed.nonzero()[0])
    offset = int(beton._sample_index[number, 3])
    with open(tmp_path / FILES["val"], "r+b") as file:
        file.seek(offset)
        file.write(bytes(64))
    with pytest.raises(DataError, match=rf"image {number} cannot be decoded.*write_beton") as caught:
        list(ffcv(tmp_path).test.batches(0))
    assert len(str(caught.value).splitlines()) == 1


def test_without_ffcv_the_message_names_the_cure(betons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(DataError) as caught:
        ffcv(betons)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in ("scripts/install_ffcv.sh", "pip install '.[ffcv]'", "data=imagenet_folder"):
        assert word in message


def test_the_root_defaults_to_ham_data(betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.symlink(betons, tmp_path / "imagenet")
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    data = ImageNetFFCV(num_classes=5, image_size=16, workers=1)
    assert len(data.load(batch_size=4, seed=0, device=CPU).test) > 0
