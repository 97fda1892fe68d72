"""SMILES to graphs with OGB's features, and the scaffold split of MoleculeNet, which OGB uses."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ham.files import open_text

from .base import DataError
from .progress import progress

SMILES_COLUMN, LABEL_COLUMN = "smiles", "HIV_active"


def import_rdkit() -> Any:
    """`Chem` of rdkit, whose messages go to stderr. Raises DataError where rdkit is missing."""
    try:
        from rdkit import Chem
    except ImportError as error:
        raise DataError("SMILES need rdkit: pip install -e '.[run,ogb]'") from error
    return Chem


def read_smiles(path: Path) -> tuple[list[str], np.ndarray]:
    """SMILES and float32 labels [molecules, 1] of a CSV file with the columns smiles and HIV_active.

    A byte order mark at its start is skipped.

    Raises:
        ValueError: a column is missing, or a row is incomplete or has a label other than 0 and 1.
        OSError: the file cannot be read.
    """
    smiles, labels = [], []
    with open_text(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {SMILES_COLUMN, LABEL_COLUMN} <= set(rows.fieldnames or ()):
            raise ValueError(f"its first line does not name the columns {SMILES_COLUMN} and {LABEL_COLUMN}")
        for row in rows:
            text, label = row[SMILES_COLUMN], row[LABEL_COLUMN]
            if not text or label not in ("0", "1"):
                raise ValueError(f"line {rows.line_num} needs a SMILES and a label 0 or 1")
            smiles.append(text)
            labels.append(float(label))
    return smiles, np.array(labels, dtype=np.float32).reshape(-1, 1)


def parse(smiles: str) -> tuple[Any, bool]:
    """The molecule, and whether rdkit accepts the valences of its atoms.

    rdkit accepts fewer valences of metals, boron and germanium than in 2019, when OGB's sets were made.
    Such a molecule is parsed without only this check, so that it is kept in its set.

    Raises:
        ValueError: the text is not a SMILES.
    """
    chem = import_rdkit()
    if (molecule := chem.MolFromSmiles(smiles)) is not None:
        return molecule, True
    molecule = chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        raise ValueError(f"{smiles[:60]!r} is not a SMILES")
    molecule = chem.RemoveHs(molecule, sanitize=False)
    molecule.UpdatePropertyCache(strict=False)
    flags = chem.SanitizeFlags
    try:
        chem.SanitizeMol(molecule, flags.SANITIZE_ALL ^ flags.SANITIZE_PROPERTIES)
    except ValueError as error:
        raise ValueError(f"{smiles[:60]!r} is not a molecule ({error})") from error
    chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    return molecule, False


def to_graph(molecule: Any, features: Any) -> dict[str, Any]:
    """A molecule as `ogb.utils.mol.smiles2graph` returns it: both directions of a bond one after the other.

    Args:
        molecule: a molecule of rdkit.
        features: the module ogb.utils.features.
    """
    atoms = [features.atom_to_feature_vector(atom) for atom in molecule.GetAtoms()]
    ends, bonds = [], []
    for bond in molecule.GetBonds():
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        ends += [(begin, end), (end, begin)]
        bonds += [features.bond_to_feature_vector(bond)] * 2
    return {
        "num_nodes": len(atoms),
        "node_feat": np.array(atoms, dtype=np.int64),
        "edge_index": np.array(ends, dtype=np.int64).reshape(-1, 2).T,
        "edge_feat": np.array(bonds, dtype=np.int64).reshape(-1, 3),
    }


def scaffold(molecule: Any) -> str:
    """SMILES of the Bemis-Murcko scaffold without chirality; "" for a molecule without rings.

    Equal to rdkit's `MurckoScaffoldSmiles`, which rejects molecules with unusual valences.
    """
    chem = import_rdkit()
    core = chem.MurckoDecompose(molecule)
    core.ClearComputedProps()
    core.UpdatePropertyCache(strict=False)
    chem.GetSymmSSSR(core)
    return chem.MolToSmiles(core, isomericSmiles=False)


def scaffold_split(scaffolds: Sequence[str], train: float = 0.8, valid: float = 0.1) -> dict[str, list[int]]:
    """Split molecules so that no scaffold is in two parts, as DeepChem's ScaffoldSplitter does.

    The groups of equal scaffolds are taken from the largest to the smallest, among equal sizes from the one
    whose first molecule comes last. A group goes to train if it fits there, else to valid, else to test.

    Returns:
        molecule numbers in ascending order by part: train, valid, test.
    """
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(scaffolds):
        groups.setdefault(key, []).append(i)
    train_end, valid_end = train * len(scaffolds), (train + valid) * len(scaffolds)
    parts: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for group in sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True):
        if len(parts["train"]) + len(group) <= train_end:
            parts["train"] += group
        elif len(parts["train"]) + len(parts["valid"]) + len(group) <= valid_end:
            parts["valid"] += group
        else:
            parts["test"] += group
    return {part: sorted(members) for part, members in parts.items()}


def read_molecules(path: Path, features: Any, log: Callable[[str], None]) -> SimpleNamespace:
    """Read a CSV file of SMILES.

    Args:
        path: see `read_smiles`.
        features: the module ogb.utils.features.
        log: prints a line for the reader, about molecules with unusual valences.

    Returns:
        graphs, see `to_graph`; labels, float32 [graphs, 1]; parts, see `scaffold_split`.

    Raises:
        ValueError: a row is invalid; the message names it.
        OSError: the file cannot be read.
    """
    import_rdkit()
    from rdkit import __version__, rdBase

    smiles, labels = read_smiles(path)
    graphs, scaffolds, unusual = [], [], []
    with rdBase.BlockLogs():
        for row, text in enumerate(progress(smiles, path.name, "molecules"), start=2):
            try:
                molecule, is_usual = parse(text)
            except ValueError as error:
                raise ValueError(f"line {row}: {error}") from error
            unusual += [] if is_usual else [row]
            graphs.append(to_graph(molecule, features))
            scaffolds.append(scaffold(molecule))
    if unusual:
        lines = ", ".join(map(str, unusual[:10])) + (", ..." if len(unusual) > 10 else "")
        log(
            f"{path.name}: rdkit {__version__} rejects the valences of {len(unusual)} molecules "
            f"(lines {lines}); they are kept"
        )
    return SimpleNamespace(graphs=graphs, labels=labels, parts=scaffold_split(scaffolds))
