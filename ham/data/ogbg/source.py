"""Where the raw files of OGB's sets for graph classification are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base import DataError
from ..damaged import DamagedError
from .sets import SETS, SMILES


@dataclass(frozen=True)
class Source:
    """Where a set is read from.

    Args:
        folder: folder of the set.
        files: the raw files, relative to `folder`.
        is_smiles: True for a file of SMILES.
    """

    folder: Path
    files: tuple[str, ...]
    is_smiles: bool = False


def instructions(name: str) -> str:
    """How to get the files of a set."""
    return f"python scripts/prepare_graphs.py {name} --to DIR fetches it, then data.root=DIR/graphs"


def find_source(name: str, root: Path) -> Source:
    """The raw files of a set below `root`.

    Raises:
        DamagedError: one is missing in the folder of the set.
        DataError: the folder is missing.
    """
    facts = SETS[name]
    for folder in (root / folder for folder in facts.folders):
        if (folder / "raw").is_dir():
            if missing := [file for file in facts.files if not (folder / file).is_file()]:
                problem = f"{name}: {folder / missing[0]} is missing"
                raise DamagedError(problem, instructions(name), [folder])
            return Source(folder, tuple(facts.files))
    if name == "ogbg-molhiv" and (root / SMILES).is_file():
        return Source((root / SMILES).parents[1], ("raw/hiv.csv",), is_smiles=True)
    raw = root / facts.folders[0] / "raw"
    raise DataError(f"{name}: {raw} is missing; set HAM_DATA or data.root, or {instructions(name)}")
