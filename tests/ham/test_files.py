"""Files that are replaced in one step, and errors of one line."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import BinaryIO

import pytest

from ham import files
from ham.files import ROOT, atomic_write, atomic_write_json, name_file, read_json, short_path


def fail(file: BinaryIO) -> None:
    file.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write(path, fail, previous=tmp_path / "before")
    assert caught.value.filename == str(path)
    assert [found.name for found in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"


def test_the_file_before_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    path, before = tmp_path / "file", tmp_path / "before"
    atomic_write(path, lambda file: file.write(b"1"), previous=before)
    assert not before.exists()
    atomic_write(path, lambda file: file.write(b"2"), previous=before)
    atomic_write(path, lambda file: file.write(b"3"))
    assert (path.read_bytes(), before.read_bytes()) == (b"3", b"1")


@pytest.mark.parametrize("name", [".file.tmp", ".file.0123abcd.tmp"])
def test_a_remainder_of_a_killed_process_is_deleted(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("half of it, and longer than the new one")
    atomic_write_json(tmp_path / "file", {"a": [1]})
    assert (tmp_path / "file").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    atomic_write_json(tmp_path / "file", {"a": 1}, indent=1)
    assert (tmp_path / "file").read_text() == '{\n "a": 1\n}\n'


@pytest.mark.parametrize(
    "name",
    [".file.tmp.", ".file.0123abc.tmp", ".file.0123abcg.tmp", ".other.0123abcd.tmp", "file.tmp", ".file"],
)
def test_files_of_similar_names_are_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    atomic_write_json(tmp_path / "file", {})
    assert (tmp_path / name).read_text() == "precious"


def test_nothing_is_replaced_if_the_last_check_fails(tmp_path: Path) -> None:
    path, before = tmp_path / "file", tmp_path / "before"
    for number in (b"1", b"2"):
        atomic_write(path, lambda file, number=number: file.write(number), previous=before)

    def refuse() -> None:
        (complete,) = tmp_path.glob(".file.*.tmp")
        assert complete.read_bytes() == b"3"
        raise ValueError("taken over")

    with pytest.raises(ValueError, match="taken over"):
        atomic_write(path, lambda file: file.write(b"3"), previous=before, before_rename=refuse)
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {"file": b"2", "before": b"1"}


def test_content_is_on_the_disk_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bytes | None, bool]] = []

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        content = None if os.path.isdir(name) else Path(name).read_bytes()
        synced.append((Path(name).name, content, (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(tmp_path / "file", lambda file: file.write(b"new"))
    assert re.fullmatch(r"\.file\.[0-9a-f]{8}\.tmp", synced[0][0])
    assert synced[0][1:] == (b"new", False) and synced[1:] == [(tmp_path.name, None, True)]


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_sync_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: bool
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    before = len(os.listdir("/proc/self/fd"))
    if raised:
        with pytest.raises(OSError, match=r"Input/output error"):
            files.sync_folder(tmp_path)
    else:
        files.sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_keeps_the_file_that_it_names(tmp_path: Path) -> None:
    for own, expected in ((None, str(tmp_path)), ("other", "other")):
        with pytest.raises(OSError, match="x") as caught, name_file(tmp_path):
            raise OSError(1, "x", own)
        assert caught.value.filename == expected


@pytest.mark.parametrize("content", [b"", b"[1]", b'"a"', b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_reads_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_json(tmp_path / "file") is None and read_json(tmp_path / "missing") is None
    (tmp_path / "file").write_text('{"a": "é"}', encoding="utf-8")
    assert read_json(tmp_path / "file") == {"a": "é"}


def test_paths_are_printed_relative_to_the_repository() -> None:
    assert short_path(ROOT / "runs" / "a") == Path("runs/a") and short_path(Path("/a")) == Path("/a")
    assert (ROOT / "ham" / "files.py").exists() and files.RESULTS == ROOT / "results"
