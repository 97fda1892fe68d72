"""Downloads appear when they are complete, and their progress counts bytes."""

from __future__ import annotations

import hashlib
import io
from email.message import Message
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from ham.data import download as module
from ham.data.download import download


class Response(io.BytesIO):
    """Content as from a server, `headers` included."""

    def __init__(self, content: bytes, length: int | None) -> None:
        super().__init__(content)
        self.headers = Message()
        if length is not None:
            self.headers["Content-Length"] = str(length)


class Bar:
    """In place of a progress bar: its arguments, and the sum of the bytes reported to it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options, self.count = arguments, options, 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def update(self, count: int) -> None:
        self.count += count


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes, length: int | None) -> list[Bar]:
    """Let every address have this content; returns the bars that appear."""
    bars: list[Bar] = []

    def progress(*arguments: Any, **options: Any) -> Bar:
        bars.append(Bar(*arguments, **options))
        return bars[-1]

    monkeypatch.setattr(
        module.urllib.request, "urlopen", lambda url, timeout: {"http://a": Response(content, length)}[url]
    )
    monkeypatch.setattr(module, "progress", progress)
    return bars


@pytest.mark.parametrize("length", [2500, None], ids=["announced", "not announced"])
def test_a_download_replaces_the_file_and_returns_its_digest(
    length: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(250)) * 10
    bars = serve(monkeypatch, content, length)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1000)
    (tmp_path / "file").write_bytes(b"old")
    assert download("http://a", tmp_path / "file", "set") == hashlib.sha256(content).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == content
    (bar,) = bars
    assert (bar.arguments, bar.options) == ((None, "set: download", "B"), {"total": length})
    assert bar.count == 2500


@pytest.mark.parametrize("length", [2499, 2501])
def test_another_size_than_the_announced_one_is_an_error(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, bytes(2500), length)
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match=f"^2,500 of {length:,} bytes arrived$"):
        download("http://a", tmp_path / "file", "set")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_an_address_without_an_answer_leaves_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, b"", None)
    with pytest.raises(KeyError, match="http://b"):
        download("http://b", tmp_path / "file", "set")
    assert list(tmp_path.iterdir()) == []


def test_a_server_may_be_silent_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def urlopen(url: str, timeout: float) -> Response:
        waits.append(timeout)
        return Response(b"a", 1)

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    download("http://a", tmp_path / "file", "set")
    assert waits == [60]
