"""Fetch a data set, check it and put it where the experiments find it.

    python scripts/prepare_data.py cifar100 [--from DIR_OR_TARGZ] [--to DIR]

Makes DIR/cifar-100-python with the three official files and their SHA256SUMS, which every run compares. DIR
is $HAM_DATA if not given, else the current folder. The new folder appears whole or not at all; one that is
there already is checked and kept. Exit status 2, and one line, where the data are not to be had or are wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from ham.data import DataError, cifar_files
from ham.data.checksums import SUMS, write_sums

_LARGEST = 2**30  # bytes of a file in an archive; CIFAR-100's largest has 155 MB


@dataclass(frozen=True)
class Recipe:
    """How to prepare one data set.

    Args:
        about: it in a few words.
        folder: what its folder is called.
        files: what the folder holds, and SHA256SUMS lists.
        fill: puts the files into an empty folder, from the source that the user gave or, without one, from
            the internet. It may leave other things beside that folder. Raises DataError.
        check: what can be said of the files in a folder. Raises ValueError where they are wrong.
    """

    about: str
    folder: str
    files: tuple[str, ...]
    fill: Callable[[Path | None, Path], None]
    check: Callable[[Path], str]


def main(argv: list[str] | None = None) -> int:
    """Prepare one data set; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="name", metavar="DATA", required=True)
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=recipe.about, description=recipe.about)
        command.add_argument("--from", dest="source", type=Path, help="files that are here already")
        command.add_argument("--to", type=Path, default=Path(os.environ.get("HAM_DATA", ".")))
    args = parser.parse_args(argv)
    try:
        print(prepare(RECIPES[args.name], args.source, args.to))
    except (DataError, OSError) as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(recipe: Recipe, source: Path | None, to: Path) -> str:
    """Make `to`/<the recipe's folder>, or check the one that is there; returns what to tell the user.

    Raises:
        DataError: the data are not to be had or are wrong.
        OSError: the folder cannot be written.
    """
    target = to / recipe.folder
    if target.exists():
        try:
            verdict = recipe.check(target)
        except ValueError as error:
            raise DataError(f"{error}: move {target} away, then run this again") from None
        if not (target / SUMS).exists():
            write_sums(target, recipe.files)
        return f"{target}   already there: {verdict}"
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{recipe.folder}.", dir=to) as work:
        made = Path(work) / recipe.folder
        made.mkdir()
        recipe.fill(source, made)
        try:
            verdict = recipe.check(made)
        except ValueError as error:
            told = str(error).replace(f"{made}{os.sep}", f"{source or 'the download'}: ")
            raise DataError(f"{told}; give other files as --from, or leave it out to download") from None
        write_sums(made, recipe.files)
        made.rename(target)
    return f"{target}   {verdict}"


def fill_cifar100(source: Path | None, folder: Path) -> None:
    """Copy, unpack or download the official files."""
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
        raise DataError(f"--from {source} is not there; leave it out to download CIFAR-100")


def check_cifar100(folder: Path) -> str:
    """Shapes, classes and counts hold; are they the official files to the last byte?"""
    from torchvision.datasets import CIFAR100

    cifar_files.read_official(folder)
    md5 = dict([*CIFAR100.train_list, *CIFAR100.test_list, (CIFAR100.meta["filename"], CIFAR100.meta["md5"])])
    found = {
        name: hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest() for name in md5
    }
    return "official files" if found == md5 else "not the official files byte for byte, contents checked"


def download(folder: Path) -> Path:
    """Have torchvision fetch CIFAR-100's archive and compare its MD5."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_url

    try:
        download_url(CIFAR100.url, folder, CIFAR100.filename, CIFAR100.tgz_md5)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(
            f"cannot download {CIFAR100.url} ({error}): fetch it where the internet is, then give it as "
            f"--from {CIFAR100.filename}"
        ) from None
    return folder / CIFAR100.filename


def unpack(archive: Path, folder: Path) -> None:
    """Take CIFAR-100's three files out of its archive, and nothing else, whatever names it holds."""
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                place, _, name = member.name.removeprefix("./").rpartition("/")
                if place != cifar_files.FOLDER or name not in cifar_files.FILES or not member.isfile():
                    continue
                if member.size > _LARGEST:
                    raise DataError(f"{archive} holds a {name} of {member.size:,} bytes: it is not CIFAR-100")
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(members.extractfile(member), file)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is no whole .tar.gz ({error}): fetch it anew") from None


RECIPES = {
    "cifar100": Recipe(
        about="CIFAR-100, 60,000 images of 32 px in 100 classes",
        folder=cifar_files.FOLDER,
        files=cifar_files.FILES,
        fill=fill_cifar100,
        check=check_cifar100,
    ),
}


if __name__ == "__main__":
    sys.exit(main())
