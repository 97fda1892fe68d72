"""What the commands share: they print in any locale, and a reader that leaves ends them silently."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from errno import EDQUOT, EIO, ENOSPC
from io import TextIOWrapper
from pathlib import Path
from signal import SIGINT, SIGPIPE
from typing import Any, NoReturn

_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Parser(argparse.ArgumentParser):
    """Reports errors in one line. An empty path, as from an unset shell variable, is an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)  # reads options with type=Path

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty: give one, or omit the option")
    return Path(text)


class OutputError(Exception):
    """Standard output cannot be written. Not an OSError, which commands treat as errors of their files."""


def run_command_line(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a command; returns its exit status.

    It is 141 if the reader of its output has left, as of `| head`, 1 if the output cannot be written, and 130
    after Ctrl-C.
    """
    try:
        return _run(main, argv)
    except OSError as error:
        if error.filename is not None or error.errno not in (ENOSPC, EDQUOT, EIO):
            raise
        return _fail_to_print(error)


def run_script(main: Callable[[list[str]], int]) -> int:
    """Run a script's `main` with the command line's arguments, as `run_command_line` does.

    Errors of standard output are handled here, so an OSError that `main` catches is one of its files.
    """

    def main_with_checked_output(argv: list[str]) -> int:
        output = sys.stdout
        sys.stdout = _Output(output)
        try:
            return main(argv)
        finally:
            sys.stdout = output

    return _run(main_with_checked_output, sys.argv[1:])


def _run(main: Callable[[list[str]], int], argv: list[str]) -> int:
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not so in a notebook, and after >&-
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return main(argv)
        finally:
            if sys.stdout is not None:
                _Output(sys.stdout).flush()
    except KeyboardInterrupt:  # where a command has nothing to save, such as during its imports
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return 128 + SIGINT
    except BrokenPipeError:
        ignore_broken_pipe()
        return 128 + SIGPIPE
    except OutputError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            ignore_broken_pipe()
            return 128 + SIGPIPE
        return _fail_to_print(error.__cause__)


def _fail_to_print(error: OSError) -> int:
    ignore_broken_pipe()  # what is still to be written fails too
    name, reason = Path(sys.argv[0]).name, error.strerror
    print(f"{name}: its output cannot be written ({reason}): send it to another file", file=sys.stderr)
    return 1


class _Output:
    """Standard output whose errors are `OutputError`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; raises OutputError where the stream fails."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputError from error

    def flush(self) -> None:
        """Flush; raises OutputError where the stream fails."""
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError from error


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
    if match[0] <= "\x7f":
        return f"a control character ({match[0]!r})"
    encoding = sys.getfilesystemencoding()
    return f"bytes that are not {encoding}" + ("" if encoding == "utf-8" else ", the encoding of this locale")
