"""Downloads. No run does this; the scripts prepare_graphs.py and prepare_data.py do."""

from __future__ import annotations

import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path

from ham.files import open_binary

from .progress import progress

_CHUNK_BYTES = 2**20
TIMEOUT_SECONDS = 60.0
"""Without an answer of the server, or without data."""

FAILED = (OSError, ValueError, HTTPException)
"""What `download` raises."""


def download(url: str, path: Path, name: str) -> str:
    """Write `path`, through a file with the suffix .part beside it; returns the SHA-256.

    Args:
        url: URL of the file.
        path: path to write; an existing file is replaced.
        name: name of the data set, for the progress bar.

    Raises:
        OSError: the server does not answer, or sends fewer bytes than its header states, or the file cannot
            be written.
        ValueError: `url` is not an address.
        HTTPException: the server sends something else than HTTP.
    """
    part, digest, received = path.with_name(f"{path.name}.part"), hashlib.sha256(), 0
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
            open_binary(part, "wb") as file,
        ):
            announced = int(response.headers.get("Content-Length") or 0)
            with progress(None, f"{name}: download", "B", total=announced or None) as bar:
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
        if announced and received != announced:
            raise OSError(f"{received:,} of {announced:,} bytes arrived")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return digest.hexdigest()
