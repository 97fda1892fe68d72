"""A prepared folder is complete and checked or does not appear, and errors are one line."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import IO

import cifar_noise
import commands
import pytest
import torch
from torchvision.datasets import CIFAR100

import ham.data.prepare
from ham.data import Cifar100, DataError

FILES, FOLDER = ("train", "test", "meta"), "cifar-100-python"
Prepare = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return commands.script("prepare_data")


@pytest.fixture
def prepare(script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Prepare:
    """`prepare(source)` -> status, stdout, stderr without progress bars: CIFAR-100 to tmp_path/to."""

    def run(source: Path | None = None) -> tuple[int, str, str]:
        capsys.readouterr()
        given = [] if source is None else ["--from", str(source)]
        status = script.main(["cifar100", *given, "--to", str(tmp_path / "to")])
        out, err = capsys.readouterr()
        lines = [line for line in re.split(r"[\r\n]+", err) if line and not re.search(r"[?B]/s\]\s*$", line)]
        return status, out, "\n".join(lines)

    return run


def pack(folder: Path, archive: Path, prefix: str = "") -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=prefix + FOLDER)
    return archive


def assert_prepared(to: Path, original: Path) -> None:
    """The three files and their sums, nothing else in either folder, ready to train on."""
    folder = to / FOLDER
    assert [path.name for path in to.iterdir()] == [FOLDER]
    assert {path.name for path in folder.iterdir()} == {*FILES, "SHA256SUMS"}
    for name in FILES:
        assert (folder / name).read_bytes() == (original / name).read_bytes()
    digests = {name: hashlib.sha256((original / name).read_bytes()).hexdigest() for name in FILES}
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert sorted(lines) == sorted(f"{digest}  {name}" for name, digest in digests.items())
    Cifar100(root=str(folder)).load(batch_size=10, seed=0, device=torch.device("cpu"))


def assert_refused(outcome: tuple[int, str, str], to: Path, *words: str) -> None:
    """Status 2, one line with these words, and no trace of an attempt."""
    status, out, err = outcome
    assert (status, out) == (2, "")
    assert err.startswith("prepare_data.py: ") and len(err.splitlines()) == 1, err
    assert [word for word in words if word not in err] == [], err
    assert not to.exists() or not list(to.iterdir())


def test_a_folder_its_parent_and_an_archive_are_taken(
    prepare: Prepare, small_cifar100: Path, tmp_path: Path
) -> None:
    archive = pack(small_cifar100, tmp_path / "a.tar.gz")
    dotted = pack(small_cifar100, tmp_path / "b.tar.gz", prefix="./")
    for source in (small_cifar100, small_cifar100.parent, archive, dotted):
        status, out, err = prepare(source)
        assert (status, err) == (0, "")
        assert "not the official files byte for byte, contents checked" in out
        assert_prepared(tmp_path / "to", small_cifar100)
        shutil.rmtree(tmp_path / "to")


def test_the_new_folder_can_be_read_by_others(prepare: Prepare, small_cifar100: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        prepare(small_cifar100)
    finally:
        os.umask(before)
    assert (tmp_path / "to" / FOLDER).stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "to" / FOLDER / "train").stat().st_mode & 0o777 == 0o644


def test_files_with_torchvisions_md5_are_called_official(
    prepare: Prepare, small_cifar100: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    md5 = {name: hashlib.md5((small_cifar100 / name).read_bytes()).hexdigest() for name in FILES}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5["meta"]})
    _, out, _ = prepare(small_cifar100)
    assert out.strip().endswith("   official files")


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing on stderr, which is under test; torchvision hangs up on its first request half-way."""

    def log_message(self, *_: object) -> None: ...

    def copyfile(self, *files: IO[bytes]) -> None:
        with suppress(ConnectionError):
            super().copyfile(*files)

    def finish(self) -> None:
        with suppress(ConnectionError):
            super().finish()


@pytest.fixture
def internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that torchvision takes for the place of CIFAR-100's archive."""
    folder = tmp_path / "internet"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR100.filename}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        server.shutdown()


def test_the_download_is_torchvisions_and_its_md5_is_compared(
    prepare: Prepare, small_cifar100: Path, tmp_path: Path, internet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cure = "--from cifar-100-python.tar.gz"
    assert_refused(prepare(), tmp_path / "to", "cannot download", "404", cure)
    archive = pack(small_cifar100, internet / CIFAR100.filename)
    assert_refused(prepare(), tmp_path / "to", "cannot download", "corrupted", cure)
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert prepare()[0] == 0
    assert_prepared(tmp_path / "to", small_cifar100)


def test_without_the_internet_the_archive_is_asked_for(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/")  # nobody listens
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert_refused(prepare(), tmp_path / "to", "cannot download", "--from cifar-100-python.tar.gz")


def test_a_folder_that_is_there_is_checked_and_kept(
    prepare: Prepare, small_cifar100: Path, tmp_path: Path
) -> None:
    prepare(small_cifar100)
    target = tmp_path / "to" / FOLDER
    sums = (target / "SHA256SUMS").read_bytes()
    (target / "SHA256SUMS").unlink()
    status, out, err = prepare(tmp_path / "not needed")
    assert (status, err) == (0, "") and "already there" in out
    assert (target / "SHA256SUMS").read_bytes() == sums, "one that had no sums has them now"


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
def test_a_damaged_folder_is_renamed_and_replaced(
    name: str, prepare: Prepare, small_cifar100: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(small_cifar100)
    target, to = tmp_path / "to" / FOLDER, tmp_path / "to"
    (target / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"replace it with python scripts/prepare_data\.py cifar100 --to"):
        Cifar100(root=str(target)).load(batch_size=10, seed=0, device=torch.device("cpu"))
    status, out, err = prepare(tmp_path / "nowhere")
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert str(target / name) in err and "it cannot be replaced" in err
    assert (target / name).read_bytes() == b"damaged", "kept until there is a good one"
    for expected in ("damaged", "damaged2"):
        status, out, err = prepare(small_cifar100)
        assert (status, err) == (0, "") and "replaces a damaged one" in out
        moved = to / f"{FOLDER}.{expected}"
        assert (moved / name).read_bytes() == b"damaged"
        Cifar100(root=str(target)).load(batch_size=10, seed=0, device=torch.device("cpu"))
        (target / name).write_bytes(b"damaged")


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize("change", ["missing", "truncated", "a label"])
def test_wrong_files_leave_nothing_behind(
    change: str, kind: str, prepare: Prepare, small_cifar100: Path, tmp_path: Path
) -> None:
    path = small_cifar100 / "test"
    content = path.read_bytes()
    if change == "missing":
        path.unlink()
    elif change == "truncated":
        path.write_bytes(content[:-1000])
    else:
        path.write_bytes(pickle.dumps(cifar_noise.record("test") | {b"fine_labels": [5] * 100}))
    source = small_cifar100 if kind == "folder" else pack(small_cifar100, tmp_path / "a.tar.gz")
    assert_refused(prepare(source), tmp_path / "to", f"{source}: test ", "--from")


def test_sums_beside_the_source_are_compared(prepare: Prepare, small_cifar100: Path, tmp_path: Path) -> None:
    lines = "".join(f"{'0' * 64}  {name}\n" for name in FILES)
    (small_cifar100 / "SHA256SUMS").write_text(lines)
    assert_refused(prepare(small_cifar100), tmp_path / "to", "SHA-256")


def test_an_absent_source_is_one_line(prepare: Prepare, tmp_path: Path) -> None:
    assert_refused(prepare(tmp_path / "nowhere"), tmp_path / "to", "nowhere does not exist")


def test_commonsense_needs_a_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"are not downloaded: git clone \S+LLM-Adapters, then give it as"):
        ham.data.prepare.fill_commonsense(None, tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999, -1, -4, -8])
def test_a_cut_archive_is_one_line(
    keep: float, prepare: Prepare, small_cifar100: Path, tmp_path: Path
) -> None:
    archive = pack(small_cifar100, tmp_path / "a.tar.gz")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else keep])
    assert_refused(prepare(archive), tmp_path / "to", str(archive))


@pytest.mark.parametrize("place", [-1, -3, -5, -8, 0.5])
def test_the_checksum_at_the_end_of_an_archive_is_compared(
    place: float, prepare: Prepare, small_cifar100: Path, tmp_path: Path
) -> None:
    """The last 8 bytes of a .gz are the checksum and the size of its content."""
    archive = pack(small_cifar100, tmp_path / "a.tar.gz")
    content = bytearray(archive.read_bytes())
    content[int(place * len(content)) if place > 0 else place] ^= 1
    archive.write_bytes(content)
    assert_refused(prepare(archive), tmp_path / "to", str(archive))


def test_an_archive_cannot_write_elsewhere(prepare: Prepare, small_cifar100: Path, tmp_path: Path) -> None:
    """Of climbing and absolute paths and of links nothing is unpacked; a linked `test` is missing."""
    secret = tmp_path / "secret"
    secret.write_bytes((small_cifar100 / "test").read_bytes())
    archive = tmp_path / "evil.tar.gz"
    outside = ["../escaped", f"{FOLDER}/../../escaped", str(tmp_path / "escaped"), f"{FOLDER}/../test"]
    with tarfile.open(archive, "w:gz") as tar:
        for name in outside:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        for name in ("train", "meta"):
            tar.add(small_cifar100 / name, f"{FOLDER}/{name}")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"{FOLDER}/test")
            link.type, link.linkname = kind, str(secret)
            tar.addfile(link)
    before = set(tmp_path.rglob("*"))
    assert_refused(prepare(archive), tmp_path / "to", f"{archive}: test is missing")
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "to"}


def test_a_bomb_is_not_unpacked(
    prepare: Prepare, small_cifar100: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ham.data.prepare, "_LARGEST", 1000)
    archive = pack(small_cifar100, tmp_path / "a.tar.gz")
    assert_refused(prepare(archive), tmp_path / "to", str(archive), "bytes", "not CIFAR-100")


def test_a_place_that_cannot_be_written_is_one_line(
    prepare: Prepare, small_cifar100: Path, tmp_path: Path
) -> None:
    (tmp_path / "to").write_text("a file")
    status, out, err = prepare(small_cifar100)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1 and str(tmp_path / "to") in err


def test_the_real_files(
    cifar100: Path, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["cifar100", "--from", str(cifar100), "--to", str(tmp_path)]) == 0
    assert "official files" in capsys.readouterr().out
    assert_prepared(tmp_path, cifar100 / FOLDER)
    shutil.rmtree(tmp_path / FOLDER)


def test_only_the_three_files_of_an_archive_are_unpacked(
    prepare: Prepare, small_cifar100: Path, tmp_path: Path
) -> None:
    """Others may stand before, between and after them."""
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for number, name in enumerate(FILES):
            for other in (f"{FOLDER}/more{number}", f"elsewhere/{name}", name):
                member = tarfile.TarInfo(other)
                member.size = 4
                tar.addfile(member, io.BytesIO(b"more"))
            tar.add(small_cifar100 / name, f"{FOLDER}/{name}")
    assert prepare(archive)[0] == 0
    assert_prepared(tmp_path / "to", small_cifar100)


def test_a_member_of_the_largest_size_is_unpacked(
    small_cifar100: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(small_cifar100 / name).stat().st_size for name in FILES]
    archive = pack(small_cifar100, tmp_path / "a.tar.gz")
    monkeypatch.setattr(ham.data.prepare, "_LARGEST", max(sizes))
    ham.data.prepare.unpack(archive, tmp_path)
    assert [(tmp_path / name).stat().st_size for name in FILES] == sizes
    monkeypatch.setattr(ham.data.prepare, "_LARGEST", max(sizes) - 1)
    with pytest.raises(DataError, match=f"holds a train of {max(sizes):,} bytes: it is not CIFAR-100$"):
        ham.data.prepare.unpack(archive, tmp_path)


def test_folders_above_the_new_one_are_made(small_cifar100: Path, tmp_path: Path) -> None:
    recipe = ham.data.prepare.RECIPES["cifar100"]
    ham.data.prepare.prepare(recipe, small_cifar100, tmp_path / "one" / "two" / "to")
    assert_prepared(tmp_path / "one" / "two" / "to", small_cifar100)


def test_what_was_done_is_one_line(prepare: Prepare, small_cifar100: Path, tmp_path: Path) -> None:
    target = tmp_path / "to" / FOLDER
    facts = "not the official files byte for byte, contents checked"
    assert prepare(small_cifar100)[1] == f"{target}   {facts}\n"
    assert prepare()[1] == f"{target}   already there: {facts}\n"
    (target / "test").unlink()
    assert prepare(small_cifar100)[1] == (
        f"{target}   {facts}; replaces a damaged one ({target / 'test'} is missing)\n"
    )


def commonsense_source(root: Path) -> Path:
    """A clone with two files of boolq, one of them in two places, and one folder like the prepared one."""
    places = ("dataset/boolq/test.json", "boolq/train.json", "boolq/test.json", "dataset/piqa/test.json")
    for place in (*places, "ft-training_set/commonsense_170k.json", "dataset/other/test.json"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(place)
    return root


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


COPIED = {
    "boolq/test.json": "boolq/test.json",
    "boolq/train.json": "boolq/train.json",
    "piqa/test.json": "dataset/piqa/test.json",
    "commonsense_170k.json": "ft-training_set/commonsense_170k.json",
}


def test_commonsense_files_are_copied_from_a_clone_or_a_folder_like_the_prepared_one(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    with pytest.raises(DataError, match=r"^--from \S+/to has none of the commonsense files: git clone "):
        ham.data.prepare.fill_commonsense(tmp_path / "to", tmp_path / "to")
    ham.data.prepare.fill_commonsense(commonsense_source(tmp_path / "source"), tmp_path / "to")
    assert contents(tmp_path / "to") == COPIED


def test_a_set_with_optional_files_gets_those_that_it_lacks(tmp_path: Path) -> None:
    """Nothing that is there changes, and the set is checked again with what was added."""
    checked: list[list[str]] = []

    def check(folder: Path) -> str:
        checked.append(sorted(contents(folder)))
        return f"{len(checked[-1])} files"

    recipe = ham.data.prepare.Recipe("a", "set", (), ham.data.prepare.fill_commonsense, check)
    target = tmp_path / "to" / "set"
    for place in ("boolq/test.json", "extra"):
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_text("kept")
    assert ham.data.prepare.prepare(recipe, None, tmp_path / "to") == f"{target}   already there: 2 files"
    source = commonsense_source(tmp_path / "source")
    line = ham.data.prepare.prepare(recipe, source, tmp_path / "to")
    assert line == f"{target}   already there: 5 files"
    assert contents(target) == COPIED | {"boolq/test.json": "kept", "extra": "kept"}
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["set"]
    assert checked[1:] == [["boolq/test.json", "extra"], sorted(COPIED), sorted({*COPIED, "extra"})]


def test_a_folder_without_commonsense_files_is_a_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has none of the files of https://"):
        ham.data.prepare.check_commonsense(tmp_path)
