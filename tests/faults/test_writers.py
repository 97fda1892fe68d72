"""Every writer of the repository, with a fault at each of its file operations: the old content or the new."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from faults.injector import each_fault, each_kill

from ham import files
from ham.data import beton_writer
from ham.files import RESULTS, atomic_write, atomic_write_text
from ham.report import records
from ham.report.spec import RunSpec
from ham.run import checkpoint, trainer_checkpoints
from ham.run.checkpoint import CheckpointError
from ham.run.config import ConfigError
from ham.run.directory import RunDirectory
from ham.sweep.manifests import RunsFolder

NUMBERS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES, errno.EDQUOT]
RECORD = RESULTS / "demo" / "acdc_ham_s90" / "seed0.json"


@dataclass
class Writer:
    """Something that writes.

    Args:
        write: writes the content of a number into a folder.
        read: the number of the content there; None without any; raises if it is damaged.
    """

    write: Callable[[Path, int], object]
    read: Callable[[Path], int | None]


def _state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((300,), float(number))}


def _read_state(folder: Path) -> int | None:
    state = checkpoint.load(folder, lambda line: None)
    if state is None:
        return None
    assert torch.equal(state["weights"], torch.full((300,), float(state["number"])))
    return state["number"]


def _read_json(name: str, key: str) -> Callable[[Path], int | None]:
    def read(folder: Path) -> int | None:
        path = folder / name
        return json.loads(path.read_text())[key] if path.exists() else None

    return read


def _in_directory(act: Callable[[RunDirectory, int], object]) -> Callable[[Path, int], None]:
    """A write into a run's directory that is already locked; the lock has tests of its own."""

    def write(folder: Path, number: int) -> None:
        directory = RunDirectory.__new__(RunDirectory)
        directory.folder = folder
        act(directory, number)

    return write


def _metadata(directory: RunDirectory, number: int) -> None:
    facts = {"config_hash": "a", "number": number}
    directory.write_metadata(facts, f"seed: {number}\n")


def _record(folder: Path, number: int) -> None:
    content = json.loads(RECORD.read_text())
    lines = [{"epoch": 0, "number": number}]
    records.write(RunSpec("acdc_ham_s90", 0, demo="digits"), content | {"epochs": number}, lines, folder)


def _divergence(folder: Path, number: int) -> None:
    content = json.loads(RECORD.read_text())
    content = {key: content[key] for key in ("exp", "demo", "seed", "config_hash", "provenance")}
    content |= {"cell": "a", "overridden": False, "status": "diverged", "reason": "nan", "epochs": number}
    records.write_divergence(RunSpec("acdc_ham_s90", 0, demo="digits"), content, folder)


def _manifest(folder: Path, number: int) -> None:
    RunsFolder(folder).write([RunSpec("acdc_ham_s90", number)])


def _read_manifest(folder: Path) -> int | None:
    found = [line for lines in RunsFolder(folder).manifests().values() for line in lines]
    for line in found:
        assert line.startswith("+exp=acdc_ham_s90 seed=") and " runs_dir=" in line
    return max((int(line.partition("seed=")[2].split()[0]) for line in found), default=None)


def _beton(folder: Path, number: int) -> None:
    source = beton_writer.Source([f"n{number}"], [0], [("", 0, 0)], ["image"])
    beton_writer.write(folder / "train.beton", source, beton_writer.Format(), 1)


def _read_beton(folder: Path) -> int | None:
    path = folder / "train.beton"
    return {b"1" * 100: 1, b"2" * 100: 2}[path.read_bytes()] if path.exists() else None


def _mark(folder: Path, number: int) -> None:
    path = folder / "checkpoints" / f"checkpoint-{number}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.bin").write_bytes(b"%d" % number)
    trainer_checkpoints.mark(path, {"best_step": None})
    trainer_checkpoints.rotate(folder / "checkpoints")


def _read_mark(folder: Path) -> int | None:
    found = trainer_checkpoints.latest(folder / "checkpoints", lambda line: None)
    return found.step if found else None


WRITERS = {
    "checkpoint": Writer(lambda folder, number: checkpoint.save(folder, _state(number)), _read_state),
    "metadata": Writer(_in_directory(_metadata), _read_json("provenance.json", "number")),
    "summary": Writer(
        _in_directory(lambda directory, number: directory.write_summary({"number": number})),
        _read_json("summary.json", "number"),
    ),
    "divergence": Writer(
        _in_directory(lambda directory, number: directory.write_divergence({"number": number})),
        _read_json("diverged.json", "number"),
    ),
    "record": Writer(_record, _read_json("demo/acdc_ham_s90/seed0.json", "epochs")),
    "record of a divergence": Writer(
        _divergence, _read_json("demo/acdc_ham_s90/seed0.diverged.json", "epochs")
    ),
    "manifest": Writer(_manifest, _read_manifest),
    "beton": Writer(_beton, _read_beton),
    "checkpoint of the Trainer": Writer(_mark, _read_mark),
}


@pytest.fixture(autouse=True)
def encode(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFCV's encoder, with a file of 100 bytes in place of images: the writer around it is what is tested."""

    def encode_all(path: Path, source: beton_writer.Source, *_: Any) -> None:
        number = int(source.classes[0][1:])
        with open(path, "wb") as file:
            file.write(b"%d" % number * 50)
            file.write(b"%d" % number * 50)

    monkeypatch.setattr(beton_writer, "encode_all", encode_all)
    monkeypatch.setattr(beton_writer, "check", lambda *_: None)
    monkeypatch.setattr(beton_writer.Format, "fields", lambda self, classes: {})


def _leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name.endswith((".tmp", ".partial"))]


def _fresh(folder: Path, writer: Writer, old: int | None) -> Iterator[Path]:
    """Folders with the old content, one after the other."""
    first = folder / "0"
    first.mkdir()
    if old is not None:
        writer.write(first, old)
    number = 0
    while True:
        number += 1
        yield Path(shutil.copytree(first, folder / "now", dirs_exist_ok=False))
        shutil.rmtree(folder / "now")


@pytest.mark.parametrize("old", [None, 1], ids=["nothing before", "old content"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_fault_at_any_operation_leaves_the_old_content_or_the_new(
    name: str, old: int | None, tmp_path: Path
) -> None:
    writer = WRITERS[name]
    folders = _fresh(tmp_path, writer, old)
    folder = next(folders)
    errors = 0
    for error in each_fault(folder, lambda: writer.write(folder, 2), NUMBERS):
        errors += error is not None
        assert isinstance(error, (OSError, CheckpointError, ConfigError, type(None))), repr(error)
        assert len(str(error).splitlines()) == 1
        assert _leftovers(folder) == [], error
        assert writer.read(folder) in (old, 2), error
        writer.write(folder, 2)  # the fault is mended
        assert writer.read(folder) == 2
        next(folders)
    assert errors >= 3


@pytest.mark.parametrize("name", ["checkpoint", "summary", "record", "manifest", "checkpoint of the Trainer"])
def test_a_kill_at_any_operation_leaves_the_old_content_or_the_new(name: str, tmp_path: Path) -> None:
    writer = WRITERS[name]
    folders = _fresh(tmp_path, writer, 1)
    folder = next(folders)
    for _ in each_kill(folder, lambda: writer.write(folder, 2)):
        assert writer.read(folder) in (1, 2)
        writer.write(folder, 2)
        assert writer.read(folder) == 2
        assert _leftovers(folder) == []
        next(folders)


def test_lines_of_metrics_are_appended_and_never_change_what_was_there(tmp_path: Path) -> None:
    append = _in_directory(lambda directory, number: directory.append_metrics([{"epoch": number}] * 3))
    path = tmp_path / "metrics.jsonl"
    append(tmp_path, 1)
    before = path.read_bytes()
    for error in each_fault(tmp_path, lambda: append(tmp_path, 2), NUMBERS):
        assert isinstance(error, OSError) and str(path) in str(error)
        assert path.read_bytes().startswith(before)
        path.write_bytes(before)


def _write_whole(path: Path, content: bytes, during: Callable[[], object] = lambda: None) -> None:
    """An atomic write in two halves; `during` is called between them and before the rename."""

    def write(file: BinaryIO) -> None:
        file.write(content[:1000])
        file.flush()
        during()
        file.write(content[1000:])

    atomic_write(path, write, before_rename=during)


def test_of_two_writers_of_a_file_each_read_is_one_whole_content(tmp_path: Path) -> None:
    path, contents, reads = tmp_path / "seed0.json", [b"1" * 2000, b"2" * 2000], []

    def write_and_read() -> None:
        _write_whole(path, contents[1], lambda: reads.append(path.read_bytes()))
        reads.append(path.read_bytes())

    _write_whole(path, contents[0])
    _write_whole(path, contents[0], write_and_read)
    assert reads == [contents[0]] * 2 + [contents[1]] * 4
    assert path.read_bytes() == contents[0], "the last one counts"
    assert [found.name for found in tmp_path.iterdir()] == ["seed0.json"]


def test_writers_in_any_order_never_take_the_file_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path, contents = tmp_path / "seed0.json", [b"%d" % number * 2000 for number in range(2)]
    _write_whole(path, contents[0])
    with ThreadPoolExecutor(2) as pool:
        writes = [pool.submit(_write_whole, path, contents[number % 2]) for number in range(200)]
        while not all(write.done() for write in writes):
            assert path.read_bytes() in contents
        assert [write.exception() for write in writes] == [None] * 200
    assert [found.name for found in tmp_path.iterdir()] == ["seed0.json"]


def test_a_temporary_file_that_is_deleted_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a process that looks for abandoned ones at that moment; it may also still hold the lock."""
    real, calls = files.hold_flock, []

    def late(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            files.delete_abandoned(tmp_path / "file")  # the second call
        if len(calls) == 3:
            raise BlockingIOError
        return real(descriptor)

    monkeypatch.setattr(files, "hold_flock", late)
    atomic_write_text(tmp_path / "file", "new")
    assert len(calls) == 4 and (tmp_path / "file").read_text() == "new"


def test_without_flock_no_temporary_file_is_taken_for_abandoned_but_by_the_owner_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    left = tmp_path / ".summary.json.0123abcd.tmp"
    left.touch()
    atomic_write_text(tmp_path / "summary.json", "{}")
    assert left.exists()
    RunDirectory(tmp_path).unlock()
    assert not left.exists()


@pytest.mark.parametrize("clears", [False, True])
def test_the_owner_of_a_run_deletes_what_killed_processes_have_left(clears: bool, tmp_path: Path) -> None:
    names = [".last.pt.0123abcd.tmp", ".last.pt.tmp", ".metrics.jsonl.89abcdef.tmp", ".masks.pt.00000000.tmp"]
    directory = RunDirectory(tmp_path)
    for name in names:
        (tmp_path / name).write_bytes(b"half a checkpoint")
    (tmp_path / ".notes.0123abcd.tmp").touch()
    if clears:
        assert directory.clear() == [".notes.0123abcd.tmp"]
    directory.unlock()
    if not clears:
        RunDirectory(tmp_path).unlock()
    assert {path.name for path in tmp_path.iterdir()} == {"lock", ".notes.0123abcd.tmp"}
