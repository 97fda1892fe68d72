"""What a console can show, and which of its streams is silenced when nobody reads it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from ham.run import console
from ham.run.console import encodable, on_console


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "Größe →"),
        ("latin-1", "Größe \\u2192"),
        ("ascii", "Gr\\xf6\\xdfe \\u2192"),
        (None, "Gr\\xf6\\xdfe \\u2192"),
    ],
)
def test_only_what_the_encoding_lacks_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str | None, shown: str
) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding=encoding))
    assert encodable("Größe →") == shown
    monkeypatch.setattr(sys, "stdout", SimpleNamespace())
    assert encodable("ß") == "\\xdf"


@pytest.fixture
def streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bool], TextIO]]:
    """`streams("stdout", True)`: standard output is a pipe that nobody reads; False: a file."""
    opened: list[TextIO] = []

    def make(name: str, is_gone: bool) -> TextIO:
        if is_gone:
            reader, writer = os.pipe()
            os.close(reader)
            opened.append(os.fdopen(writer, "w"))
        else:
            opened.append((tmp_path / name).open("w"))
        monkeypatch.setattr(sys, name, opened[-1])
        return opened[-1]

    yield make
    for stream in opened:
        stream.close()


def place(stream: TextIO) -> str:
    return os.readlink(f"/proc/self/fd/{stream.fileno()}")


@pytest.mark.parametrize("gone", [(False, False), (True, False), (False, True), (True, True)])
def test_only_a_stream_without_a_reader_is_silenced(
    streams: Callable, tmp_path: Path, gone: tuple[bool, bool]
) -> None:
    names = ("stdout", "stderr")
    made = [streams(name, is_gone) for name, is_gone in zip(names, gone, strict=True)]
    before = len(os.listdir("/proc/self/fd"))
    assert on_console(lambda: 7) == 7
    for name, stream, is_gone in zip(names, made, gone, strict=True):
        assert place(stream) == ("/dev/null" if is_gone else str(tmp_path / name))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_could_not_be_printed_is_tried_once_more_in_silence(streams: Callable) -> None:
    made = [streams(name, False) for name in ("stdout", "stderr")]
    failures = [OSError(28, "No space left on device")]

    def show() -> int:
        if failures:
            raise failures.pop()
        return 7

    assert on_console(show) == 7 and [place(stream) for stream in made] == ["/dev/null"] * 2
    failures += [OSError(28, "full")] * 2
    with pytest.raises(OSError, match="full"):
        on_console(show)


def test_a_stream_that_cannot_be_flushed_is_gone_and_one_without_a_descriptor_is_not(
    streams: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "full")

    streams("stderr", False)
    for stream, found in ((io.StringIO(), []), (Full(), ["it"])):
        monkeypatch.setattr(sys, "stdout", stream)
        assert ["it" for gone in console._closed_streams() if gone is stream] == found
