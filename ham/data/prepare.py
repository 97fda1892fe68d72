"""Prepares the folder of a data set: copies, unpacks or downloads its files and checks them."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from ham.files import open_binary, read_bytes

from . import cifar_files, commonsense_files
from .base import DataError
from .checksums import SUMS, write_sums
from .damaged import move_away
from .tars import read_to_end

_LARGEST = 2**30  # bytes of a file in an archive; CIFAR-100's largest has 155 MB


@dataclass(frozen=True)
class Recipe:
    """How to prepare one data set.

    Args:
        about: a short description.
        folder: name of its folder.
        files: the files in the folder, which SHA256SUMS lists; empty: the folder gets none.
        fill: puts the files into an empty folder, from the given source or, without one, by a download; may
            leave other files beside that folder. Raises DataError.
        check: describes the files in a folder. Raises ValueError if they are wrong.
    """

    about: str
    folder: str
    files: tuple[str, ...]
    fill: Callable[[Path | None, Path], None]
    check: Callable[[Path], str]


def prepare(recipe: Recipe, source: Path | None, to: Path) -> str:
    """Create `to`/<the recipe's folder> at once, or check the existing one; returns a line that describes it.

    An existing folder that is damaged is renamed (see `move_away`) once there is a good one to replace it.
    One that lacks optional files gets those of `source`.

    Raises:
        DataError: the data cannot be obtained or are wrong.
        OSError: the folder cannot be written.
    """
    target = to / recipe.folder
    if not target.exists():
        return f"{target}   {_create(recipe, source, target)}"
    try:
        description = recipe.check(target)
    except ValueError as error:
        try:
            description = _create(recipe, source, target)
        except DataError as failed:
            raise DataError(f"{error}; it cannot be replaced: {failed}") from None
        return f"{target}   {description}; replaces a damaged one ({error})"
    if source is not None and not recipe.files:
        description = _add_missing(recipe, source, target)
    if recipe.files and not (target / SUMS).exists():
        write_sums(target, recipe.files)
    return f"{target}   already there: {description}"


def _create(recipe: Recipe, source: Path | None, target: Path) -> str:
    """Fill a temporary folder, check it and rename it to `target`; returns what `recipe.check` does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{recipe.folder}.", dir=target.parent) as temporary:
        folder = Path(temporary) / recipe.folder
        description = _fill(recipe, source, folder)
        if recipe.files:
            write_sums(folder, recipe.files)
        if target.exists():
            move_away(target)
        folder.rename(target)
    return description


def _fill(recipe: Recipe, source: Path | None, folder: Path) -> str:
    folder.mkdir()
    recipe.fill(source, folder)
    try:
        return recipe.check(folder)
    except ValueError as error:
        problem = str(error).replace(f"{folder}{os.sep}", f"{source or 'the download'}: ")
        raise DataError(f"{problem}; give other files as --from, or omit --from to download") from None


def _add_missing(recipe: Recipe, source: Path, target: Path) -> str:
    """Add the files of `source` that `target` lacks; returns what `recipe.check` does."""
    with tempfile.TemporaryDirectory(prefix=f".{recipe.folder}.", dir=target.parent) as temporary:
        folder = Path(temporary) / recipe.folder
        _fill(recipe, source, folder)
        for path in folder.rglob("*"):
            new = target / path.relative_to(folder)
            if path.is_file() and not new.exists():
                new.parent.mkdir(exist_ok=True)
                path.rename(new)
    return recipe.check(target)


def fill_cifar100(source: Path | None, folder: Path) -> None:
    """Copy, unpack or download the official files. Raises DataError."""
    if source is None:
        unpack(download(folder.parent), folder)
    elif source.is_dir():
        inner = source / cifar_files.FOLDER
        for name in (*cifar_files.FILES, SUMS):
            path = (inner if inner.is_dir() else source) / name
            if path.is_file():
                shutil.copyfile(path, folder / name)
    elif source.is_file():
        unpack(source, folder)
    else:
        problem = "is neither a folder nor a regular file" if source.exists() else "does not exist"
        raise DataError(f"--from {source} {problem}; omit it to download CIFAR-100")


def check_cifar100(folder: Path) -> str:
    """Check shapes, classes and counts, and whether the files are the official ones. Raises ValueError."""
    from torchvision.datasets import CIFAR100

    cifar_files.read_official(folder)
    official = dict(
        [*CIFAR100.train_list, *CIFAR100.test_list, (CIFAR100.meta["filename"], CIFAR100.meta["md5"])]
    )
    digests = {
        name: hashlib.md5(read_bytes(folder / name), usedforsecurity=False).hexdigest() for name in official
    }
    return (
        "official files" if digests == official else "not the official files byte for byte, contents checked"
    )


def download(folder: Path) -> Path:
    """Download CIFAR-100's archive by torchvision, which compares its MD5. Raises DataError."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_url

    try:
        download_url(CIFAR100.url, folder, CIFAR100.filename, CIFAR100.tgz_md5)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(
            f"cannot download {CIFAR100.url} ({error}): download it on a machine with internet access, then "
            f"give it as --from {CIFAR100.filename}"
        ) from None
    return folder / CIFAR100.filename


def unpack(archive: Path, folder: Path) -> None:
    """Unpack CIFAR-100's three files, and no other member, of an archive. Raises DataError."""
    try:
        with read_to_end(archive) as members:
            for member in members:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                if parent != cifar_files.FOLDER or name not in cifar_files.FILES or not member.isfile():
                    continue
                if member.size > _LARGEST:
                    raise DataError(f"{archive} holds a {name} of {member.size:,} bytes: it is not CIFAR-100")
                with open_binary(folder / name, "wb") as file:
                    shutil.copyfileobj(members.extractfile(member), file)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{archive} is not a complete .tar.gz ({error}): download it again") from None


def fill_commonsense(source: Path | None, folder: Path) -> None:
    """Copy the files of a clone of LLM-Adapters, or of a folder like the prepared one. Raises DataError."""
    clone = f"git clone {commonsense_files.SOURCE}, then give it as --from LLM-Adapters"
    if source is None:
        raise DataError(f"the commonsense files are not downloaded: {clone}")
    names = commonsense_files.file_names()
    candidates = {
        name: (source / name, source / "dataset" / name, source / "ft-training_set" / name) for name in names
    }
    for name, paths in candidates.items():
        if (path := next(filter(Path.is_file, paths), None)) is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
    if not any(folder.iterdir()):
        raise DataError(f"--from {source} has none of the commonsense files: {clone}")


def check_commonsense(folder: Path) -> str:
    """Check the records and their number, and name the missing files. Raises ValueError."""
    try:
        return commonsense_files.describe(folder)
    except DataError as error:
        raise ValueError(str(error)) from None


RECIPES = {
    "commonsense": Recipe(
        about="commonsense questions of eight tasks in LLM-Adapters' format",
        folder=commonsense_files.FOLDER,
        files=(),
        fill=fill_commonsense,
        check=check_commonsense,
    ),
    "cifar100": Recipe(
        about="CIFAR-100, 60,000 images of 32 px in 100 classes",
        folder=cifar_files.FOLDER,
        files=cifar_files.FILES,
        fill=fill_cifar100,
        check=check_cifar100,
    ),
}
