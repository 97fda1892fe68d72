"""Download of the raw files of graphs. No run does this; scripts/prepare_graphs.py does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ham.errors import one_line

from .base import DataError
from .damaged import move_away
from .download import FAILED, download
from .graph_facts import sources


def fetch(name: str, root: Path, replace: Sequence[Path] = ()) -> list[Path]:
    """Download the missing files of `name` and return their paths; a file appears when it is complete.

    Args:
        name: name of the data set.
        root: the folder that contains the data sets.
        replace: existing files to download again; the old ones are renamed, see `move_away`.

    Raises:
        DataError: a file cannot be downloaded.
    """
    downloaded = []
    for location, url in sources(name).items():
        path = root / location
        if path.exists() and path not in replace:
            continue
        new = path.with_name(f"{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            download(url, new, name)
            if path.exists():
                move_away(path)
            new.replace(path)
        except FAILED as error:
            new.unlink(missing_ok=True)
            raise DataError(f"cannot download {url}: {one_line(error)}; save the file as {path}") from error
        downloaded.append(path)
    return downloaded
