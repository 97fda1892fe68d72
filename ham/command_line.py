"""What the commands share: they print in any locale, and a reader that leaves ends them silently."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from io import TextIOWrapper
from signal import SIGPIPE

_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def run_command_line(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a command; returns its exit status, 141 if the reader of its output has left, as of `| head`."""
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not so in a notebook, and after >&-
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return main(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        ignore_broken_pipe()
        return 128 + SIGPIPE


def _open_missing_streams() -> None:
    """Open /dev/null where a standard stream is closed (>&-), else the next file gets its descriptor."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, mode))


def ignore_broken_pipe() -> None:
    """Discard what is printed from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unusable(text: str) -> str:
    """What of a path or an override cannot be written to a configuration or a log; "" if nothing.

    Bytes that the locale does not decode are surrogates in `text`.
    """
    match = _UNUSABLE.search(text)
    if not match:
        return ""
    if match[0] < " " or match[0] == "\x7f":
        return f"a control character ({match[0]!r})"
    encoding = sys.getfilesystemencoding()
    return f"bytes that are not {encoding}" + ("" if encoding == "utf-8" else ", the encoding of this locale")
