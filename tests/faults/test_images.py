"""Images of unusual kinds, damaged ones, files that are no images, and class folders that do not agree."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ham.data import DataError, ImageNetFolder, beton_writer, images
from ham.data.imagenet_source import Source, open_source
from ham.data.images import check_same_classes, class_folders, decode_rgb, open_tree
from ham.run import loop

COLORS = {"n01": (200, 0, 0), "n02": (0, 200, 0), "n03": (0, 0, 200)}


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(depth: int, color: int, width: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """A PNG file, written by hand: Pillow does not write 16 bits per channel in color."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


RAMP = np.arange(0, 65536, 257 * 15, dtype=np.uint16)  # 0, 15, 30, ..., 255 in the upper 8 bits
EIGHT = (RAMP >> 8).astype(np.uint8)


def gray_16(kind: str) -> bytes:
    return encode(Image.fromarray(RAMP[None]), kind)


def rgb_16(channels: int) -> bytes:
    values = np.stack([RAMP, RAMP[::-1], RAMP, RAMP][:channels], axis=1)
    return png(16, 2 if channels == 3 else 6, len(RAMP), [values.astype(">u2").tobytes()])


COLOR = np.stack([EIGHT, EIGHT[::-1], EIGHT], axis=1)[None]
GRAY = np.repeat(EIGHT[None, :, None], 3, axis=2)
PALETTE = Image.fromarray(COLOR).quantize(256, dither=Image.Dither.NONE)
ALPHA = Image.fromarray(np.arange(len(RAMP), dtype=np.uint8)[None])  # nearly transparent


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(ALPHA)
    return image


KINDS: dict[str, tuple[bytes, np.ndarray]] = {
    "16-bit gray PNG": (gray_16("PNG"), GRAY),
    "16-bit gray TIFF": (gray_16("TIFF"), GRAY),
    "16-bit gray PGM": (gray_16("PPM"), GRAY),
    "big-endian 16-bit TIFF": (encode(Image.fromarray(RAMP[None].astype(">u2")), "TIFF"), GRAY),
    "32-bit integers": (encode(Image.fromarray(RAMP[None].astype(np.int32)), "TIFF"), GRAY),
    "numbers in 0 to 1": (encode(Image.fromarray(EIGHT[None] / np.float32(255)), "TIFF"), GRAY),
    "16-bit color PNG": (rgb_16(3), COLOR),
    "16-bit color PNG with alpha": (rgb_16(4), COLOR),
    "8-bit gray": (encode(Image.fromarray(EIGHT[None]), "PNG"), GRAY),
    "gray with alpha": (encode(with_alpha(Image.fromarray(EIGHT[None]).convert("LA")), "PNG"), GRAY),
    "color with alpha": (encode(with_alpha(Image.fromarray(COLOR)), "PNG"), COLOR),
    "palette": (encode(PALETTE, "PNG"), COLOR),
    "palette with alpha": (encode(PALETTE, "PNG", transparency=bytes(range(16))), COLOR),
    "CMYK TIFF": (encode(Image.fromarray(255 - COLOR).convert("CMYK"), "TIFF"), 255 - COLOR),
    "1 bit": (encode(Image.fromarray(EIGHT[None] > 100), "PNG"), np.where(GRAY > 100, 255, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_the_same_8_bit_colors(kind: str) -> None:
    content, expected = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_rgb(content, "image")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), expected), np.asarray(image)


def test_a_cmyk_jpeg_has_the_colors_of_its_rgb_image() -> None:
    image = Image.new("RGB", (32, 32), (180, 40, 90))
    decoded = decode_rgb(encode(image.convert("CMYK"), "JPEG", quality=95), "image")
    assert np.abs(np.asarray(decoded).astype(int) - (180, 40, 90)).max() < 8


@pytest.mark.parametrize("orientation", [2, 3, 6, 7, 8])
def test_the_orientation_in_exif_is_ignored_as_by_torchvision(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encode(Image.fromarray(np.repeat(COLOR, 4, axis=0)), "PNG", exif=exif)
    assert np.array_equal(np.asarray(decode_rgb(content, "image")), np.repeat(COLOR, 4, axis=0))


JPEG = encode(Image.effect_noise((64, 48), 90).convert("RGB"), "JPEG")
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "a page": (b"<html>404</html>", "it is not an image"),
    "zeros": (bytes(5000), "it is not an image"),
    "a torn JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "a torn header": (JPEG[:30], ""),
    "a torn PNG": (rgb_16(3)[:60], ""),
    "a wrong checksum": (rgb_16(3)[:45] + b"?" + rgb_16(3)[46:], ""),
    "a torn TIFF": (gray_16("TIFF")[:40], ""),
    "a torn WebP": (encode(Image.fromarray(COLOR), "WEBP")[:30], ""),
    "a bomb": (png(1, 0, 200_000, [b""] * 200_000), "decompression bomb"),
    "half a bomb": (png(1, 0, 10_000, [b""] * 10_000), "decompression bomb"),
    "integers of 32 bits": (encode(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"), "65535"),
    "negative integers": (encode(Image.fromarray(np.full((2, 2), -1, np.int32)), "TIFF"), "65535"),
    "numbers above 1": (encode(Image.fromarray(np.full((2, 2), 7, np.float32)), "TIFF"), "0 to 1"),
    "integers of 17 bits": (encode(Image.fromarray(np.full((2, 2), 65_536, np.int32)), "TIFF"), "65535"),
    "numbers just above 1": (encode(Image.fromarray(np.full((2, 2), 1.01, np.float32)), "TIFF"), "0 to 1"),
    "numbers below 0": (encode(Image.fromarray(np.full((2, 2), -0.01, np.float32)), "TIFF"), "0 to 1"),
    "nan": (encode(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "0 to 1"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_image_is_one_line_that_names_the_file(kind: str, tmp_path: Path) -> None:
    content, words = DAMAGED[kind]
    path = tmp_path / "n01.JPEG"
    path.write_bytes(content)
    folder = ImageNetFolder(num_classes=1, image_size=8, workers=0, root=str(tmp_path / "tree"))
    for split in ("train", "val"):
        (tmp_path / "tree" / split / "n01").mkdir(parents=True)
        shutil.copy(path, tmp_path / "tree" / split / "n01")
    loaders = folder.load(batch_size=1, seed=0, device=torch.device("cpu"))
    for read in (
        lambda: Source(["a"], [0], [(str(path), 0, None)], [str(path)]).image(0),
        lambda: list(loaders.test.batches(0)),
        lambda: list(loaders.train.batches(0)),
    ):
        with pytest.raises(DataError) as caught:
            read()
        message = str(caught.value)
        assert "\n" not in message and "n01.JPEG cannot be decoded (" in message and words in message
        assert message.endswith("): replace or remove it")


@pytest.mark.parametrize(
    "error", [MemoryError(), SyntaxError("a\nb"), EOFError(), struct.error("x"), KeyError(1)]
)
def test_whatever_pillow_raises_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(DataError, match=r"^x\.png cannot be decoded \(.*\): replace or remove it$") as caught:
        decode_rgb(KINDS["palette"][0], "x.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE"])
def test_a_killed_decoding_process_is_one_line(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path)
    data = ImageNetFolder(num_classes=3, image_size=8, workers=1, root=str(tmp_path))
    test = data.load(batch_size=1, seed=0, device=torch.device("cpu")).test

    def end(path: str) -> None:
        if number != "SIGKILL":
            signal.signal(signal.Signals[number], signal.SIG_DFL)  # not pytest's handler, which prints
        os.kill(os.getpid(), signal.Signals[number])

    monkeypatch.setattr(images, "read_rgb", end)
    with pytest.raises(DataError, match=r"^a decoding process was killed, .*data\.workers$"):
        list(test.batches(0))


@pytest.mark.parametrize("place", ["forward_backward", "finish_epoch", "train_step"])
def test_a_killed_decoding_process_is_one_line_wherever_torch_notices(
    place: str, command: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Torch raises in a signal handler, in the middle of a step say."""

    def notice(*_: object, **__: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(loop, place, notice)
    outcome = command("+exp=dense", "+demo=tiny", f"runs_dir={tmp_path}")
    assert outcome.status == 2
    (line,) = outcome.complaints
    assert ": a decoding process was killed, " in line and "data.workers" in line


def test_an_image_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    write_tree(tmp_path)
    tree = open_tree(tmp_path / "train")
    (tmp_path / "train" / "n01" / "0.png").unlink()
    with pytest.raises(DataError, match=r"n01/0\.png cannot be read \(No such file"):
        tree[0]


def test_an_image_of_an_archive_is_read_alone(tmp_path: Path) -> None:
    """ImageNet's archive has 138 GB: nothing after the image is read, here 4 TiB."""
    with open(tmp_path / "archive", "wb") as file:
        file.write(bytes(512) + JPEG)
        file.truncate(1 << 42)
    image = Source(["a"], [0], [(str(tmp_path / "archive"), 512, len(JPEG))], ["x"]).image(0)
    assert image.shape == (48, 64, 3)


# class folders


def write_tree(root: Path, classes: dict[str, list[str]] | None = None) -> None:
    for split, names in (classes or {"train": [*COLORS], "val": [*COLORS]}).items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (16, 16), COLORS.get(name, (9, 9, 9))).save(
                    root / split / name / f"{number}.png"
                )


FOREIGN = (
    *(
        "@eaDir",
        ".ipynb_checkpoints",
        "lost+found",
        "__MACOSX",
        ".git",
        "#recycle",
        "$RECYCLE.BIN",
        "@Recycle",
    ),
    *(".Trash-0", ".AppleDouble", "System Volume Information", "#snapshot"),
)


def test_folders_of_file_systems_are_no_classes(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for split in ("train", "val"):
        before = open_tree(tmp_path / split)
        for name in FOREIGN:
            (tmp_path / split / name).mkdir()
            shutil.copy(tmp_path / split / "n01" / "0.png", tmp_path / split / name)
            inner = tmp_path / split / "n02" / name
            inner.mkdir()
            shutil.copy(tmp_path / split / "n01" / "0.png", inner)
        for name in (".DS_Store", "Thumbs.db", "._0.png", ".nfs0001.png", "desktop.ini", "README"):
            shutil.copy(tmp_path / split / "n01" / "0.png", tmp_path / split / "n03" / name)
            shutil.copy(tmp_path / split / "n01" / "0.png", tmp_path / split / name)
        assert class_folders(tmp_path / split) == [*COLORS]
        assert open_tree(tmp_path / split).samples == before.samples
        assert open_source(tmp_path, split).labels == [0, 0, 1, 1, 2, 2]


def test_a_tree_is_listed_as_torchvision_lists_it(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    write_tree(tmp_path)
    deep = tmp_path / "train" / "n02" / "a" / "b"
    deep.mkdir(parents=True)
    for name in ("10.JPEG", "9.jpg", "x.txt", "ä.webp"):
        shutil.copy(tmp_path / "train" / "n02" / "0.png", deep / name)
    tree, reference = open_tree(tmp_path / "train"), ImageFolder(str(tmp_path / "train"))
    assert (tree.classes, tree.samples) == (reference.classes, reference.samples)


def listed(tree: Path) -> list[tuple[str, int]]:
    """The images of a tree, relative to it, and their labels."""
    return [(str(Path(path).relative_to(tree)), label) for path, label in open_tree(tree).samples]


@pytest.mark.parametrize(
    ("link", "to", "named"),
    [
        ("train/n02/loop", "..", "train/n02/loop"),
        ("train/n02/loop", ".", "train/n02/loop"),
        ("train/n02/a/b/loop", "../..", "train/n02/a/b/loop"),
        ("train/n02/loop", "../..", "train/n02/loop"),
        ("train/loop", "..", "train/loop"),
        ("train/loop", ".", "train/loop"),
        ("train/n02/out", "../../other", "train/n02/out/back"),
    ],
)
def test_a_loop_of_links_is_named(link: str, to: str, named: str, tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "back").symlink_to(tmp_path / "train" / "n02")
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(to)
    target = os.path.realpath(tmp_path / named)
    with pytest.raises(DataError) as caught:
        open_tree(tmp_path / "train")
    line = f"{tmp_path / named} is a link to {target}, a folder that holds it: remove the link"
    assert str(caught.value) == line
    (tmp_path / link).unlink()  # the cure
    assert [label for _, label in listed(tmp_path / "train")] == [0, 0, 1, 1, 2, 2]


def test_links_to_other_folders_and_files_are_followed(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    write_tree(tmp_path)
    write_tree(tmp_path, {"other": ["n04", "n05"]})
    train = tmp_path / "train"
    (train / "n04").symlink_to("../other/n04")  # a class
    (train / "n01" / "more").symlink_to(tmp_path / "other" / "n05")  # below a class
    (train / "n02" / "same").symlink_to("../n01/more")  # a folder that another class has
    (train / "n03" / "file.png").symlink_to("0.png")
    (train / "n03" / "self").symlink_to("self")
    (train / "self").symlink_to("self")
    (tmp_path / "link").symlink_to("train")
    two = ["0.png", "1.png"]
    expected = [(f"n01/{name}", 0) for name in two] + [(f"n01/more/{name}", 0) for name in two]
    expected += [(f"n02/{name}", 1) for name in two] + [(f"n02/same/{name}", 1) for name in two]
    expected += [(f"n03/{name}", 2) for name in (*two, "file.png")] + [(f"n04/{name}", 3) for name in two]
    assert listed(train) == listed(tmp_path / "link") == expected
    (train / "self").unlink()  # torchvision does not list a tree with it
    assert open_tree(train).samples == ImageFolder(str(train)).samples


def test_a_folder_of_images_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path)
    real, denied = os.scandir, tmp_path / "train" / "n02"

    def scandir(path: Path) -> object:
        if Path(path) == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError) as caught:
        open_tree(tmp_path / "train")
    assert str(caught.value) == f"{denied} cannot be read (Permission denied): check the folder"


TARGET = "val_500_0.50_90.beton"
TARGETS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "a folder": (Path.mkdir, 2, f"TO/{TARGET} is a folder: move it away, or write to another folder"),
    "a pipe": (os.mkfifo, 2, f"TO/{TARGET} is not a regular file: move it away, or write to another folder"),
    "a device": (
        lambda path: path.symlink_to("/dev/full"),
        2,
        f"TO/{TARGET} is not a regular file: move it away, or write to another folder",
    ),
    "a folder that is read only": (lambda path: None, 1, "cannot write TO: Read-only file system"),
}


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=str)
@pytest.mark.parametrize("case", TARGETS)
def test_a_target_that_cannot_be_written_is_named_before_the_work(
    case: str,
    options: list[str],
    tmp_path: Path,
    write_beton: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, status, line = TARGETS[case]
    to = tmp_path / "to"
    to.mkdir()
    put(to / TARGET)

    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    if status == 1:
        monkeypatch.setattr(beton_writer.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(write_beton, "write_split", pytest.fail)
    assert write_beton.main(["--from", str(tmp_path), "--to", str(to), *options]) == status
    assert capsys.readouterr().err == f"write_beton.py: {line.replace('TO', str(to))}\n"


def test_files_that_are_kept_need_no_folder_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beton_writer.tempfile, "TemporaryFile", pytest.fail)
    (tmp_path / TARGET).touch()
    beton_writer.check_targets(tmp_path, [TARGET], overwrite=False)


DISAGREE: dict[str, dict[str, list[str]]] = {
    "val lacks the first class": {"train": ["n01", "n02", "n03"], "val": ["n02", "n03"]},
    "val lacks the last class": {"train": ["n01", "n02", "n03"], "val": ["n01", "n02"]},
    "train lacks one": {"train": ["n01", "n03"], "val": ["n01", "n02", "n03"]},
    "as many others": {"train": ["n01", "n02"], "val": ["n01", "n03"]},
    "other spelling": {"train": ["n01", "n02"], "val": ["n01", "N02"]},
}


@pytest.mark.parametrize("case", DISAGREE)
def test_splits_with_other_classes_are_refused(
    case: str, tmp_path: Path, write_beton: object, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, DISAGREE[case])
    data = ImageNetFolder(
        num_classes=len(DISAGREE[case]["train"]), image_size=8, workers=0, root=str(tmp_path)
    )
    with pytest.raises(DataError, match="class"):
        data.load(batch_size=1, seed=0, device=torch.device("cpu"))
    for splits in (["train"], ["val"], ["train", "val"]):
        argv = ["--from", str(tmp_path), "--to", str(tmp_path / "to"), "--splits", *splits]
        assert write_beton.main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "train and val differ in" in line and str(tmp_path) in line
        assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("change", ["no folder", "no classes", "a class without images", "a file", "a loop"])
def test_a_tree_that_cannot_be_listed_is_one_line(change: str, tmp_path: Path) -> None:
    write_tree(tmp_path)
    tree = tmp_path / "train"
    changes: dict[str, Callable[[], object]] = {
        "no folder": lambda: shutil.rmtree(tree),
        "no classes": lambda: [shutil.rmtree(path) for path in tree.iterdir()],
        "a class without images": lambda: [path.unlink() for path in (tree / "n02").iterdir()],
        "a file": lambda: (shutil.rmtree(tree), tree.write_text("")),
        "a loop": lambda: (shutil.rmtree(tree), os.symlink(tree, tree)),
    }
    changes[change]()
    with pytest.raises(DataError) as caught:
        open_tree(tree)
    assert str(tree) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ENAMETOOLONG])
@pytest.mark.parametrize("place", ["train", "train/n02"])
def test_a_link_that_cannot_be_followed_is_not_left_out(
    number: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path)
    link, scandir = tmp_path / place / "link", os.scandir

    def is_dir() -> bool:
        raise OSError(number, os.strerror(number), str(link))

    def listed_with_link(folder: Any) -> list[Any]:
        odd = SimpleNamespace(name="link", path=str(link), is_dir=is_dir)
        return [*scandir(folder), *([odd] if Path(folder) == link.parent else [])]

    monkeypatch.setattr(os, "scandir", listed_with_link)
    with pytest.raises(DataError) as caught:
        open_tree(tmp_path / "train")
    assert str(caught.value) == f"{link} cannot be read ({os.strerror(number)}): check the link"


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (("a",), "1 classes (a)"),
        (("c", "a", "b"), "3 classes (a, b, c)"),
        (("d", "c", "b", "a"), "4 classes (a, b, c, ...)"),
    ],
)
def test_at_most_three_classes_that_differ_are_named(others: tuple[str, ...], words: str) -> None:
    check_same_classes(["x", "y"], ["y", "x"], Path("place"))
    for train, val in (([*others, "x"], ["x"]), (["x"], ["x", *others]), ([others[0]], [*others[1:]])):
        with pytest.raises(DataError) as caught:
            check_same_classes(train, val, Path("place"))
        assert str(caught.value) == f"place: train and val differ in {words}: both need the same folders"
