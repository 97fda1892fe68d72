"""Download of OGB's archives. No run does this; scripts/prepare_graphs.py does."""

from __future__ import annotations

import hashlib
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from ham.files import one_line

from .base import DataError
from .checksums import SUMS
from .ogbg_sets import SETS, SMILES
from .progress import progress

_CHUNK_BYTES = 2**20
_FAILED = (OSError, ValueError, HTTPException, zipfile.BadZipFile, zlib.error)
_TIMEOUT_SECONDS = 60.0
"""Without an answer of the server, or without data."""


def is_there(name: str, root: Path) -> bool:
    """Does `root` have raw files of the set, complete or not?"""
    folders = (root / folder / "raw" for folder in SETS[name].folders)
    return any(folder.is_dir() for folder in folders) or (name == "ogbg-molhiv" and (root / SMILES).is_file())


def fetch(name: str, root: Path, log: Callable[[str], None] = print) -> bool:
    """Download and unpack the archive of a set, unless `root` has raw files of it; returns whether it did.

    The folder of the set appears when it is complete. Its SHA256SUMS has the digest of the archive, which is
    not kept. OGB publishes no digests, so there is nothing to compare it with.

    Args:
        name: of the set.
        root: the folder that contains the sets.
        log: prints a line for the reader, with the digest.

    Raises:
        DataError: the archive cannot be downloaded, or is damaged.
    """
    if is_there(name, root):
        return False
    facts = SETS[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.") as temporary:
            archive = Path(temporary, Path(facts.url).name)
            digest = _download(facts.url, archive, name)
            log(f"{name}: {facts.url} has the SHA-256 {digest}")
            with zipfile.ZipFile(archive) as file:
                file.extractall(temporary)
            folder = Path(temporary, facts.folders[-1])
            (folder / SUMS).write_text(f"{digest}  {archive.name}\n")
            folder.rename(root / facts.folders[0])
    except _FAILED as error:
        cure = f"download it elsewhere and unpack it in {root}"
        raise DataError(f"{name}: cannot get {facts.url} ({one_line(error)}); {cure}") from error
    return True


def _download(url: str, path: Path, name: str) -> str:
    """Write `path`, through a file with the suffix .part beside it; returns the SHA-256.

    Raises:
        OSError: the server does not answer, or sends less than it announces.
        HTTPException: the server sends something else than HTTP.
    """
    part, digest, received = path.with_name(f"{path.name}.part"), hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, part.open("wb") as file:
        announced = int(response.headers.get("Content-Length") or 0)
        with progress(None, f"{name}: download", "B", total=announced or None) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if announced and received != announced:
        raise OSError(f"{received:,} of {announced:,} bytes arrived")
    part.rename(path)
    return digest.hexdigest()
