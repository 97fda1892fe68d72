"""The console of a run, which may disappear or support only ASCII: a run never ends because of it."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

T = TypeVar("T")


def on_console(fn: Callable[[], T]) -> T:
    """Call `fn`, which prints, and flush; a stream that cannot be written is silenced."""
    try:
        result = fn()
    except OSError:  # a closed pipe or terminal, or a full disk under a log
        _silence(_closed_streams() or [sys.stdout, sys.stderr])
        result = fn()
    _silence(_closed_streams())
    return result


def encodable(text: str) -> str:
    """The text with escapes for what the console's encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _closed_streams() -> list[TextIO]:
    """The streams that no process reads any more, or that cannot be flushed."""
    closed = []
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # errors and hangups only
            if poll.poll(0):
                closed.append(stream)
        except io.UnsupportedOperation:  # it has no descriptor
            pass
        except OSError:
            closed.append(stream)
    return closed


def _silence(streams: list[TextIO]) -> None:
    """Point streams to /dev/null, since the interpreter flushes them again at its end."""
    for stream in streams:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
