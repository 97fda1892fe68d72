"""scripts/prepare_graphs.py with OGB's sets: the archive, its folder, and what is printed.

A server on this machine takes the place of OGB's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("ogb") is None:  # not importorskip: `import ogb` asks the network for a newer version
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)

from commands import script
from ogbg_files import edit, load, use_ogbg

from ham.data import DataError, download
from ham.data.checksums import read_sums
from ham.data.ogbg.sets import SETS

PPA, HIV = "ogbg-ppa", "ogbg-molhiv"


@dataclass
class Server:
    """What the server sends: `content`, announced as `more` bytes longer. None: it sends nothing."""

    address: str = ""
    content: bytes | None = b""
    more: int = 0
    requests: int = 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state, ended = Server(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests += 1
            if state.content is None:
                ended.wait(30)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.content) + state.more))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        state.address = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield state
        ended.set()
        http.shutdown()


def publish(monkeypatch: pytest.MonkeyPatch, server: Server, folder: Path, name: str) -> str:
    """Let the server have OGB's archive of a small set; returns the address."""
    facts = use_ogbg(monkeypatch, folder, name)
    url = f"{server.address}/{Path(facts.url).name}"
    monkeypatch.setitem(SETS, name, replace(facts, url=url))
    source, path = folder / facts.folders[0], folder / "archive"
    with zipfile.ZipFile(path, "w") as file:
        for member in source.rglob("*.gz"):
            file.write(member, Path(facts.folders[-1], member.relative_to(source)))
    server.content = path.read_bytes()
    return url


def prepare(to: Path, *argv: str) -> int:
    return script("prepare_graphs").main([*argv, "--to", str(to)])


def test_the_archive_becomes_a_checked_set_with_a_cache(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = publish(monkeypatch, server, tmp_path / "away", PPA)
    assert prepare(tmp_path / "to", PPA) == 0
    digest_line, reading, first = capsys.readouterr().out.splitlines()
    digest = hashlib.sha256(server.content).hexdigest()
    assert digest_line == f"ogbg-ppa: {url} has the SHA-256 {digest}"
    assert reading.startswith("ogbg-ppa: reads ") and first.startswith("ogbg-ppa: 24 graphs, ")
    assert first.endswith(" edges; train 12, valid 6, test 6; downloaded")
    assert [path.name for path in (tmp_path / "to" / "graphs").iterdir()] == ["ogbg_ppa"]
    assert read_sums(tmp_path / "to" / "graphs" / "ogbg_ppa") == {"ogbg_ppi_medium.zip": digest}
    assert prepare(tmp_path / "to", PPA, PPA) == 0
    assert capsys.readouterr().out.splitlines() == [first.removesuffix("; downloaded")]
    assert server.requests == 1


@pytest.mark.parametrize(("options", "steps"), [((), 20), (("--walk-steps", "3"), 3)], ids=["paper", "other"])
def test_the_walks_are_prepared_too(
    options: tuple[str, ...],
    steps: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_ogbg(monkeypatch, tmp_path / "graphs", HIV)
    assert prepare(tmp_path, HIV, *options) == 0
    assert capsys.readouterr().out.endswith(f"; walks of {steps} steps\n")
    monkeypatch.setattr("ham.data.ogbg.return_probabilities", None)
    graphs, lines = load(tmp_path / "graphs", HIV, walk_steps=steps)
    assert graphs.walks.shape[1] == steps and not lines


def test_a_negative_number_of_steps_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare(tmp_path, HIV, "--walk-steps", "-1")
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("--walk-steps must not be negative, got -1\n")


@pytest.mark.parametrize("kind", ["no archive", "too short", "damaged", "silence", "nobody"])
def test_a_failed_download_leaves_nothing_behind(
    kind: str,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = publish(monkeypatch, server, tmp_path / "away", PPA)
    reason = "File is not a zip file"
    if kind == "no archive":
        server.content = b"<html>404</html>"
    elif kind == "too short":
        server.more, size = 9, len(server.content)
        reason = f"{size:,} of {size + 9:,} bytes arrived"
    elif kind == "damaged":
        start = server.content.index(b"\x1f\x8b")  # of the first file's content
        server.content = server.content[:start] + b"?" + server.content[start + 1 :]
        reason = "Bad CRC-32 for file "
    elif kind == "silence":
        server.content, reason = None, "timed out"
        monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    else:
        url = "http://127.0.0.1:1/ogbg_ppi_medium.zip"
        monkeypatch.setitem(SETS, PPA, replace(SETS[PPA], url=url))
        reason = "<urlopen error [Errno 111] Connection refused>"
    assert prepare(tmp_path / "to", PPA) == 2
    message, folder = capsys.readouterr().err, tmp_path / "to" / "graphs"
    assert message.startswith(f"prepare_graphs.py: ogbg-ppa: cannot get {url} ({reason}")
    end = f"; download it elsewhere and unpack it in {folder}\n"
    assert message.endswith(end) and message.count("\n") == 1
    assert not list(folder.iterdir())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "an incomplete folder": lambda folder: [path.unlink() for path in (folder / "raw").glob("e*")],
    "an empty folder": lambda folder: [path.unlink() for path in (folder / "raw").iterdir()],
    "a torn file": lambda folder: os.truncate(folder / "raw" / "edge.csv.gz", 40),
    "a wrong checksum": lambda folder: flip(folder / "raw" / "graph-label.csv.gz", -6),
    "a page": lambda folder: (folder / "split" / "species" / "test.csv.gz").write_text("<html>"),
    "a label": lambda folder: edit(
        folder / "raw/graph-label.csv.gz", lambda rows: rows[0].__setitem__(0, 99)
    ),
    "a node less": lambda folder: edit(folder / "raw/num-node-list.csv.gz", list.pop),
}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_renamed_and_replaced(
    kind: str,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run that meets the damage names the command that is run here."""
    publish(monkeypatch, server, tmp_path / "away", PPA)
    root = tmp_path / "to" / "graphs"
    shutil.copytree(tmp_path / "away" / "ogbg_ppa", root / "ogbg_ppa_pyg")  # a folder of the user
    DAMAGE[kind](root / "ogbg_ppa_pyg")
    with pytest.raises(DataError, match=r"; python scripts/prepare_graphs\.py ogbg-ppa --to DIR fetches it"):
        load(root, PPA)
    assert prepare(tmp_path / "to", PPA) == 0
    out, err = capsys.readouterr()
    assert out.endswith("; downloaded\n") and err.count(": downloading it again\n") == 1
    assert sorted(path.name for path in root.iterdir()) == ["ogbg_ppa", "ogbg_ppa_pyg.damaged"]
    load(root, PPA)
    assert prepare(tmp_path / "to", PPA) == 0 and server.requests == 1


def test_a_damaged_download_is_not_tried_twice(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, server, tmp_path / "away", PPA)
    monkeypatch.setitem(SETS, PPA, replace(SETS[PPA], graphs=25))
    assert prepare(tmp_path / "to", PPA) == 2
    assert "rows, not 25), although just downloaded: try again later" in capsys.readouterr().err
    assert server.requests == 1
