"""ImageNet's FFCV loader around its files, which are stand-ins here: no FFCV is needed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import assert_equal
from torch import Tensor

from ham.data import DataError, ImageNetFFCV, Loaders, imagenet_ffcv
from ham.data.imagenet_ffcv import FFCVLoader, center_boxes, check_classes, random_boxes

pytest.importorskip("numba", reason="comes with FFCV")
CHECK = "check the file, or set data.num_classes"
CPU = torch.device("cpu")
OVERWRITE = "write both again from one folder, with python scripts/write_beton.py --overwrite"


class Stand:
    """Stand-in for a Beton of images of random pixels."""

    def __init__(self, path: Path, labels: list[int], classes: str = "") -> None:
        self.path, self.labels, self.classes = path, torch.tensor(labels), classes
        self.sizes = torch.tensor([[20 + number, 30] for number in range(len(labels))])

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, indices: Tensor, boxes: Tensor, out: Tensor) -> None:
        for index, box, image in zip(indices.tolist(), boxes, out, strict=True):
            draw = np.random.default_rng([index, *box.tolist()])
            image.copy_(torch.from_numpy(draw.integers(0, 256, image.shape, dtype=np.uint8)))


def load(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: list[int],
    val: list[int],
    *,
    batch_size: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    **fields: int | float,
) -> Loaders:
    """Load files with these labels."""
    for name in ("t", "v"):
        (root / name).touch()
    labels = {root / "t": train, root / "v": val}
    monkeypatch.setattr(imagenet_ffcv, "Beton", lambda path: Stand(path, labels[path]))
    given = {"num_classes": 2, "image_size": 4, "workers": 2, **fields}
    data = ImageNetFFCV(root=str(root), train="t", val="v", **given)
    return data.load(batch_size=batch_size, seed=seed, device=CPU, rank=rank, world_size=world_size)


def test_the_largest_batch_has_all_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaders = load(tmp_path, monkeypatch, [0, 1, 1], [1, 0], batch_size=3)
    assert (len(loaders.train), len(loaders.test)) == (1, 1)
    ((images, labels),) = loaders.train.batches(0)
    assert images.shape == (3, 3, 4, 4) and sorted(labels.tolist()) == [0, 1, 1]
    with pytest.raises(DataError, match=r"^batch_size=4 exceeds the 3 training images at .*/t$"):
        load(tmp_path, monkeypatch, [0, 1, 1], [1, 0], batch_size=4)


@pytest.mark.parametrize("min_crop", [0.0, 1.01])
def test_a_min_crop_out_of_range_is_refused(
    min_crop: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"^data\.min_crop must be a fraction of an image's area"):
        load(tmp_path, monkeypatch, [0, 1], [0, 1], min_crop=min_crop)


@pytest.mark.parametrize(("workers", "threads"), [(-1, 1), (0, 1), (1, 1), (3, 3)])
def test_at_least_one_thread_decodes(
    workers: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = load(tmp_path, monkeypatch, [0, 1] * 4, [0, 1], batch_size=8, workers=workers)
    pools = {id(loader._pool): loader._pool._max_workers for loader in (loaders.train, loaders.test)}
    assert list(pools.values()) == [threads]
    parts: list[int] = []
    decode = FFCVLoader._decode
    monkeypatch.setattr(
        FFCVLoader, "_decode", lambda self, *part: parts.append(len(part[0])) or decode(self, *part)
    )
    list(loaders.train.batches(0))
    assert len(parts) == threads and sum(parts) == 8


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (
            [0, 1, 2],
            [0, 1],
            f"/t has labels from 0 to 2, expected 0 to 1: {CHECK}=3",
        ),
        (
            [0, 1],
            [0, 2],
            f"/v has labels from 0 to 2, expected 0 to 1: {CHECK}=3",
        ),
        (
            [-1, 1],
            [0, 1],
            f"/t has labels from -1 to 1, expected 0 to 1: {CHECK}=2",
        ),
        ([0, 0], [0, 1], f"/t has 1 classes, expected 2: {CHECK}=1"),
        ([0, 1], [1, 1], f"/v has no images of 1 classes, such as class 0: {OVERWRITE}"),
    ],
)
def test_labels_of_other_classes_are_one_line(
    train: list[int], val: list[int], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, monkeypatch, train, val)
    assert str(caught.value) == f"{tmp_path}{words}"


def test_the_missing_file_is_named_with_its_split(tmp_path: Path) -> None:
    (tmp_path / "t").touch()
    with pytest.raises(DataError, match=r"^ImageNet's val images are not at .*/v: write them with python "):
        ImageNetFFCV(root=str(tmp_path), train="t", val="v").load(batch_size=1, seed=0, device=CPU)


@pytest.mark.parametrize(
    ("names", "is_refused"), [(("a", "a"), 0), (("a", ""), 0), (("", "b"), 0), (("a", "b"), 1)]
)
def test_names_of_classes_are_compared_where_both_files_have_them(
    names: tuple[str, str], is_refused: bool, tmp_path: Path
) -> None:
    train, val = (Stand(tmp_path / name, [0, 1], name) for name in names)
    if not is_refused:
        check_classes(train, val)
        return
    with pytest.raises(DataError) as caught:
        check_classes(train, val)
    assert str(caught.value) == (
        f"{tmp_path}/a and {tmp_path}/b were written from other class folders: {OVERWRITE}"
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_device_computes_what_the_threads_of_a_cpu_do(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without their table, as on a GPU, images are flipped and normalized batch by batch."""
    loader = getattr(load(tmp_path, monkeypatch, [0, 1] * 8, [0, 1] * 3, batch_size=5), split)
    assert loader._pixel_table is not None
    expected = list(loader.batches(1))
    loader._pixel_table = None
    assert_equal(list(loader.batches(1)), expected)
    _, flipped = loader._augmentation(1)
    assert flipped.dtype == torch.bool and flipped.any() == (split == "train")


def test_the_streams_of_crops_and_flips_are_apart_and_change_with_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = load(tmp_path, monkeypatch, [0, 1] * 50, [0, 1], seed=7).train
    for epoch in (0, 3):
        boxes, flipped = train._augmentation(epoch)
        draws = []
        for name in ("crops", "flips"):
            seed = imagenet_ffcv.derived_seed(7, f"{name} {epoch}")
            draws.append(torch.Generator().manual_seed(seed))
        assert torch.equal(boxes, random_boxes(train.beton.sizes, 0.08, draws[0]))
        assert torch.equal(flipped, torch.rand(100, generator=draws[1]) < 0.5)
    test = load(tmp_path, monkeypatch, [0, 1], [0, 1]).test
    assert torch.equal(test._augmentation(5)[0], center_boxes(test.beton.sizes))


def test_an_epoch_that_is_left_waits_for_what_its_threads_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = load(tmp_path, monkeypatch, [0, 1] * 20, [0, 1], batch_size=2).train
    waited: list[int] = []
    wait = imagenet_ffcv.wait
    monkeypatch.setattr(imagenet_ffcv, "wait", lambda parts: waited.append(len(parts)) or wait(parts))
    batches = loader.batches(0)
    next(batches)
    pending = []
    monkeypatch.setattr(imagenet_ffcv.Future, "cancel", lambda part: pending.append(part) or False)
    batches.close()
    assert waited == [len(pending)] and all(part.done() for part in pending) and len(pending) >= 2


def one_box(height: int, width: int, min_crop: float, draws: np.ndarray) -> tuple[int, ...] | None:
    """A try of RandomResizedCrop by hand, from four uniform numbers."""
    area = height * width * (min_crop + (1 - min_crop) * draws[0])
    ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draws[1])
    rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
    if not (0 < rows <= height and 0 < columns <= width):
        return None
    return (
        math.floor(draws[2] * (height - rows + 1)),
        math.floor(draws[3] * (width - columns + 1)),
        rows,
        columns,
    )


@pytest.mark.parametrize("min_crop", [0.08, 0.6, 1.0])
def test_boxes_equal_those_of_one_image_after_the_other(min_crop: float) -> None:
    """Each try draws four numbers for every image without a box yet; ten tries, then the largest box."""
    draw = torch.Generator().manual_seed(3)
    sizes = torch.randint(1, 60, (300, 2), generator=draw)
    boxes = random_boxes(sizes, min_crop, torch.Generator().manual_seed(5)).tolist()
    stream = torch.Generator().manual_seed(5)
    expected: dict[int, tuple[int, ...]] = {}
    for _ in range(10):
        todo = [number for number in range(300) if number not in expected]
        draws = torch.rand(4, len(todo), generator=stream, dtype=torch.float64).numpy()
        for number, column in zip(todo, draws.T, strict=True):
            if box := one_box(*sizes[number].tolist(), min_crop, column):
                expected[number] = box
    assert {tuple(boxes[number]) == box for number, box in expected.items()} == {True}
    assert len(expected) > 30
    for number in {*range(300)} - {*expected}:
        height, width = sizes[number].tolist()
        rows, columns = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
        assert boxes[number] == [(height - rows) // 2, (width - columns) // 2, rows, columns]


def test_an_image_that_fits_no_box_is_tried_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **more: calls.append(size[1]) or rand(*size, **more))
    random_boxes(torch.tensor([[1, 10**6], [10**6, 1]]), 0.08, torch.Generator())
    assert calls == [2] * 10
