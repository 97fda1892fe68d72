"""Locks by what processes and clocks say, without waiting."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ham import locks, processes
from ham.files import ROOT
from ham.locks import is_locked, lock_file, taken_by
from ham.processes import age_of_process, is_running, machine, started

THEIRS = {"pid": 4242, "started": "17", "host": "node7", "machine": "another boot", "token": "theirs"}

ASK = "import sys, pathlib, ham.locks; print(ham.locks.is_locked(pathlib.Path(sys.argv[1])))"


class Clock:
    """In the place of `time`: sleeping takes no time, and moves `now`."""

    def __init__(self) -> None:
        self.now, self.sleeps = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(locks, "time", made)
    return made


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """No test leaves a file open or a lock held."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before and not locks._held


def test_an_owner_elsewhere_is_dead_after_a_minute_without_a_sign(tmp_path: Path, clock: Clock) -> None:
    """It is looked at twice a second."""
    (tmp_path / "lock.owner").write_text(json.dumps(THEIRS))
    lock_file(tmp_path / "lock").close()
    assert clock.sleeps == [0.5] * 121


def test_an_owner_elsewhere_holds_the_lock_for_a_minute_after_its_last_sign(tmp_path: Path) -> None:
    path = tmp_path / "lock.owner"
    path.write_text(json.dumps(THEIRS))
    now = time.time()
    for age, held in ((30, True), (59.5, True), (61, False)):
        os.utime(path, (now - age, now - age))
        assert is_locked(tmp_path / "lock") is held


def test_an_owner_that_gives_a_sign_meanwhile_is_alive(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "lock.owner"
    path.write_text(json.dumps(THEIRS))

    def sleep(seconds: float) -> None:
        os.utime(path, (5000, 5000))

    clock.sleep = sleep
    with pytest.raises(BlockingIOError) as caught:
        lock_file(tmp_path / "lock")
    assert (caught.value.errno, caught.value.strerror) == (errno.EWOULDBLOCK, "process 4242 on node7")


def test_who_only_asks_is_waited_for(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = [BlockingIOError(errno.EAGAIN, "busy")] * 10, list[int]()

    def flock(descriptor: int, flags: int) -> None:
        asked.append(flags)
        if answers:
            raise answers.pop()

    monkeypatch.setattr(fcntl, "flock", flock)
    lock_file(tmp_path / "lock").close()
    assert len(clock.sleeps) == 10 and asked == [fcntl.LOCK_EX | fcntl.LOCK_NB] * 11
    answers += [BlockingIOError(errno.EAGAIN, "busy")] * 1000
    with pytest.raises(BlockingIOError) as caught:
        lock_file(tmp_path / "lock")
    assert (caught.value.errno, caught.value.strerror) == (errno.EAGAIN, "its name is unknown")
    assert 0.25 < sum(clock.sleeps[10:]) < 0.35
    assert {*asked[:-1]} == {asked[0]} and asked[-1] == fcntl.LOCK_SH | fcntl.LOCK_NB
    (tmp_path / "lock.owner").write_text(json.dumps(THEIRS))
    with pytest.raises(BlockingIOError, match="process 4242 on node7"):
        lock_file(tmp_path / "lock")


def test_another_error_of_flock_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        lock_file(tmp_path / "lock")


def test_the_owners_file_names_the_holder_of_the_lock(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with lock_file(tmp_path / "lock") as lock:
            found = json.loads((tmp_path / "lock.owner").read_text())
            modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("lock", "lock.owner")]
            assert (lock.name, found["pid"], found["host"]) == (
                str(tmp_path / "lock"),
                os.getpid(),
                socket.gethostname(),
            )
            assert (
                lock.has_token(found["token"]) and not lock.has_token("theirs") and len(found["token"]) == 16
            )
            assert taken_by(tmp_path / "lock") == "" and is_locked(tmp_path / "lock")
    finally:
        os.umask(before)
    assert modes == [0o666, 0o644]
    assert taken_by(tmp_path / "lock") == "" and not is_locked(tmp_path / "lock")


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: dict[str, int] = {}
    original = os.open

    def noted(path: Any, given: int, *rest: int) -> int:
        flags[Path(path).name] = given
        return original(path, given, *rest)

    monkeypatch.setattr(os, "open", noted)
    lock_file(tmp_path / "lock").close()
    assert flags["lock"] & os.O_NOFOLLOW and flags["lock"] & os.O_NONBLOCK and flags["lock"] & os.O_RDWR
    assert flags["lock.owner"] & os.O_NOFOLLOW


def test_a_lock_is_released_once_and_never_by_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, own = lock_file(tmp_path / "lock"), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)
    lock.close()
    monkeypatch.setattr(os, "getpid", lambda: own)
    assert is_locked(tmp_path / "lock")
    lock.close()
    assert not (tmp_path / "lock.owner").exists()
    (tmp_path / "lock.owner").write_text(json.dumps(THEIRS))
    lock.close()
    assert (tmp_path / "lock.owner").exists()


def test_a_lock_that_was_taken_over_leaves_the_file_of_its_new_owner(tmp_path: Path) -> None:
    lock = lock_file(tmp_path / "lock")
    (tmp_path / "lock.owner").write_text(json.dumps(THEIRS))
    assert lock.taken_by() == taken_by(tmp_path / "lock") == "process 4242 on node7"
    lock.close()
    assert json.loads((tmp_path / "lock.owner").read_text()) == THEIRS


def test_of_two_that_write_a_deleted_file_again_the_loser_sees_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = lock_file(tmp_path / "lock")
    (tmp_path / "lock.owner").unlink()

    def late(self: locks.Lock) -> None:
        (tmp_path / "lock.owner").write_text("{}")
        raise FileExistsError

    monkeypatch.setattr(locks.Lock, "_write_owner", late)
    assert lock.taken_by() == "process ? on an unknown host"
    monkeypatch.setattr(locks, "_read_owner", lambda path: os.stat("/nowhere"))
    assert lock.taken_by() == "", "the folder is gone"
    monkeypatch.undo()
    lock.close()


@pytest.mark.parametrize(
    ("error", "message"),
    [(FileExistsError(), "it started at the same moment"), (OSError(errno.EROFS, "Read-only"), "Read-only")],
)
def test_a_lock_whose_owner_cannot_be_written_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    def fail(self: locks.Lock) -> None:
        raise error

    monkeypatch.setattr(locks.Lock, "_write_owner", fail)
    with pytest.raises(OSError, match=message) as caught:
        lock_file(tmp_path / "lock")
    assert isinstance(caught.value, BlockingIOError) is isinstance(error, FileExistsError)
    assert caught.value.errno == (errno.EWOULDBLOCK if isinstance(error, FileExistsError) else errno.EROFS)


def test_a_lock_is_free_where_something_else_has_the_name_of_its_owners_file(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text(json.dumps(THEIRS))
    (tmp_path / "lock.owner").symlink_to("theirs")
    assert not is_locked(tmp_path / "lock")


def test_a_dead_owners_file_may_be_gone_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = locks._Owner({"pid": 1, "started": "never", "machine": machine()}, 0.0)
    answers = [dead, None]
    with monkeypatch.context() as patch:
        patch.setattr(locks, "_read_owner", lambda path: answers.pop(0))
        locks._wait_for_owner(tmp_path / "lock.owner")
    assert answers == []


def test_a_write_that_fails_is_the_error_although_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: object) -> str:
        (tmp_path / "lock.owner").unlink()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.json, "dumps", fail)
    with pytest.raises(OSError, match="No space left on device"):
        lock_file(tmp_path / "lock")


def test_a_heartbeat_renews_the_file_while_it_is_ones_own(tmp_path: Path) -> None:
    lock, path = lock_file(tmp_path / "lock"), tmp_path / "lock.owner"
    waits: list[float] = []

    class Once:
        def __init__(self) -> None:
            self.left = [False, True]

        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return self.left.pop(0)

    closed, theirs = lock._closed, json.dumps(THEIRS)
    for content, renewed in ((path.read_text(), True), (theirs, False), (path.read_text(), True)):
        path.write_text(content)
        os.utime(path, (5000, 5000))
        lock._closed = Once()
        lock._beat()
        assert (path.stat().st_mtime > 5000) is renewed
    assert waits == [5.0] * 6
    lock._closed = closed
    lock.close()


def test_a_reused_number_is_no_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    mine = {"pid": child.pid, "started": started(child.pid), "machine": machine()}
    alive = [locks._Owner(mine | changed, 0.0).is_alive() for changed in ({}, {"started": "1"})]
    assert alive == [True, False]
    assert locks._Owner(mine | {"started": None}, 0.0).is_alive() is None
    assert locks._Owner(mine | {"machine": "another"}, 0.0).is_alive() is None
    child.communicate()
    assert locks._Owner(mine, 0.0).is_alive() is False
    own = {"pid": os.getpid(), "started": started(os.getpid()), "machine": machine()}
    assert locks._Owner(own | {"token": "of nobody"}, 0.0).is_alive() is False


def test_an_owner_is_not_dead_because_it_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"pid": os.getpid(), "started": started(os.getpid()), "machine": machine()}
    monkeypatch.setattr(locks, "machine", lambda: None)
    assert locks._Owner(mine | {"machine": None}, 0.0).is_alive() is None, "two machines without a boot id"


def test_a_process_that_proc_hides_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(processes, "started", lambda pid: None)
    monkeypatch.setattr(processes.os, "kill", refuse)
    assert is_running(4242, "17") is None


@pytest.mark.parametrize("pid", [0, -1, 2**30, 2**70, "1", None, 1.0])
def test_what_is_no_number_of_a_process_does_not_run(pid: object) -> None:
    assert is_running(pid, "17") is False


def test_a_forked_child_does_not_keep_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    """Such as a worker that loads data, which notices later."""
    (ready, is_ready), (ends, end) = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        lock = lock_file(tmp_path / "lock")
        if os.fork() == 0:
            lock.close()  # does nothing here
            os.write(is_ready, b"x")
            os.close(end)
            os.read(ends, 1)  # until the test has ended
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        assert os.read(ready, 1) == b"x"
        assert not is_locked(tmp_path / "lock")
        lock_file(tmp_path / "lock").close()
    finally:
        for descriptor in (ready, is_ready, ends, end):
            os.close(descriptor)


def test_a_lock_stays_with_a_parent_whose_child_has_ended(tmp_path: Path) -> None:
    with lock_file(tmp_path / "lock") as lock:
        child = os.fork()
        if child == 0:
            lock.close()
            os._exit(0)
        os.waitpid(child, 0)
        found = subprocess.run(
            [sys.executable, "-c", ASK, str(tmp_path / "lock")], capture_output=True, text=True, cwd=ROOT
        )
        assert found.stdout == "True\n", found.stderr


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_the_age_of_a_process_is_that_of_ps() -> None:
    shown = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True)
    assert abs(age_of_process(os.getpid()) - int(shown.stdout)) <= 2
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert age_of_process(child) is None, "a zombie"
    os.waitpid(child, 0)
    assert age_of_process(child) is None


def test_a_machine_is_its_boot_and_its_space_of_process_numbers() -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert machine() == f"{boot} {os.readlink('/proc/self/ns/pid')}"
