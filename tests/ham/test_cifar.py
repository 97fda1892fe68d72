"""CIFAR-100: batches equal a slow reference and depend only on seed and epoch; files are not trusted."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections import Counter
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from typing import Any

import cifar_noise
import numpy as np
import pytest
import torch
from batches import assert_equal, read_epoch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ham.data import Cifar100, DataError, Loaders, cifar_files
from ham.data.base import RankSampler
from ham.data.checksums import SUMS, read_sums, write_sums
from ham.data.cifar import Augmentation, CifarLoader, Flip
from ham.run.build import build
from ham.run.config import config_hash, experiments
from ham.run.config import load as loaded
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.tasks.images import ImageClassification

CPU = torch.device("cpu")
OPERATIONS = 19  # of a batch: selections, one gather, a difference and a quotient, and their views
MEAN, STD = np.array([0.5071, 0.4867, 0.4408]), np.array([0.2675, 0.2565, 0.2761])  # as published


def load(
    root: Path, batch_size: int = 60, seed: int = 0, rank: int = 0, world_size: int = 1, **fields: Any
) -> Loaders:
    data = Cifar100(root=str(root), **fields)
    return data.load(batch_size=batch_size, seed=seed, device=CPU, rank=rank, world_size=world_size)


def raw(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 3, 32, 32] and labels, as `small_cifar100` wrote them."""
    record = cifar_noise.record(split)
    return record[b"data"].reshape(-1, 3, 32, 32), np.array(record[b"fine_labels"])


def reference(image: np.ndarray, down: int, right: int, flipped: bool, pad: int) -> np.ndarray:
    """Reflection-pad, crop, flip and normalize one image, uint8 [3, S, S]; float64."""
    side = image.shape[-1]
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    crop = padded[:, pad + down : pad + down + side, pad + right : pad + right + side]
    crop = np.flip(crop, axis=2) if flipped else crop
    return (crop / 255 - MEAN[:, None, None]) / STD[:, None, None]


def numbered(count: int, side: int = 4, **sampler: Any) -> CifarLoader:
    """A loader of small random images whose label is their index."""
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, side, side), np.uint8))
    augmentation = Augmentation(sampler.pop("flip", Flip.alternating), sampler.pop("translate", 2), seed=3)
    return CifarLoader(pixels, torch.arange(count), RankSampler(count, **sampler), augmentation)


# the content of a batch


@pytest.mark.parametrize("epoch", [0, 1, 6])
@pytest.mark.parametrize("translate", [0, 2, 7])
@pytest.mark.parametrize("flip", list(Flip))
def test_a_batch_equals_the_slow_reference_image_by_image(flip: Flip, translate: int, epoch: int) -> None:
    loader = numbered(40, side=32, batch_size=12, seed=5, flip=flip, translate=translate)
    down, right, flipped = (draws.tolist() for draws in loader.augmentation.draw(epoch, 40))
    batches = list(loader.batches(epoch))
    assert [len(labels) for _, labels in batches] == [12, 12, 12]
    for images, labels in batches:
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        expected = [
            reference(loader.pixels[n].numpy(), down[n], right[n], bool(flipped[n]), translate)
            for n in labels.tolist()
        ]
        torch.testing.assert_close(images.double(), torch.from_numpy(np.stack(expected)), rtol=0, atol=2e-6)


def test_every_crop_and_flip_is_equally_likely() -> None:
    for flip, orientations in ((Flip.alternating, 2), (Flip.random, 2), (Flip.none, 1)):
        draws = torch.stack(Augmentation(flip, 2, seed=0).draw(1, 50_000)).T.tolist()
        counts = Counter(map(tuple, draws))
        assert set(counts) == set(product(range(-2, 3), range(-2, 3), range(orientations)))
        expected = 50_000 / len(counts)
        assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


def test_alternating_flips_show_both_sides_of_each_image_in_two_epochs() -> None:
    loader = numbered(200, batch_size=200, seed=0, translate=0)

    def images_in_order(epoch: int) -> Tensor:
        images, labels = read_epoch(loader, epoch)
        return images[labels.argsort()]

    plain = (loader.pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    first = images_in_order(0)
    flipped = (first - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    assert 60 < flipped.sum() < 140, "about half of them in the first epoch"
    for epoch in range(1, 5):
        assert torch.equal(images_in_order(epoch), first.flip(-1) if epoch % 2 else first)


def test_random_flips_are_drawn_in_each_epoch() -> None:
    augmentation = Augmentation(Flip.random, 0)
    flips = torch.stack([augmentation.draw(epoch, 4000)[2] for epoch in range(4)])
    for one, other in ((0, 1), (1, 2), (0, 2), (1, 3)):
        assert 1800 < (flips[one] == flips[other]).sum() < 2200


def test_an_epoch_has_97_batches_of_512_and_each_image_at_most_once() -> None:
    loader = numbered(50_000, batch_size=512, seed=0)
    assert len(loader) == 97
    for epoch in (0, 1):
        labels = [labels for _, labels in loader.batches(epoch)]
        assert [len(batch) for batch in labels] == [512] * 97
        assert len(set(torch.cat(labels).tolist())) == 97 * 512


# what a batch depends on


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_batches_joined_equal_the_single_process_batch_bit_for_bit(
    world_size: int, small_cifar100: Path
) -> None:
    single = load(small_cifar100).train
    loaders = [load(small_cifar100, rank=rank, world_size=world_size).train for rank in range(world_size)]
    for epoch in (0, 3):
        batches = zip(*(loader.batches(epoch) for loader in loaders), strict=True)
        joined = [tuple(torch.cat(parts) for parts in zip(*batch, strict=True)) for batch in batches]
        assert_equal(joined, list(single.batches(epoch)))


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_can_start_at_any_batch_whatever_was_drawn_before(start: int, small_cifar100: Path) -> None:
    expected = list(load(small_cifar100).train.batches(2))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    loaders = load(small_cifar100)
    list(loaders.test.batches(0))
    list(loaders.train.batches(7))
    assert_equal(list(loaders.train.batches(2, start=start)), expected[start:])
    assert torch.equal(torch.get_rng_state(), before), "the global generator belongs to the model"


def test_an_images_crop_depends_on_seed_and_epoch_not_on_the_batch_size(small_cifar100: Path) -> None:
    def images(seed: int, epoch: int, batch_size: int) -> set[bytes]:
        all_images, _ = read_epoch(load(small_cifar100, seed=seed, batch_size=batch_size).train, epoch)
        return {image.numpy().tobytes() for image in all_images}

    assert images(0, 0, 300) == images(0, 0, 60) == images(0, 0, 100)
    variants = [images(seed, epoch, 300) for seed, epoch in product((0, 1), (0, 1, 2))]
    for number, one in enumerate(variants):
        for other in variants[:number]:
            assert len(one & other) < 300 * 0.09, "one in 50 has the same crop again, one in 25 without flips"


def test_crops_and_flips_are_drawn_from_the_streams_of_seed_and_epoch() -> None:
    """A stream's seed is the BLAKE2b digest of "seed/name": an older run can be repeated as long as it is."""

    def draws(name: str, *arguments: Any) -> Tensor:
        digest = hashlib.blake2b(f"3/{name}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "big") % 2**63
        return torch.randint(*arguments, generator=torch.Generator().manual_seed(seed))

    down, right, flipped = Augmentation(Flip.random, translate=2, seed=3).draw(epoch=6, count=50)
    assert torch.equal(torch.stack([down, right]), draws("crops 6", 5, (2, 50)) - 2)
    assert torch.equal(flipped, draws("flips 6", 2, (50,)))
    alternating = Augmentation(Flip.alternating, translate=2, seed=3).draw(epoch=6, count=50)
    assert torch.equal(alternating[2], draws("flips", 2, (50,)))


@pytest.mark.parametrize("world_size", [1, 3])
def test_test_images_are_read_once_without_augmentation(world_size: int, small_cifar100: Path) -> None:
    pixels, labels = raw("test")
    expected = [
        (reference(image, 0, 0, False, 0), label) for image, label in zip(pixels, labels, strict=True)
    ]
    for rank in range(world_size):
        loader = load(small_cifar100, rank=rank, world_size=world_size).test
        images, labels = read_epoch(loader, epoch=rank)
        of_rank = expected[rank::world_size]
        assert len(loader) == len(list(loader.batches(0))) == -(-len(of_rank) // (60 // world_size))
        assert labels.tolist() == [label for _, label in of_rank]
        stacked = torch.from_numpy(np.stack([image for image, _ in of_rank]))
        torch.testing.assert_close(images.double(), stacked, rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_the_same_batches_as_a_cpu(small_cifar100: Path) -> None:
    data = Cifar100(root=str(small_cifar100))
    cpu, gpu = (data.load(batch_size=60, seed=0, device=torch.device(d)).train for d in ("cpu", "cuda"))
    for (images, labels), (gpu_images, gpu_labels) in zip(cpu.batches(1), gpu.batches(1), strict=True):
        assert gpu_images.is_cuda and torch.equal(labels, gpu_labels.cpu())
        torch.testing.assert_close(gpu_images.cpu(), images, rtol=0, atol=1e-6)


# files in all formats that exist


def python2(record: dict[bytes, Any]) -> bytes:
    """Pickle like Python 2's cPickle did the official files: protocol 2, byte strings, names of numpy 1."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    pixels = record[b"data"]
    array = b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R",
            b"(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86",
            b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R",
            b"(K\x03" + text(b"|") + b"NNN" + 2 * number(-1) + b"K\x00tb",
            b"\x89T" + struct.pack("<i", pixels.nbytes) + pixels.tobytes() + b"tb",
        ]
    )
    labels = b"](" + b"".join(map(number, record[b"fine_labels"])) + b"e"
    items = text(b"batch_label") + text(b"training batch 1 of 1") + text(b"fine_labels") + labels
    return b"\x80\x02}(" + items + text(b"data") + array + b"u."


def as_text(record: dict[bytes, Any]) -> dict[str, Any]:
    return {key.decode(): value for key, value in record.items()}


FORMS: dict[str, Callable[[dict[bytes, Any]], bytes]] = {
    "python 2": python2,
    **{f"protocol {p}": lambda record, p=p: pickle.dumps(record, protocol=p) for p in range(6)},
    "numpy 1": lambda record: pickle.dumps(record, protocol=2).replace(b"numpy._core", b"numpy.core"),
    "text keys": lambda record: pickle.dumps(as_text(record)),
    "columns first": lambda record: pickle.dumps({**record, b"data": np.asfortranarray(record[b"data"])}),
    "label array": lambda record: pickle.dumps({**record, b"fine_labels": np.array(record[b"fine_labels"])}),
    "big-endian": lambda record: pickle.dumps(
        {**record, b"fine_labels": np.array(record[b"fine_labels"], ">i4")}
    ),
    "a slice": lambda record: pickle.dumps(
        {**record, b"data": np.repeat(record[b"data"], 2, axis=1)[:, ::2]}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_pickles_of_every_format_give_the_same_images(form: str, small_cifar100: Path) -> None:
    path = small_cifar100 / "test"
    record = cifar_noise.record("test")
    path.write_bytes(written := FORMS[form](record))
    unpickled = pickle.loads(written, encoding="bytes")  # safe: the bytes were written above
    assert np.array_equal(unpickled.get(b"data", unpickled.get("data")), record[b"data"])
    pixels, labels = cifar_files.read_official(small_cifar100)["test"]
    assert np.array_equal(pixels.reshape(-1, 3072), record[b"data"]) and pixels.dtype == np.uint8
    assert labels.tolist() == record[b"fine_labels"] and labels.dtype == np.int64


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "as the labels"])
@pytest.mark.parametrize("function", ["os.system", "eval", "np.fromfile", "getattr"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(
    function: str, inside: bool, protocol: int, small_cifar100: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    malicious = {
        "os.system": Call(os.system, f"touch {trace}"),
        "eval": Call(eval, f"open({str(trace)!r}, 'w')"),
        "np.fromfile": Call(np.fromfile, str(small_cifar100 / "meta"), np.uint8),
        "getattr": Call(getattr, Call(getattr, [], "append"), "__self__"),
    }[function]
    path = small_cifar100 / "test"
    record = {**cifar_noise.record("test"), b"fine_labels": malicious}
    path.write_bytes(pickle.dumps(record if inside else malicious, protocol=protocol))
    refuses(small_cifar100, f"{path} cannot be unpickled", "do not trust it", "prepare_data.py cifar100")
    assert not trace.exists()


def test_a_malicious_name_cannot_break_the_line_or_the_allow_list(small_cifar100: Path) -> None:
    for opcodes in (
        b"\x80\x04\x8c\x06os\nfoo\x8c\x06system\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.alias\x93.",
        b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x01\x85NK\x00NtbN.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
    ):
        (small_cifar100 / "train").write_bytes(opcodes)
        refuses(small_cifar100, "/train cannot be unpickled", "prepare_data.py cifar100")


# invalid files


def refuses(root: Path, *words: str, **arguments: Any) -> None:
    with pytest.raises(DataError) as caught:
        load(root, **arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == [], message


def change_one(labels: list[int]) -> list[int]:
    """Change one label, so that a class has one image too few."""
    return [(labels[0] + 1) % 100, *labels[1:]]


DAMAGE: dict[str, tuple[Callable[[dict[bytes, Any]], Any], str]] = {
    "a list": (lambda r: [r], "holds a list"),
    "no images": (lambda r: {b"fine_labels": r[b"fine_labels"]}, "no data"),
    "no labels": (lambda r: {b"data": r[b"data"]}, "no fine_labels"),
    "CIFAR-10": (lambda r: {b"data": r[b"data"], b"labels": r[b"fine_labels"]}, "no fine_labels"),
    "an image too few": (lambda r: {**r, b"data": r[b"data"][1:]}, "(99, 3072), expected uint8 (100, 3072)"),
    "other size": (lambda r: {**r, b"data": r[b"data"][:, :3000]}, "(100, 3000)"),
    "other type": (lambda r: {**r, b"data": r[b"data"].astype(np.float32)}, "float32"),
    "no array": (lambda r: {**r, b"data": r[b"data"].tolist()}, "as list"),
    "a label too few": (lambda r: {**r, b"fine_labels": r[b"fine_labels"][1:]}, "0 images of class"),
    "a label changed": (lambda r: {**r, b"fine_labels": change_one(r[b"fine_labels"])}, "images of class"),
    "a label of 100": (
        lambda r: {**r, b"fine_labels": [100, *r[b"fine_labels"][1:]]},
        "not integers from 0 to 99",
    ),
    "below 0": (lambda r: {**r, b"fine_labels": [-1, *r[b"fine_labels"][1:]]}, "not integers from 0 to 99"),
    "strings": (lambda r: {**r, b"fine_labels": ["a"] * 100}, "not integers from 0 to 99"),
    "fractions": (lambda r: {**r, b"fine_labels": np.full(100, 0.5)}, "not integers from 0 to 99"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_invalid_content_is_reported_in_one_line_with_the_cure(kind: str, small_cifar100: Path) -> None:
    change, words = DAMAGE[kind]
    path = small_cifar100 / "test"
    path.write_bytes(pickle.dumps(change(cifar_noise.record("test"))))
    refuses(small_cifar100, str(path), words, f"prepare_data.py cifar100 --to {small_cifar100.parent}")


@pytest.mark.parametrize("name", cifar_files.FILES)
@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "not a pickle", "a folder"])
def test_damaged_files_are_reported_in_one_line_with_the_cure(
    kind: str, name: str, small_cifar100: Path
) -> None:
    path = small_cifar100 / name
    content = path.read_bytes()
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(
            {"empty": b"", "truncated": content[:-100], "not a pickle": b"<html>\nlogin</html>"}[kind]
        )
    refuses(small_cifar100, str(path), "move", "prepare_data.py cifar100")


def test_a_pickle_truncated_anywhere_is_refused(small_cifar100: Path) -> None:
    path = small_cifar100 / "test"
    content = path.read_bytes()
    for length in {*range(0, 300, 7), *range(len(content) - 700, len(content), 13)}:
        path.write_bytes(content[:length])
        refuses(small_cifar100, str(path), "prepare_data.py cifar100")


def test_an_array_without_content_is_refused(small_cifar100: Path) -> None:
    empty = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    (small_cifar100 / "test").write_bytes(b"\x80\x02}(U\x04data" + empty + b"U\x0bfine_labels]u.")
    refuses(small_cifar100, "/test holds images as NoneType")


def test_class_names_are_counted(small_cifar100: Path) -> None:
    for names in ([b"apple"] * 100, [b"apple"], list(range(100)), 7):
        (small_cifar100 / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}))
        refuses(small_cifar100, "/meta does not name 100 classes")


def test_a_changed_pixel_is_detected_by_sha256sums(small_cifar100: Path) -> None:
    write_sums(small_cifar100, cifar_files.FILES)
    assert set(read_sums(small_cifar100)) == set(cifar_files.FILES)
    load(small_cifar100)
    path = small_cifar100 / "train"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refuses(small_cifar100, f"{path} is damaged", SUMS, "prepare_data.py cifar100")
    (small_cifar100 / SUMS).unlink()
    load(small_cifar100)
    for text in ("half a line", "0" * 64 + "  test\n"):
        (small_cifar100 / SUMS).write_text(text)
        refuses(small_cifar100, SUMS, "prepare_data.py cifar100")


def test_a_missing_folder_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    cure = f"python scripts/prepare_data.py cifar100 --to {tmp_path}"
    refuses(tmp_path / "cifar-100-python", "not at", cure, "data.root", "HAM_DATA", "+demo=digits")
    cure = f"cifar100 --to {tmp_path}/elsewhere, then data.root={tmp_path}/elsewhere/cifar-100-python;"
    refuses(tmp_path / "elsewhere", cure, "HAM_DATA")


@pytest.mark.parametrize("batch_size", [0, -1, 301])
def test_a_batch_size_out_of_range_is_refused(batch_size: int, small_cifar100: Path) -> None:
    refuses(small_cifar100, f"batch_size={batch_size} ", "1 to 300", batch_size=batch_size)


def test_a_batch_size_that_the_ranks_do_not_divide_is_refused(small_cifar100: Path) -> None:
    refuses(small_cifar100, "batch_size=61 ", "multiple of the 2 ranks", batch_size=61, world_size=2)


@pytest.mark.parametrize(
    "fields", [{"num_classes": 10}, {"image_size": 64}, {"translate": -1}, {"translate": 32}, {"flip": "up"}]
)
def test_facts_of_the_data_set_cannot_be_changed(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(fields) + "|Flip"):
        Cifar100(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        *({"image_size": 1, "translate": 0}, {"image_size": 32, "translate": 31}),
        *({"per_class": 500}, {"per_class": 1, "validation_per_class": 499}, {"validation_per_class": 499}),
    ],
)
def test_the_limits_of_sizes_are_accepted(fields: dict[str, int]) -> None:
    data = Cifar100(**fields)
    assert {key: getattr(data, key) for key in fields} == fields


@pytest.mark.parametrize(
    ("world_size", "choice"), [(1, "choose 1 to 300"), (2, "choose 1 to 300, a multiple of the 2 ranks")]
)
def test_the_message_of_a_wrong_batch_size_names_the_ranks_if_there_are_several(
    world_size: int, choice: str, small_cifar100: Path
) -> None:
    with pytest.raises(DataError) as caught:
        load(small_cifar100, batch_size=302, world_size=world_size)
    assert str(caught.value) == f"batch_size=302 does not fit CIFAR-100: {choice}"


def test_the_root_defaults_to_ham_data(small_cifar100: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAM_DATA", str(small_cifar100.parent))
    assert len(Cifar100().load(batch_size=50, seed=0, device=CPU).train) == 6


# the real images


def test_the_real_images_have_their_published_statistics(cifar100: Path) -> None:
    loaders = load(cifar100 / "cifar-100-python", batch_size=5000, flip="none", translate=0)
    assert Counter(read_epoch(loaders.test)[1].tolist()) == dict.fromkeys(range(100), 100)
    means, squares, all_labels = [], [], []
    for images, labels in loaders.train.batches(0):
        means.append(images.mean((0, 2, 3)))
        squares.append(images.square_().mean((0, 2, 3)))
        all_labels += labels.tolist()
    assert Counter(all_labels) == dict.fromkeys(range(100), 500)
    mean = torch.stack(means).double().mean(0)  # 0 and 1 if the published values are exact
    std = (torch.stack(squares).double().mean(0) - mean**2).sqrt()
    assert (mean * torch.tensor(STD)).abs().max() < 1e-3
    assert ((std - 1) * torch.tensor(STD)).abs().max() < 1e-3


def test_an_epoch_of_the_real_images_has_97_steps(cifar100: Path) -> None:
    train = load(cifar100 / "cifar-100-python", batch_size=512).train
    images, labels = next(train.batches(0, start=96))
    assert len(train) == 97 and images.shape == (512, 3, 32, 32) and len(labels) == 512
    assert not list(train.batches(0, start=97))


def test_every_experiment_of_table_7_takes_steps_on_the_real_images(cifar100: Path, tmp_path: Path) -> None:
    names = [name for name, cell in experiments().items() if cell.startswith("Table 7")]
    assert len(names) == 8
    loaders = load(cifar100 / "cifar-100-python", batch_size=8)
    square_norms = set()
    for name in names:
        cfg = loaded([f"+exp={name}", "batch_size=8", "model.width=8"])
        assert cfg.epochs == 150 and (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (0.2, 1e-4)
        run = build(
            cfg, config_hash(cfg), ImageClassification(cfg, CPU, loaders), NullLogger(tmp_path, cfg), CPU
        )
        for batch in islice(loaders.train.batches(0), 3):
            assert torch.isfinite(train_step(run, batch))
        square_norms.add(float(sum(p.detach().double().square().sum() for p in run.params)))
    assert len(square_norms) == 8  # every experiment trains differently


class CountOperations(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        self.count += 1
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("batch_size", [1, 10, 60, 100, 150])
def test_a_batch_costs_the_same_operations_whatever_its_size(batch_size: int, small_cifar100: Path) -> None:
    batches = load(small_cifar100, batch_size=batch_size).train.batches(0)
    next(batches)  # the first one draws for the entire epoch
    with CountOperations() as operations:
        next(batches)
    assert operations.count == OPERATIONS


def test_each_file_is_read_once(small_cifar100: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, read_bytes = [], cifar_files.read_bytes
    monkeypatch.setattr(cifar_files, "read_bytes", lambda path: names.append(path.name) or read_bytes(path))
    loaders = load(small_cifar100)
    for epoch in range(3):
        list(loaders.train.batches(epoch)), list(loaders.test.batches(epoch))
    assert sorted(names) == sorted(cifar_files.FILES)


# through the command line


def test_sam_with_ham_takes_real_steps(
    command: Callable[..., Any], small_cifar100: Path, tmp_path: Path
) -> None:
    tiny = ["model.width=8", "model.layers=[1,1,1,1]", "batch_size=150", "epochs=1", "compute.device=cpu"]
    done = command("+exp=cifar100_sam_ham", *tiny, f"data.root={small_cifar100}", f"runs_dir={tmp_path}/runs")
    assert done.status == 0, done.err
    (path,) = tmp_path.glob("runs/cifar100_sam_ham-*/seed0/summary.json")
    summary = json.loads(path.read_text())
    assert summary["cell"] == "Table 7, HAM + SAM" and summary["timing"]["steps"] == 2
    assert 3 < summary["metrics"]["train_loss"] < 7, "about log(100)"


def test_without_the_data_the_command_line_names_the_cure(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    done = command("+exp=cifar100", f"data.root={tmp_path}/cifar-100-python", f"runs_dir={tmp_path}/runs")
    assert done.status == 2 and len(done.complaints) == 1
    assert f"scripts/prepare_data.py cifar100 --to {tmp_path}" in done.complaints[0]
