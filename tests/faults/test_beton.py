"""Writing FFCV files: failing disks, killed workers, one processor, and labels of other classes."""

from __future__ import annotations

import builtins
import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from ham.data import DataError, ImageNetFFCV, beton, beton_encoder
from ham.data.beton import Beton, class_digest, import_ffcv

try:
    import_ffcv()
except DataError as error:
    pytest.skip(str(error), allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
FILES = {"train": "train_500_0.50_90.beton", "val": "val_500_0.50_90.beton"}
PAGE = 2**23  # bytes: FFCV pads the header to a page
CLASSES = ("n01", "n02", "n03")
Write = Callable[..., tuple[int, str]]


def write_tree(root: Path, **classes: tuple[str, ...]) -> Path:
    """Trees of three images per class, whose gray value is the class's number among CLASSES."""
    for split, names in classes.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            gray = 80 * CLASSES.index(name) if name in CLASSES else 250
            for number in range(3):
                Image.new("RGB", (20, 24), (gray, gray, gray)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), train=CLASSES, val=CLASSES)


@pytest.fixture
def write(write_beton: ModuleType, capfd: pytest.CaptureFixture[str]) -> Write:
    """`write(source, to, ...)`: exit status, and the line on stderr; workers write to the same file."""

    def run(source: Path, to: Path, *argv: object) -> tuple[int, str]:
        capfd.readouterr()
        status = write_beton.main([str(word) for word in ("--from", source, "--to", to, *argv)])
        lines = capfd.readouterr().err.replace("\r", "\n").splitlines()
        return status, "\n".join(line for line in lines if line.strip() and "images/s" not in line)

    return run


def assert_failed(outcome: tuple[int, str], to: Path, *words: str) -> None:
    """Status 1, one line, and no file."""
    status, err = outcome
    assert status == 1 and err.startswith("write_beton.py: ") and "\n" not in err, err
    assert [word for word in words if word not in err] == [], err
    assert not to.is_dir() or list(to.iterdir()) == []


# disks


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Writes beyond it are cut off, then fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [1500, 2100, 2**20, PAGE + 5, 2 * PAGE - 1, 2 * PAGE, 2 * PAGE + 24])
def test_a_disk_that_is_full_at_any_byte_is_one_line(
    limit: int, tree: Path, tmp_path: Path, write: Write
) -> None:
    with file_size_limit(limit):
        outcome = write(tree, tmp_path / "to", "--workers", 1 + limit % 2, "--splits", "train")
    assert_failed(outcome, tmp_path / "to", "cannot write ")
    assert "File too large" in outcome[1] or "No space left on device" in outcome[1]


@pytest.mark.parametrize("limit", [PAGE + 1, PAGE + 512, PAGE + 10**6, 2 * PAGE - 4096, 2 * PAGE - 1])
def test_a_write_that_is_cut_off_is_noticed(
    limit: int, tree: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space may be free again when the parent adds the table: then nothing else fails."""
    take = beton_encoder._take

    def in_worker(*arguments: object) -> Iterator[int]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return take(*arguments)

    monkeypatch.setattr(beton_encoder, "_take", in_worker)
    outcome = write(tree, tmp_path / "to", "--workers", 1, "--splits", "train")
    assert_failed(outcome, tmp_path / "to", f"{limit:,} of {2 * PAGE:,} bytes were written")


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", ["4k", "400k", "9m", "12m", "16m"])
@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_full_file_system_is_one_line(size: str, tree: Path, tmp_path: Path, write: Write) -> None:
    with mounted(tmp_path / "disk", "-o", f"size={size}"):
        outcome = write(tree, tmp_path / "disk" / "to", "--workers", 2)
        assert_failed(outcome, tmp_path / "disk" / "to", "cannot write ", "No space left on device")


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_read_only_file_system_is_one_line(tree: Path, tmp_path: Path, write: Write) -> None:
    with mounted(tmp_path / "disk", "-o", "ro"):
        assert_failed(
            write(tree, tmp_path / "disk"), tmp_path / "disk", "cannot write ", "Read-only file system"
        )
        assert_failed(write(tree, tmp_path / "disk" / "to"), tmp_path / "disk", "Read-only file system")


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ESTALE])
def test_an_error_of_the_disk_is_one_line(
    number: int, function: str, tree: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, fail)
    outcome = write(tree, tmp_path / "to", "--workers", 1, "--splits", "val")
    assert_failed(outcome, tmp_path / "to", f"cannot write {tmp_path / 'to'}: {os.strerror(number)}")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_is_deleted_in_the_middle_is_one_line(
    workers: int, tree: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = beton_encoder._take

    def in_worker(*arguments: object) -> Iterator[int]:
        shutil.rmtree(tmp_path / "to", ignore_errors=True)
        return take(*arguments)

    monkeypatch.setattr(beton_encoder, "_take", in_worker)
    outcome = write(tree, tmp_path / "to", "--workers", workers)
    assert_failed(outcome, tmp_path / "to", "cannot write ", "No such file or directory")


@pytest.mark.parametrize("place", ["a file", "below a file", "a loop"])
def test_a_place_that_is_no_folder_is_one_line(place: str, tree: Path, tmp_path: Path, write: Write) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    to = tmp_path / {"a file": "file", "below a file": "file/to", "a loop": "loop/to"}[place]
    assert_failed(write(tree, to), tmp_path / "to", f"cannot write {to}: ")


# workers and processors


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGBUS", "SIGSEGV", "SIGABRT"])
def test_a_killed_worker_is_one_line(
    number: str, workers: int, tree: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_worker(*_: object) -> Iterator[int]:
        signal.signal(signal.Signals[number], signal.SIG_DFL) if number != "SIGKILL" else None
        os.kill(os.getpid(), signal.Signals[number])
        return iter(())

    monkeypatch.setattr(beton_encoder, "_take", in_worker)
    outcome = write(tree, tmp_path / "to", "--workers", workers)
    cure = {"SIGKILL": "fewer --workers", "SIGBUS": "/dev/shm"}.get(number, "try again")
    assert_failed(outcome, tmp_path / "to", f"a worker process ended by {number}, ", cure)


USES = {
    "write": "sys.argv = ['x', '--from', {tree!r}, '--to', {to!r}, '--workers', '2']; "
    "runpy.run_path({script!r}, run_name='__main__')",
    "import": "from ham.data.beton import import_ffcv; import_ffcv()",
    "after numba": "import numba; from ham.data.beton import import_ffcv; import_ffcv()",
    "layer of the user": "os.environ['NUMBA_THREADING_LAYER'] = 'omp'; "
    "from ham.data.beton import import_ffcv; import_ffcv(); import numba; print(numba.threading_layer())",
    "kernel": "from ham.data.beton import _kernel; _kernel()",
}


@pytest.mark.parametrize("use", USES)
def test_processes_end_on_one_processor(use: str, tree: Path, tmp_path: Path) -> None:
    one = min(os.sched_getaffinity(0))
    script = str(ROOT / "scripts" / "write_beton.py")
    code = USES[use].format(tree=str(tree), to=str(tmp_path), script=script)
    code = f"import os, runpy, sys; os.sched_setaffinity(0, {{{one}}})\n{code}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,  # seconds: it waited forever
    )
    assert done.returncode == 0, done.stderr
    assert use != "layer of the user" or done.stdout.strip() == "omp"


# classes


def load(root: Path, num_classes: int = 3) -> None:
    data = ImageNetFFCV(num_classes=num_classes, image_size=16, workers=1, root=str(root))
    data.load(batch_size=1, seed=0, device=torch.device("cpu"))


def forget_classes(path: Path) -> None:
    """As in a file that ffcv-imagenet has written."""
    content = path.read_bytes()
    start = content.index(b"SHA-256 of the class names: ")
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(100))


OTHERS = {
    "other names": ("n01", "n02", "n04"),
    "the first one missing": ("n02", "n03"),
    "one between missing": ("n01", "n03"),
    "the last one missing": ("n01", "n02"),
    "one more": ("n01", "n02", "n03", "n04"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_labels_of_other_classes_are_refused(case: str, tree: Path, tmp_path: Path, write: Write) -> None:
    """Written from two folders, each of which has the same classes in train and val."""
    other = write_tree(tmp_path / "other", train=OTHERS[case], val=OTHERS[case])
    assert write(tree, tmp_path / "to", "--splits", "train", "--workers", 1) == (0, "")
    assert write(other, tmp_path / "to", "--splits", "val", "--workers", 1) == (0, "")
    with pytest.raises(DataError, match=r"class.*write_beton\.py --overwrite|labels from 0 to 3"):
        load(tmp_path / "to")
    forget_classes(tmp_path / "to" / FILES["val"])
    if case != "other names":  # which only the names show
        with pytest.raises(
            DataError, match=r"has no images of 1 classes, such as class 2|labels from 0 to 3"
        ):
            load(tmp_path / "to")
    assert write(tree, tmp_path / "to", "--splits", "val", "--overwrite")[0] == 0
    load(tmp_path / "to")


def test_files_without_names_of_classes_are_read(tree: Path, tmp_path: Path, write: Write) -> None:
    assert write(tree, tmp_path, "--workers", 1)[0] == 0
    assert Beton(tmp_path / FILES["train"]).classes == class_digest(CLASSES)
    for name in FILES.values():
        forget_classes(tmp_path / name)
        assert Beton(tmp_path / name).classes == ""
        load(tmp_path)
    assert write(tree, tmp_path)[0] == 0


def test_a_kept_file_has_the_names_of_the_source(tree: Path, tmp_path: Path, write: Write) -> None:
    assert write(tree, tmp_path / "to", "--splits", "val", "--workers", 1)[0] == 0
    other = Path(shutil.copytree(tree, tmp_path / "other"))
    for split in ("train", "val"):
        (other / split / "n03").rename(other / split / "n05")
    status, err = write(other, tmp_path / "to", "--splits", "val")
    assert status == 2 and "has other classes than the source: write it again with --overwrite" in err


def test_ffcv_reads_the_file(tree: Path, tmp_path: Path, write: Write) -> None:
    from ffcv.fields import IntField
    from ffcv.reader import Reader

    assert write(tree, tmp_path, "--splits", "val", "--workers", 1)[0] == 0
    reader = Reader(str(tmp_path / FILES["val"]))
    assert type(reader.handlers["label"]) is IntField
    assert reader.metadata["f1"].tolist() == [0] * 3 + [1] * 3 + [2] * 3


# the table of images


def table(file_size: int = 1000, **changes: object) -> np.ndarray:
    """Rows of a JPEG of 90 bytes at 200 and of raw 2 x 5 pixels at 500; the allocations have another order.

    Changes of a column are (place, value), and `allocated` replaces the allocations.
    """
    types = [("mode", "u1"), ("width", "u2"), ("height", "u2"), ("data_ptr", "u8")]
    images = np.array([(0, 40, 30, 200), (1, 5, 2, 500)], dtype=types)
    allocations = changes.pop("allocated", [(0, 500, 30), (1, 200, 90), (2, 100, 7)])
    allocated = np.array(allocations, dtype=[("sample_id", "u8"), ("ptr", "u8"), ("size", "u8")])
    for column, (place, value) in changes.items():
        images[column][place] = value
    return beton._sample_index(images, allocated, file_size)


def test_images_get_the_place_and_size_of_their_allocation() -> None:
    assert table().tolist() == [[0, 30, 40, 200, 90], [1, 2, 5, 500, 30]]
    assert table(530).dtype == np.int64


TRUNCATED, IMPOSSIBLE = "images lie beyond the end of the file: it is truncated", "image sizes are impossible"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"file_size": 529}, TRUNCATED), ({"file_size": 20}, TRUNCATED)),
        *(({"data_ptr": (0, 201)}, TRUNCATED), ({"data_ptr": (0, 50)}, TRUNCATED)),
        *(({"data_ptr": (1, 501)}, TRUNCATED), ({"data_ptr": (1, 10**6)}, TRUNCATED)),
        *(({"mode": (0, 1)}, IMPOSSIBLE), ({"mode": (0, 2)}, IMPOSSIBLE)),
        *(({"height": (0, 0)}, IMPOSSIBLE), ({"width": (0, 0)}, IMPOSSIBLE), ({"width": (1, 6)}, IMPOSSIBLE)),
        ({"allocated": [(0, 500, 30), (1, 200, 0)]}, IMPOSSIBLE),
        ({"allocated": []}, "no images"),
    ],
)
def test_an_impossible_table_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        table(**changes)


def test_a_table_without_images_is_refused() -> None:
    images = np.zeros(0, dtype=[("data_ptr", "u8")])
    with pytest.raises(ValueError, match=r"^no images$"):
        beton._sample_index(images, np.zeros(1, dtype=[("ptr", "u8"), ("size", "u8")]), 10)


def test_the_digest_of_classes_is_that_of_their_names_in_lines() -> None:
    assert class_digest(["a", "\udcff"]) == hashlib.sha256(b"a\n\xff").hexdigest()


@pytest.mark.parametrize(("chosen", "layer"), [("default", "workqueue"), ("omp", "omp")])
def test_the_threading_layer_of_numba_is_that_of_the_user_or_one_that_ends(
    chosen: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba import config

    monkeypatch.setattr(config, "THREADING_LAYER", chosen)
    assert import_ffcv().__name__ == "ffcv"
    assert layer == config.THREADING_LAYER


@pytest.mark.parametrize("error", [ImportError("no ffcv\nat all"), OSError("no ffcv\nat all")])
def test_the_first_line_says_why_ffcv_cannot_be_loaded(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name == "ffcv":
            torch.set_num_threads(1)
            raise error
        return original(name, *rest)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(builtins, "__import__", refuse)
        with pytest.raises(DataError, match=r"^FFCV cannot be loaded \(no ffcv\): run scripts/install_ffcv"):
            import_ffcv()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# decoding


@pytest.fixture(scope="module")
def decoder() -> Beton:
    """Of two images of 4 x 6 raw pixels, whose values count up; the second one is behind a gap."""
    opened = Beton.__new__(Beton)
    opened.path = Path("file")
    opened._data = np.arange(200, dtype=np.uint8)
    opened._data.flags.writeable = False
    opened._sample_index = np.array([[1, 4, 6, 0, 72], [1, 4, 6, 100, 72]])
    opened.sizes = torch.from_numpy(opened._sample_index[:, 1:3].copy())
    opened._decode = beton._kernel()
    return opened


def test_a_crop_has_the_pixels_of_its_box(decoder: Beton) -> None:
    for number, start in ((0, 0), (1, 100)):
        pixels = np.arange(start, start + 72, dtype=np.uint8).reshape(4, 6, 3)
        for top, left, rows, columns in ((0, 0, 4, 6), (3, 5, 1, 1), (1, 2, 3, 4)):
            out = torch.zeros(1, rows, columns, 3, dtype=torch.uint8)
            decoder.decode(torch.tensor([number]), torch.tensor([[top, left, rows, columns]]), out)
            assert np.array_equal(out[0].numpy(), pixels[top : top + rows, left : left + columns])


@pytest.mark.parametrize(
    "box",
    [
        *([-1, 0, 2, 2], [0, -1, 2, 2], [0, 0, 0, 2], [0, 0, 2, 0]),
        *([0, 0, 5, 2], [0, 0, 2, 7], [4, 0, 1, 1], [0, 6, 1, 1]),
    ],
)
def test_a_box_beyond_any_side_is_refused(box: list[int], decoder: Beton) -> None:
    with pytest.raises(ValueError, match=r"^a crop box is not inside its image$"):
        decoder.decode(torch.tensor([1]), torch.tensor([box]), torch.zeros(1, 2, 2, 3, dtype=torch.uint8))


def test_the_first_image_that_cannot_be_decoded_is_named(decoder: Beton) -> None:
    broken = Beton.__new__(Beton)
    vars(broken).update(vars(decoder))
    broken._sample_index = np.array([[1, 4, 6, 0, 72], [0, 4, 6, 100, 72]])
    out = torch.zeros(3, 4, 6, 3, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"^file: image 1 cannot be decoded: write the file again with "):
        broken.decode(torch.tensor([0, 1, 0]), torch.tensor([[0, 0, 4, 6]]).repeat(3, 1), out)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:16] + bytes(8) + content[24:], "it was not written completely"),
        (lambda content: content[: len(content) // 2], ""),
        (lambda content: b"", ""),
    ],
    ids=["without a table", "half", "empty"],
)
def test_the_reason_why_a_file_is_refused_is_one_line(
    damage: Callable[[bytes], bytes], reason: str, tree: Path, tmp_path: Path, write: Write
) -> None:
    assert write(tree, tmp_path, "--splits", "val", "--workers", 1)[0] == 0
    path = tmp_path / FILES["val"]
    opened = Beton(path)
    assert (opened.path, len(opened)) == (path, 9)
    assert opened.sizes.tolist() == [[24, 20]] * 9 and opened.compressed.dtype == torch.bool
    assert opened.labels.dtype == torch.int64
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        Beton(path)
    start, _, rest = str(caught.value).partition(" (")
    assert start == f"{path} is not a complete FFCV file of images and labels"
    found, _, end = rest.rpartition("): ")
    assert found and (found == reason or not reason) and "\n" not in found
    assert end == "write it again with python scripts/write_beton.py --overwrite"
