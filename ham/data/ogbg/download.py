"""Download of OGB's archives. No run does this; scripts/prepare_graphs.py does."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ham.errors import one_line
from ham.files import atomic_write_text

from ..base import DataError
from ..checksums import SUMS
from ..damaged import move_away
from ..download import FAILED, download
from .sets import SETS, SMILES

# zipfile raises the last two for compressions and passwords that it does not know
_FAILED = (*FAILED, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def is_there(name: str, root: Path) -> bool:
    """Return True if `root` has raw files of the set, complete or not."""
    folders = (root / folder / "raw" for folder in SETS[name].folders)
    return any(folder.is_dir() for folder in folders) or (name == "ogbg-molhiv" and (root / SMILES).is_file())


def fetch(
    name: str, root: Path, replace: Sequence[Path] = (), log: Callable[[str], None] = print
) -> list[Path]:
    """Download and unpack the archive of a set, unless `root` has raw files of it; returns the new folders.

    The folder of the set appears when it is complete. Its SHA256SUMS has the digest of the archive, which is
    not kept. OGB publishes no digests, so there is nothing to compare it with.

    Args:
        name: name of the set.
        root: the folder that contains the sets.
        replace: folders of the set to rename once another is there, see `move_away`; () keeps what is there.
        log: prints a line for the reader, with the digest.

    Raises:
        DataError: the archive cannot be downloaded, or is damaged.
    """
    if is_there(name, root) and not replace:
        return []
    facts = SETS[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.") as temporary:
            archive = Path(temporary, Path(facts.url).name)
            digest = download(facts.url, archive, name)
            log(f"{name}: {facts.url} has the SHA-256 {digest}")
            with zipfile.ZipFile(archive) as file:
                file.extractall(temporary)
            folder = Path(temporary, facts.folders[-1])
            atomic_write_text(folder / SUMS, f"{digest}  {archive.name}\n")
            for path in replace:
                move_away(path)
            target = folder.rename(root / facts.folders[0])
    except _FAILED as error:
        cure = f"download it elsewhere and unpack it in {root}"
        raise DataError(f"{name}: cannot get {facts.url} ({one_line(error)}); {cure}") from error
    return [target]
