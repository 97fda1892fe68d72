"""Locks that processes of one machine, or of several nodes, respect: with flock and without it. No torch.

A lock has two parts. flock ends with its process, however that ends, but some file systems lack it, on others
it does not reach other nodes, and deleting the file releases it. So the file <name>.owner beside the lock
names its process too. A thread renews the time of this file every `BEAT_SECONDS`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .processes import is_running, machine, started
from .regular_files import open_descriptor

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""An owner on another machine whose file was not renewed for so long is dead."""

_ASK_SECONDS = 0.3
_POLL_SECONDS = 0.5
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_held: dict[str, Lock] = {}


class Lock:
    """A lock that this process holds until `close`, or until it ends; `lock_file` returns it.

    Args:
        path: path of the lock.
        descriptor: the open file, which holds flock where the file system has it.

    Raises:
        BlockingIOError: another process owns it.
        OSError: its files cannot be written.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.name, self._descriptor, self._process = str(path), descriptor, os.getpid()
        self._owner, self._token = _owner_file(path), secrets.token_hex(8)
        self._closed = threading.Event()
        _wait_for_owner(self._owner)
        self._folder = os.open(path.parent, os.O_RDONLY)
        _held[os.path.abspath(path)] = self
        try:
            self._write_owner()
        except OSError as error:
            del _held[os.path.abspath(path)]
            os.close(self._folder)
            if isinstance(error, FileExistsError):
                raise BlockingIOError(errno.EWOULDBLOCK, "it started at the same moment") from None
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; does nothing the second time, and in a forked child."""
        if self._closed.is_set() or os.getpid() != self._process:
            return
        self._closed.set()
        _held.pop(os.path.abspath(self.name), None)
        if not self.taken_by():
            with suppress(OSError):
                self._owner.unlink()
        os.close(self._folder)
        os.close(self._descriptor)

    def leave_to_parent(self) -> None:
        """Close the files in a forked child; the lock stays held by its parent."""
        for descriptor in (self._folder, self._descriptor):
            os.close(descriptor)

    def has_token(self, token: object) -> bool:
        """Return True if this is the random name that the lock has in its owner's file."""
        return token == self._token

    def taken_by(self) -> str:
        """The process that has taken the lock over; "" while this one holds it.

        A deleted owner's file is written again, but not in another folder.
        """
        owner = None
        for _ in range(2):  # the second time where another process wrote it meanwhile
            try:
                owner = _read_owner(self._owner)
                if owner is None and not self.is_folder_replaced():
                    self._write_owner()
                break
            except FileExistsError:
                continue
            except OSError:  # the folder is missing or cannot be read: no other writer is known
                return ""
        return "" if owner is None or owner.content.get("token") == self._token else owner.name

    def is_folder_replaced(self) -> bool:
        """Return True if another folder now has the name of the one in which the lock was created."""
        try:
            now = self._owner.parent.stat()
        except OSError:  # it is missing or cannot be read: the next write fails
            return False
        try:
            return not os.path.samestat(now, os.fstat(self._folder))
        except OSError:  # what NFS answers about a deleted one
            return True

    def _write_owner(self) -> None:
        """Create the owner's file. Raises FileExistsError if there is one."""
        pid = os.getpid()
        content = {"pid": pid, "started": started(pid), "host": socket.gethostname(), "machine": machine()}
        content["token"] = self._token
        descriptor = os.open(self._owner, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            with open(descriptor, "wb") as file:  # writes all of it, or raises
                file.write(json.dumps(content).encode())
        except OSError:
            self._owner.unlink(missing_ok=True)
            raise

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with suppress(OSError):
                owner = _read_owner(self._owner)
                if owner and owner.content.get("token") == self._token:
                    os.utime(self._owner, follow_symlinks=False)


class _Owner(NamedTuple):
    """The content of an owner's file, {} where it is incomplete, and the time it was renewed."""

    content: dict[str, Any]
    renewed: float

    @property
    def name(self) -> str:
        return f"process {self.content.get('pid', '?')} on {self.content.get('host', 'an unknown host')}"

    def is_alive(self) -> bool | None:
        """None if only the renewal time is known: the process is on another machine, or hidden here."""
        start = self.content.get("started")
        if start is None or machine() is None or self.content.get("machine") != machine():
            return None
        if self.content.get("pid") == os.getpid():  # a file that `close` could not delete is nobody's
            return any(lock.has_token(self.content.get("token")) for lock in list(_held.values()))
        return is_running(self.content.get("pid"), start)


def _leave_to_parent() -> None:
    """Close the locks' files in a forked child, which would hold flock after the end of the parent."""
    for lock in _held.values():
        lock.leave_to_parent()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def lock_file(path: Path) -> Lock:
    """Lock a file for this process until the returned lock is closed, or the process ends.

    The file is created if it is missing; its content is never changed. It waits briefly for processes
    that only ask whether it is locked, see `is_locked`, and up to `STALE_SECONDS` to see that an owner on
    another machine is dead.

    Raises:
        BlockingIOError: another process holds it; `strerror` names it.
        OSError: its files cannot be written, or something else has their names.
    """
    descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        _flock(descriptor, path)
        return Lock(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock `path`, on this machine or on another.

    flock is tried only where the owner's file names no living process: during a try, nobody can take the
    lock.
    """
    return _has_living_owner(path) or _is_flock_held(path)


def _has_living_owner(path: Path) -> bool:
    try:
        owner = _read_owner(_owner_file(path))
    except OSError:
        return False
    if owner is None or (alive := owner.is_alive()) is None:
        return owner is not None and time.time() - owner.renewed < STALE_SECONDS
    return alive


def _is_flock_held(path: Path) -> bool:
    try:
        descriptor = _open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)  # which releases the shared lock
    except BlockingIOError:
        return True
    except OSError:  # the file is missing, or this file system has no flock
        pass
    return False


def is_folder_replaced(path: Path) -> bool:
    """Return True if the folder of a lock that this process holds was replaced by another one."""
    lock = _held.get(os.path.abspath(path))
    return lock is not None and lock.is_folder_replaced()


def hold_flock(descriptor: int, *, shared: bool = False) -> bool:
    """Hold flock until the file is closed; return False if the file system lacks it.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False
    return True


def taken_by(path: Path) -> str:
    """The process that has taken over a lock which this process holds; "" without one."""
    lock = _held.get(os.path.abspath(path))
    return lock.taken_by() if lock else ""


def _flock(descriptor: int, path: Path) -> None:
    """Hold flock, where the file system has it; shared with processes that only ask and do not end.

    Such a process may be suspended. A shared flock still keeps out everyone who wants it alone, and of two
    processes that share it, only one can create the owner's file.

    Raises:
        BlockingIOError: another process holds it alone.
    """
    deadline = time.monotonic() + _ASK_SECONDS
    while True:
        with suppress(BlockingIOError):
            hold_flock(descriptor)
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    try:
        hold_flock(descriptor, shared=True)
    except BlockingIOError as error:
        owner = _read_owner(_owner_file(path))
        raise BlockingIOError(error.errno, owner.name if owner else "its name is unknown") from None


def _wait_for_owner(path: Path) -> None:
    """Wait until the owner has ended or is known to be dead, and delete the file of a dead owner.

    Of two processes that do so at the same moment, the one that loses sees it by `taken_by`. The clocks of
    other machines do not matter: what counts is that the file is renewed while this process looks.

    Raises:
        BlockingIOError: the owner is alive.
    """
    first, since = None, time.monotonic()
    while owner := _read_owner(path):
        first, alive = first or owner, owner.is_alive()
        if alive or owner.renewed != first.renewed:
            raise BlockingIOError(errno.EWOULDBLOCK, owner.name)
        if alive is False or time.monotonic() - since > STALE_SECONDS:
            path.unlink(missing_ok=True)
        else:
            time.sleep(_POLL_SECONDS)


def _read_owner(path: Path) -> _Owner | None:
    """The owner named in a file; None if it is missing. It is opened each time: NFS then reads it again."""
    try:
        descriptor = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        content, renewed = json.loads(os.read(descriptor, 4096)), os.fstat(descriptor).st_mtime
    except (ValueError, RecursionError):
        content, renewed = {}, os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
    return _Owner(content if isinstance(content, dict) else {}, renewed)


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _open(path: Path, flags: int) -> int:
    """Open a plain file; a link, a folder, a pipe or a device under its name is an OSError."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a plain file, move it away", str(path))
    return open_descriptor(path, flags | os.O_NOFOLLOW)
