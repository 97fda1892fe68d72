"""Locks without flock, between machines, on files that are no locks, and after their loss."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ham import locks
from ham.files import atomic_write_text, is_locked, lock_file
from ham.processes import machine
from ham.run import checkpoint, trainer_checkpoints
from ham.run.checkpoint import CheckpointError
from ham.run.config import ConfigError
from ham.run.directory import RunDirectory, RunLockedError

NO_FLOCK = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]
with_errors = pytest.mark.parametrize("number", NO_FLOCK, ids=errno.errorcode.get)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats of milliseconds."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(locks, "_ASK_SECONDS", 0.0)


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A file system whose flock answers with an error."""

    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def owner(**changed: Any) -> dict[str, Any]:
    """The content of the owner's file of a process on another node."""
    known = {"pid": 4242, "started": "17", "host": "node7", "machine": "another boot", "token": "theirs"}
    return known | changed


@with_errors
def test_without_flock_a_second_process_is_refused_and_the_lock_is_released(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch, number)
    path = tmp_path / "lock"
    assert not is_locked(path)
    with lock_file(path):
        assert is_locked(path)
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            lock_file(path)
        assert is_locked(path)
    assert not is_locked(path)
    assert [found.name for found in tmp_path.iterdir()] == ["lock"]
    lock_file(path).close()


@with_errors
def test_without_flock_a_killed_process_does_not_keep_the_lock(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch, number)
    child = os.fork()
    if child == 0:
        lock_file(tmp_path / "lock")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "lock.owner").exists() and not is_locked(tmp_path / "lock")
    before = time.monotonic()
    lock_file(tmp_path / "lock").close()
    assert time.monotonic() - before < locks.STALE_SECONDS


@pytest.mark.parametrize("size", [0, 1, 20, 60, 100])
def test_a_disk_too_full_for_the_owners_file_is_one_line_and_leaves_none(size: int, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(ConfigError, match="File too large"):
            RunDirectory(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    RunDirectory(tmp_path).unlock()


def test_a_reused_number_of_a_dead_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    mine = owner(pid=os.getpid(), started="1", machine=machine())
    (tmp_path / "lock.owner").write_text(json.dumps(mine))
    assert not is_locked(tmp_path / "lock")
    lock_file(tmp_path / "lock").close()


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1', "[" * 10_000, "\ud800", json.dumps(owner())])
def test_an_owner_on_another_machine_counts_while_it_renews_its_file(content: str, tmp_path: Path) -> None:
    """Also one whose file is not complete yet."""
    path, ended = tmp_path / "lock.owner", threading.Event()
    path.write_bytes(content.encode(errors="surrogatepass"))

    def renew() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        assert is_locked(tmp_path / "lock")
        with pytest.raises(BlockingIOError, match="process"):
            lock_file(tmp_path / "lock")
    finally:
        ended.set()
        thread.join()
    os.utime(path, (time.time() + 1000,) * 2)  # the clock of the other machine is ahead
    before = time.monotonic()
    lock = lock_file(tmp_path / "lock")
    assert 0.5 < time.monotonic() - before < 5
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.close()


def _link(path: Path) -> None:
    path.with_name("target").write_text("precious")
    path.symlink_to(path.with_name("target"))


OTHERS: dict[str, Callable[[Path], object]] = {
    "link": _link,
    "dangling link": lambda path: path.symlink_to(path.with_name("nowhere")),
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
}


@pytest.mark.parametrize("file", ["lock", "lock.owner"])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_lock_is_a_plain_file(
    kind: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    try:
        OTHERS[kind](Path(file))
    except PermissionError:
        pytest.skip("only root makes devices")
    with pytest.raises(ConfigError, match=rf"{file} is not a plain file, move it away") as caught:
        RunDirectory(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()
    if kind == "link":
        assert (tmp_path / "target").read_text() == "precious"


def test_a_lock_keeps_what_is_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("precious")
    lock_file(tmp_path / "lock").close()
    assert (tmp_path / "lock").read_text() == "precious"


def test_a_temporary_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".file.tmp").symlink_to(tmp_path / "precious")
    atomic_write_text(tmp_path / "file", "new")
    assert (tmp_path / "precious").read_text() == "precious" and (tmp_path / "file").read_text() == "new"


def test_a_deleted_lock_lets_no_second_process_in(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "lock").unlink()
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
        RunDirectory(tmp_path)
    directory.unlock()


def test_a_process_that_asks_and_does_not_end_keeps_nobody_out(tmp_path: Path) -> None:
    """As a suspended one, which holds a shared flock."""
    path = tmp_path / "lock"
    path.touch()
    with open(path) as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not is_locked(path)
        with lock_file(path):
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"):
                lock_file(path)
            assert is_locked(path)
        lock_file(path).close()
    with lock_file(path), open(path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_one_that_asks_about_a_living_owner_takes_no_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    with lock_file(tmp_path / "lock"), monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda descriptor, flags: asked.append(flags))
        assert is_locked(tmp_path / "lock") and asked == []
        (tmp_path / "lock.owner").unlink()
        assert not is_locked(tmp_path / "lock") and asked == [fcntl.LOCK_SH | fcntl.LOCK_NB]


def _mark(path: Path) -> None:
    """The mark of a checkpoint that the Trainer has written."""
    path.mkdir(parents=True)
    try:
        trainer_checkpoints.mark(path, {"best_step": None})
    finally:
        path.rmdir()
        path.parent.rmdir()


WRITES: dict[str, Callable[[RunDirectory], object]] = {
    "checkpoint": lambda directory: checkpoint.save(directory.folder, {"number": 2}),
    "metrics": lambda directory: directory.append_metrics([{"epoch": 1}]),
    "summary": lambda directory: directory.write_summary({}),
    "divergence": lambda directory: directory.write_divergence({}),
    "metadata": lambda directory: directory.write_metadata({"config_hash": "a"}, ""),
    "masks": lambda directory: checkpoint.write_owned(
        directory.folder, directory.folder / "masks.pt", lambda file: file.write(b"masks")
    ),
    "mark of a checkpoint": lambda directory: _mark(directory.folder / "checkpoints" / "checkpoint-1"),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_process_that_lost_its_directory_writes_nothing_more(name: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    checkpoint.save(tmp_path, {"number": 1})
    (tmp_path / "lock.owner").unlink()
    (tmp_path / "lock.owner").write_text(json.dumps(owner()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"taken over by another process \(process 4242 on node7\)"):
        WRITES[name](directory)
    directory.unlock()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", [name for name in WRITES if name != "metrics"])
def test_a_process_that_loses_its_directory_while_it_writes_replaces_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is suspended until another process has taken over, and then goes on."""
    directory, theirs = RunDirectory(tmp_path), json.dumps(owner()).encode()
    for number in (1, 2):
        checkpoint.save(tmp_path, {"number": number})
    (tmp_path / "masks.pt").write_bytes(b"of the other process")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()} | {"lock.owner": theirs}
    monkeypatch.setattr(os, "fsync", lambda descriptor: (tmp_path / "lock.owner").write_bytes(theirs))
    with pytest.raises(CheckpointError) as caught:
        WRITES[name](directory)
    taken = f"{tmp_path} was taken over by another process (process 4242 on node7): this process ends"
    cure = "if the other process is not yours, choose another runs_dir"
    assert str(caught.value) == f"{taken} and writes nothing more; {cure}"
    directory.unlock()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", WRITES)
def test_a_process_whose_directory_was_replaced_writes_nothing_more(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    directory = RunDirectory(folder)
    folder.rename(tmp_path / "old")
    folder.mkdir()
    with pytest.raises(CheckpointError) as caught:
        WRITES[name](directory)
    cure = "put the old one back and start the same command again to resume, or start again with resume=false"
    replaced = "was replaced by another folder: this process ends and writes nothing more"
    assert str(caught.value) == f"{folder} {replaced}; {cure}"
    assert list(folder.iterdir()) == []
    successor = RunDirectory(folder)
    directory.unlock()
    assert is_locked(folder / "lock"), "the lock of the new folder is not that of the old one"
    successor.unlock()


def test_a_deleted_owners_file_is_written_again(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "lock").unlink()
    (tmp_path / "lock.owner").unlink()
    checkpoint.save(tmp_path, {"number": 1})
    assert is_locked(tmp_path / "lock")
    directory.unlock()
    assert not (tmp_path / "lock.owner").exists()
