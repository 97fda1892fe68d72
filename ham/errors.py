"""Errors as one printable line with the cure, and which of them the machine causes. No torch."""

from __future__ import annotations

import errno
import os

from .regular_files import NotRegularError

_OF_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),
)
_CURES = {
    errno.EISDIR: "move it away",
    errno.EEXIST: "move the file away that has the name of a folder",
    errno.ENOTDIR: "move the file away that has the name of a folder",
    errno.EACCES: "change its permissions",
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
}
_LONGEST = 1000  # characters of a message


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its class name."""
    text = getattr(error, "strerror", None) or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def printable(text: object) -> str:
    """Text for a terminal: control characters, line breaks and invalid bytes of a file's name are escaped."""
    plain = str(text)
    shown = plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST // 2]} ... {plain[-_LONGEST // 2 :]}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


def explain(error: Exception) -> str:
    """The message of an error that ends a command, in one printable line; of a file's, with the cure."""
    if not isinstance(error, OSError) or error.filename is None:
        return printable(error)
    cure = _CURES.get(error.errno or 0, "check its path and its disk")
    if isinstance(error, NotRegularError):
        cure = "move it away"
    return printable(f"{error.filename} cannot be read or written ({one_line(error)}): {cure}")


def is_of_machine(error: OSError) -> bool:
    """Return True if the machine causes an error, such as a full disk: the same command may succeed later."""
    return error.errno in _OF_MACHINE


def names_error_of_machine(text: str) -> bool:
    """Return True if the text has the message of an error for which `is_of_machine` is True."""
    return any(os.strerror(number) in text for number in _OF_MACHINE)
