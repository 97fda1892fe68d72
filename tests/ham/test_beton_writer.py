"""Written files have the labels of the usual tree, are complete or absent, and errors are one line."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from ham.data import DataError, beton_writer
from ham.data.beton import Beton, import_ffcv
from ham.data.beton_writer import Format, write_split
from ham.data.imagenet_source import ARCHIVES, COUNTS, DEVKIT, Source, class_names, is_official, open_source

try:
    import_ffcv()
except DataError as error:
    pytest.skip(str(error), allow_module_level=True)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "write_beton.py"
FILES = {"train": "train_500_0.50_90.beton", "val": "val_500_0.50_90.beton"}
WNIDS = ["n01440764", "n02102040", "n03000684"]  # sorted, as ImageFolder numbers them
DEVKIT_IDS = {"n03000684": 1, "n01440764": 2, "n02102040": 3}  # another order
PER_CLASS = {"train": 5, "val": 3}


def pixels(seed: int, mode: str = "RGB") -> Image.Image:
    """A smooth image that differs from those of other seeds even as JPEG."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize(tuple(draw.integers(60, 120, 2)), Image.BICUBIC).convert(mode)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return buffer.getvalue()


def devkit(truth: list[int]) -> bytes:
    """The archive with meta.mat, hypernyms included, and the classes of the validation images."""
    from scipy.io import savemat

    rows = [(number, name, 0) for name, number in DEVKIT_IDS.items()] + [(4, "n00001740", 3)]
    synsets = np.zeros(
        (len(rows), 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    )
    for row, values in zip(synsets[:, 0], rows, strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["num_children"] = values
    table = io.BytesIO()
    savemat(table, {"synsets": synsets})
    inside = "ILSVRC2012_devkit_t12/data/"
    lines = "".join(f"{number}\n" for number in truth).encode()
    files = {
        inside + "meta.mat": table.getvalue(),
        inside + "ILSVRC2012_validation_ground_truth.txt": lines,
    }
    return gzip.compress(archive_of(files))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same images as the usual tree and as the official archives; one gray, one CMYK."""
    tree, archives = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("archives")
    seeds = iter(range(1000))

    def jpeg(mode: str = "RGB") -> bytes:
        buffer = io.BytesIO()
        pixels(next(seeds), mode).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    train = {}
    for wnid in WNIDS:
        modes = {1: "L", 2: "CMYK"} if wnid == WNIDS[1] else {}
        names = [f"{wnid}_{number}.JPEG" for number in (10, 2, 33, 4, 100)]  # not in their sorted order
        train[wnid] = {name: jpeg(modes.get(place, "RGB")) for place, name in enumerate(names)}
    shuffled = [WNIDS[2], WNIDS[0], WNIDS[1]]
    outer = archive_of({f"{wnid}.tar": archive_of(train[wnid]) for wnid in shuffled})
    (archives / ARCHIVES["train"]).write_bytes(outer)

    owners = [WNIDS[k] for k in (2, 0, 1, 1, 2, 0, 0, 2, 1)]
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg() for number in range(1, len(owners) + 1)}
    (archives / ARCHIVES["val"]).write_bytes(archive_of(dict(reversed(val.items()))))
    (archives / DEVKIT).write_bytes(devkit([DEVKIT_IDS[wnid] for wnid in owners]))

    files = [(f"train/{wnid}/{name}", content) for wnid in WNIDS for name, content in train[wnid].items()]
    files += [
        (f"val/{wnid}/{name}", content) for wnid, (name, content) in zip(owners, val.items(), strict=True)
    ]
    for name, content in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    return tree, archives


@pytest.fixture
def script(
    write_beton: ModuleType, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`script("--from", ...)`: exit status, stdout, and the lines on stderr without progress bars."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = write_beton.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        lines = [
            line for line in err.replace("\r", "\n").splitlines() if line.strip() and "images/s" not in line
        ]
        return status, out, "\n".join(lines)

    return run


def decoded(path: Path) -> list[np.ndarray]:
    beton = Beton(path)
    images = []
    for number, (height, width) in enumerate(beton.sizes.tolist()):
        out = torch.empty(1, height, width, 3, dtype=torch.uint8)
        beton.decode(torch.tensor([number]), torch.tensor([[0, 0, height, width]]), out)
        images.append(out[0].numpy())
    return images


@pytest.mark.parametrize("split", ["train", "val"])
def test_archives_are_read_as_image_folder_reads_the_tree(imagenet: tuple[Path, Path], split: str) -> None:
    from torchvision.datasets import ImageFolder

    tree, archives = imagenet
    reference = ImageFolder(str(tree / split))
    for folder in (tree, archives):
        source = open_source(folder, split)
        assert source.classes == WNIDS == reference.classes
        assert source.labels == reference.targets and len(source) == PER_CLASS[split] * 3
        for number in range(len(source)):
            assert Path(source.names[number].split(" in ")[0]).name == Path(reference.samples[number][0]).name
            assert np.array_equal(source.image(number), np.asarray(reference[number][0])), source.names[
                number
            ]


def test_files_from_archives_and_tree_are_the_same_to_the_byte(
    imagenet: tuple[Path, Path], script: Callable, tmp_path: Path
) -> None:
    for folder, name in zip(imagenet, ("tree", "archives"), strict=True):
        status, out, err = script(
            "--from", folder, "--to", tmp_path / name, "--workers", 1, "--expect", "any"
        )
        assert (status, err) == (0, "") and out.count("of 3 classes") == 2
    for name in FILES.values():
        assert (tmp_path / "tree" / name).read_bytes() == (tmp_path / "archives" / name).read_bytes()
    assert Beton(tmp_path / "tree" / FILES["train"]).labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_what_an_image_becomes_does_not_depend_on_the_workers(
    photos: Path, betons: Path, script: Callable, tmp_path: Path
) -> None:
    assert script("--from", photos, "--to", tmp_path, "--splits", "val", "--workers", 3)[0] == 0
    one, two = Beton(betons / FILES["val"]), Beton(tmp_path / FILES["val"])
    assert torch.equal(one.compressed, two.compressed) and torch.equal(one.labels, two.labels)
    pairs = zip(decoded(betons / FILES["val"]), decoded(tmp_path / FILES["val"]), strict=True)
    assert all(np.array_equal(first, second) for first, second in pairs)


def test_about_half_of_the_images_are_jpegs_of_at_most_500_pixels(photos: Path, betons: Path) -> None:
    beton = Beton(betons / FILES["train"])
    count = len(list((photos / "train").glob("*/*")))
    assert len(beton) == count and abs(beton.compressed.float().mean() - 0.5) < 4 * 0.5 / count**0.5
    assert beton.sizes.max() <= 500
    paths = sorted((photos / "train").glob("*/*"), key=lambda path: (path.parent.name, path.name))
    names = sorted({path.parent.name for path in paths})
    assert beton.labels.tolist() == [names.index(path.parent.name) for path in paths]
    for number in range(0, count, 40):
        image = Image.open(paths[number]).convert("RGB")
        if max(image.size) <= 500:
            out = torch.empty(1, image.height, image.width, 3, dtype=torch.uint8)
            beton.decode(torch.tensor([number]), torch.tensor([[0, 0, image.height, image.width]]), out)
            difference = np.abs(out[0].numpy().astype(int) - np.asarray(image)).mean()
            assert difference < 8 if beton.compressed[number] else difference == 0


def test_other_formats_are_named_after_their_values(
    imagenet: tuple[Path, Path], script: Callable, tmp_path: Path
) -> None:
    given = ("--splits", "val", "--max-resolution", 64, "--jpeg-share", 0, "--quality", 80)
    assert script("--from", imagenet[0], "--to", tmp_path, *given)[0] == 0
    beton = Beton(tmp_path / "val_64_0.00_80.beton")
    assert beton.sizes.max() <= 64 and not beton.compressed.any()


def test_a_good_file_is_kept_and_another_one_is_not(
    imagenet: tuple[Path, Path], script: Callable, tmp_path: Path
) -> None:
    given = ("--from", imagenet[0], "--to", tmp_path, "--splits", "val", "--workers", 1)
    assert script(*given)[0] == 0
    path = tmp_path / FILES["val"]
    written, content = path.stat().st_ino, path.read_bytes()
    status, out, _ = script(*given)
    assert (status, path.stat().st_ino) == (0, written) and "kept" in out
    assert script(*given, "--overwrite")[0] == 0 and path.stat().st_ino != written
    assert path.read_bytes() == content
    path.write_bytes(content[:-100])
    status, _, err = script(*given)
    assert status == 2 and len(err.splitlines()) == 1 and "--overwrite" in err and str(path) in err
    other = Path(shutil.copytree(imagenet[0], tmp_path / "other"))
    (other / "val" / WNIDS[0] / "ILSVRC2012_val_00000002.JPEG").unlink()
    path.write_bytes(content)
    status, _, err = script("--from", other, "--to", tmp_path, "--splits", "val")
    assert status == 2 and "other images or labels" in err and path.read_bytes() == content


@pytest.fixture(scope="module")
def few_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of each class to train with and two to validate."""
    root = tmp_path_factory.mktemp("few")
    for split, count in (("train", 10), ("val", 2)):
        for folder in sorted(path for path in (photos / split).iterdir() if path.is_dir()):
            (root / split / folder.name).mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:count]:
                shutil.copy(photo, root / split / folder.name)
    return root


# write_beton.py with a worker that waits in the middle of the images.
STALLED = """
import runpy, sys, time
from ham.data.imagenet_source import Source

read = Source.image

def image(self, index):
    if index == 30:
        time.sleep(600)
    return read(self, index)

Source.image = image
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing_under_the_final_name(
    number: signal.Signals, few_photos: Path, script: Callable, tmp_path: Path
) -> None:
    flags = ["--from", str(few_photos), "--to", str(tmp_path), "--workers", "2"]
    command = [sys.executable, "-c", STALLED, str(SCRIPT), *flags]
    env = {**in_this_tree(), "NUMBA_DISABLE_JIT": "1"}  # importing FFCV would compile what writing never uses
    running = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=SCRIPT.parents[1], env=env)
    partial = tmp_path / f".{FILES['train']}.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 0 and children(running.pid)):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    workers = children(running.pid)
    running.send_signal(number)
    err = running.communicate(timeout=30)[1].decode()
    assert not (tmp_path / FILES["train"]).exists()
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.05)
    if number == signal.SIGINT:
        assert running.returncode == 130 and not partial.exists()
        assert err.strip().splitlines()[-1] == "write_beton.py: interrupted; no incomplete file is left"
        assert "Traceback" not in err
    assert script("--from", few_photos, "--to", tmp_path, "--splits", "train")[0] == 0, (
        "the next run writes the complete file"
    )
    assert [path.name for path in tmp_path.iterdir()] == [FILES["train"]]


def in_this_tree() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}


def children(parent: int) -> list[int]:
    """Worker processes: forked, so that their command line is the parent's. Others may end meanwhile."""
    import psutil  # comes with FFCV

    running = psutil.Process(parent)
    workers = []
    for child in running.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # also of one that has ended and is not yet reaped
            if child.cmdline() == running.cmdline():
                workers.append(child.pid)
    return workers


def is_running(pid: int) -> bool:
    """Does the process execute? One that has ended may stay listed until its parent reaps it."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_two_runs_do_not_write_the_same_file(
    imagenet: tuple[Path, Path], script: Callable, tmp_path: Path
) -> None:
    import fcntl

    with open(tmp_path / f".{FILES['val']}.partial", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, _, err = script("--from", imagenet[0], "--to", tmp_path, "--splits", "val")
    assert status == 2 and "another process" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_image_is_named_on_one_line(
    workers: int, imagenet: tuple[Path, Path], script: Callable, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(imagenet[0], tmp_path / "source"))
    damaged = source / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:300])
    status, _, err = script("--from", source, "--to", tmp_path / "to", "--workers", workers)
    assert status == 2 and len(err.splitlines()) == 1
    assert str(damaged) in err and "replace or remove" in err
    assert list((tmp_path / "to").iterdir()) == []


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def flip_header(path: Path, name: str) -> None:
    """Change a letter of a member's name, so that the checksum of its header is wrong."""
    flip(path, path.read_bytes().index(name.encode()))


SPOILED = [
    (
        "a damaged header of a class",
        lambda root: flip_header(root / ARCHIVES["train"], f"{WNIDS[1]}.tar"),
        [ARCHIVES["train"], "no valid header at byte", "download it again"],
    ),
    (
        "a damaged header of an image",
        lambda root: flip_header(root / ARCHIVES["train"], f"{WNIDS[0]}_33.JPEG"),
        [ARCHIVES["train"], "no valid header at byte", "download it again"],
    ),
    (
        "a damaged header of a validation image",
        lambda root: flip_header(root / ARCHIVES["val"], "ILSVRC2012_val_00000004.JPEG"),
        [ARCHIVES["val"], "no valid header at byte", "download it again"],
    ),
    (
        "an archive without its last class",
        lambda root: os.truncate(
            root / ARCHIVES["train"],
            (root / ARCHIVES["train"]).read_bytes().index(f"{WNIDS[1]}.tar".encode()),
        ),
        [ARCHIVES["train"], "no valid header at byte", "download it again"],
    ),
    ("a checksum of the devkit", lambda root: flip(root / DEVKIT, -6), [DEVKIT, "CRC", "download it again"]),
    ("a size of the devkit", lambda root: flip(root / DEVKIT, -1), [DEVKIT, "download it again"]),
    (
        "a devkit without its end",
        lambda root: os.truncate(root / DEVKIT, (root / DEVKIT).stat().st_size - 3),
        [DEVKIT, "download it again"],
    ),
    ("a devkit of zeros", lambda root: (root / DEVKIT).write_bytes(bytes(99)), [DEVKIT, "download it again"]),
    (
        "nothing there",
        lambda root: shutil.rmtree(root) or root.mkdir(),
        ["train/<class>/", ARCHIVES["train"]],
    ),
    ("no devkit", lambda root: (root / DEVKIT).unlink(), [DEVKIT, "add it"]),
    (
        "a cut archive",
        lambda root: truncated(root / ARCHIVES["train"]),
        [ARCHIVES["train"], "download it again"],
    ),
    ("a cut devkit", lambda root: truncated(root / DEVKIT), [DEVKIT, "download it again"]),
    (
        "a devkit of more images",
        lambda root: (root / DEVKIT).write_bytes(devkit([1] * 10)),
        ["9 images", "10 labels"],
    ),
    (
        "loose images to train",
        lambda root: shutil.copy(root / ARCHIVES["val"], root / ARCHIVES["train"]),
        ["one .tar per class"],
    ),
    ("not all of ImageNet", lambda root: None, ["15 images of 3 classes", "1281167 of 1000", "--expect any"]),
]


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in SPOILED], ids=[row[0] for row in SPOILED])
def test_a_wrong_source_is_one_line_with_the_cure(
    change: Callable, words: list[str], imagenet: tuple[Path, Path], script: Callable, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(imagenet[1], tmp_path / "root"))
    change(root)
    expect = () if "--expect any" in words else ("--expect", "any")
    status, _, err = script("--from", root, "--to", tmp_path / "to", *expect)
    assert status == 2 and len(err.splitlines()) == 1, err
    assert [word for word in words if word not in err] == [], err


@pytest.mark.parametrize(
    "given",
    [
        *(("--quality", 0), ("--quality", 101), ("--jpeg-share", 2), ("--jpeg-share", "nan")),
        *(("--max-resolution", 0), ("--max-resolution", 26755)),
    ],
)
def test_a_format_out_of_range_is_refused(
    given: tuple, imagenet: tuple[Path, Path], script: Callable, tmp_path: Path
) -> None:
    status, _, err = script("--from", imagenet[0], "--to", tmp_path, *given)
    assert status == 2 and len(err.splitlines()) == 1 and str(given[1]) in err


@pytest.mark.parametrize("values", [(1, 0, 1), (26754, 1, 100), (500, 0.5, 90)])
def test_the_limits_of_a_format_are_accepted(values: tuple) -> None:
    chosen = Format(*values)
    assert (chosen.max_resolution, chosen.jpeg_share, chosen.quality) == values
    assert Format() == Format(500, 0.5, 90)
    assert Format(64, 0.25, 8).file_name("val") == "val_64_0.25_8.beton"


@pytest.mark.parametrize(
    "values", [(0, 0.5, 90), (26755, 0.5, 90), (9, -0.1, 90), (9, 1.1, 90), (9, 1, 0), (9, 1, 101)]
)
def test_values_beyond_the_limits_of_a_format_are_refused(values: tuple) -> None:
    with pytest.raises(DataError, match=r"is out of range: use a resolution in \[1, 26754\], a share"):
        Format(*values)


def test_what_was_written_is_one_line_and_a_tree_need_not_be_imagenet(
    imagenet: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def write(path: Path, source: Source, image_format: Format, workers: int) -> None:
        asked.append(workers)
        path.touch()
        os.truncate(path, 15 * 10**6)

    monkeypatch.setattr(beton_writer, "write", write)
    monkeypatch.setattr(beton_writer, "check", lambda *_: None)
    path = tmp_path / "new" / "to" / FILES["val"]
    for workers in (0, 3):
        line = write_split(imagenet[0], path.parent, "val", Format(), workers, overwrite=True)
        assert line == f"{path}: 9 images of 3 classes, 0.01 GB"
    assert asked == [1, 3]
    assert write_split(imagenet[0], path.parent, "val", Format(), 1) == (
        f"{path}: kept, 9 images of 3 classes"
    )
    assert asked == [1, 3], "nothing is overwritten unless that is asked for"
    with pytest.raises(DataError) as caught:
        write_split(imagenet[1], path.parent, "val", Format(), 1)
    assert str(caught.value) == (
        "val: 9 images of 3 classes, ImageNet has 50000 of 1000: download it again, or give --expect any"
    )
    assert "kept" in write_split(imagenet[1], path.parent, "val", Format(), 1, "any")
    with pytest.raises(DataError, match=r"^val: 9 images of 3 classes, ImageNet has"):
        write_split(imagenet[0], path.parent, "val", Format(), 1, "imagenet")


def test_all_of_imagenet_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """ILSVRC2012 has 1,281,167 training and 50,000 validation images of 1,000 classes."""
    for split, count in (("train", 1281167), ("val", 50000)):
        beton_writer._expect_imagenet(Source(["n"] * 1000, range(count)), split)
        for classes, images in ((999, count), (1000, count - 1), (1000, count + 1)):
            with pytest.raises(DataError):
                beton_writer._expect_imagenet(Source(["n"] * classes, range(images)), split)


class Stored:
    """In place of a Beton: gray images of 2 x 3 pixels, whose numbers `decode` records."""

    labels, classes = torch.zeros(100, dtype=torch.int64), ""
    sizes = torch.tensor([[2, 3]]).repeat(100, 1)

    def __init__(self, is_jpeg: bool, gray: np.ndarray) -> None:
        self.compressed, self.gray, self.decoded = torch.full((100,), is_jpeg), gray, []

    def decode(self, indices: torch.Tensor, boxes: torch.Tensor, out: torch.Tensor) -> None:
        assert boxes.tolist() == [[0, 0, 2, 3]] and out.shape == (1, 2, 3, 3)
        self.decoded += indices.tolist()
        out.copy_(torch.from_numpy(self.gray))


def check(monkeypatch: pytest.MonkeyPatch, stored: Stored, expected: np.ndarray, count: int = 100) -> None:
    names = [f"image {number}" for number in range(count)]
    source = Source(["a"], [0] * count, [("", 0, 0)] * count, names)
    monkeypatch.setattr(Source, "image", lambda self, number: number)
    monkeypatch.setattr(beton_writer, "Beton", lambda path: stored)
    monkeypatch.setattr(beton_writer, "_stored_pixels", lambda image, image_format, is_jpeg: expected)
    beton_writer.check(Path("file"), source, Format())


@pytest.mark.parametrize(
    ("is_jpeg", "difference", "is_good"),
    [(True, 2, True), (True, 3, False), (False, 0, True), (False, 1, False)],
)
def test_pixels_of_16_images_are_compared_the_first_and_the_last_among_them(
    is_jpeg: bool, difference: int, is_good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JPEG decoders may differ by 2 on average, up or down; raw pixels must be the same."""
    for sign in (1, -1):
        gray = np.full((2, 3, 3), 100, dtype=np.uint8)
        stored = Stored(is_jpeg, gray)
        if is_good:
            check(monkeypatch, stored, gray + sign * np.int16(difference))
            assert len(stored.decoded) == 16 == len(set(stored.decoded))
            assert (min(stored.decoded), max(stored.decoded)) == (0, 99)
            continue
        with pytest.raises(DataError) as caught:
            check(monkeypatch, stored, gray + sign * np.int16(difference))
        assert str(caught.value) == "file: image 0 is stored wrongly: write it again with --overwrite"


def test_an_image_of_another_size_or_number_is_stored_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    gray = np.zeros((2, 3, 3), dtype=np.uint8)
    cv2.setNumThreads(3)
    with pytest.raises(DataError, match="image 0 is stored wrongly"):
        check(monkeypatch, Stored(True, gray), gray.transpose(1, 0, 2))
    assert cv2.getNumThreads() == 1, "a later fork must not inherit its threads"
    with pytest.raises(DataError, match=r"^file has other images or labels than the source: write it again"):
        check(monkeypatch, Stored(True, gray), gray, count=99)


# sources


def test_what_is_read_where_a_folder_has_trees_and_archives(
    imagenet: tuple[Path, Path], tmp_path: Path
) -> None:
    both = Path(shutil.copytree(imagenet[1], tmp_path / "both"))
    (both / "val" / "x").mkdir(parents=True)
    assert [is_official(both, split) for split in ("train", "val")] == [True, False]
    assert class_names(both, "train") == WNIDS and class_names(both, "val") == ["x"]
    assert not is_official(tmp_path, "val") and class_names(tmp_path, "val") is None
    (both / DEVKIT).unlink()
    assert is_official(both, "train") and class_names(both, "train") is None
    assert open_source(both, "train").classes == WNIDS, "the archive has the names itself"
    assert COUNTS == {"train": 1_281_167, "val": 50_000}


def test_an_image_of_an_archive_is_named_with_its_archives(imagenet: tuple[Path, Path]) -> None:
    root = imagenet[1]
    train, val = (open_source(root, split) for split in ("train", "val"))
    inner = f"{WNIDS[0]}_10.JPEG in {WNIDS[0]}.tar in {root / ARCHIVES['train']}"
    assert train.names[0] == inner and val.names[0].endswith(f".JPEG in {root / ARCHIVES['val']}")
    assert {path for path, _, _ in val.sample_index} == {str(root / ARCHIVES["val"])}


def refused(root: Path, split: str) -> str:
    with pytest.raises(DataError) as caught:
        open_source(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_archives_are_one_line(tmp_path: Path, imagenet: tuple[Path, Path]) -> None:
    image = archive_of({"a.JPEG": b"x"})
    train, val = tmp_path / ARCHIVES["train"], tmp_path / ARCHIVES["val"]
    train.write_bytes(archive_of({"n1.tar": image, "n2.tar": archive_of({})}))
    assert refused(tmp_path, "train") == f"n2.tar in {train} is empty or damaged: download it again"
    (train).write_bytes(archive_of({"n1.tar": image, "n2.zip": image}))
    assert "does not consist of one .tar per class: download it again" in refused(tmp_path, "train")
    train.write_bytes(archive_of({}))
    assert "does not consist of one .tar per class: download it again" in refused(tmp_path, "train")
    shutil.copy(imagenet[1] / DEVKIT, tmp_path)
    train.write_bytes(archive_of({"n1.tar": image}))
    assert f"the classes in {train} are not those of {DEVKIT}: download both" in refused(tmp_path, "train")
    val.write_bytes(archive_of({"ILSVRC2012_val_one.JPEG": b"x"}))
    assert refused(tmp_path, "val") == f"{val} has images without a number in their name: download it again"
    val.write_bytes(archive_of({f"val_{number}.JPEG": b"x" for number in range(9)}))
    assert f"{val} has 9 images, {tmp_path / DEVKIT} has 9 labels: download both" in refused(tmp_path, "val")


def test_an_image_beyond_the_archive_of_its_class_is_refused(tmp_path: Path) -> None:
    """The archive of the class is cut off in its image, and another one follows."""
    image, path = archive_of({"a.JPEG": bytes(2000)}), tmp_path / ARCHIVES["train"]
    path.write_bytes(archive_of({"n1.tar": image[:1024], "n2.tar": image}))
    assert refused(tmp_path, "train") == f"n1.tar in {path} is empty or damaged: download it again"


def test_an_archive_that_cannot_be_read_is_one_line(
    imagenet: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ham.data.imagenet_source.members", refuse)
    place = imagenet[1] / ARCHIVES["val"]
    assert refused(imagenet[1], "val") == f"{place} cannot be read (Input/output error): check it"


def test_without_scipy_the_cure_is_named(
    imagenet: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    cure = f"reading {DEVKIT} needs scipy: pip install '.[ffcv]'"
    assert refused(imagenet[1], "val") == cure


def test_an_image_that_has_gone_is_one_line(tmp_path: Path) -> None:
    source = Source(["a"], [0], [(str(tmp_path / "gone"), 0, None)], ["gone"])
    with pytest.raises(
        DataError, match=r"^gone cannot be read \(No such file or directory\): replace or remove"
    ):
        source.image(0)
