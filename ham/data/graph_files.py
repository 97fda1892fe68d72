"""How the raw files of the 13 node classification data sets are read."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ham.errors import one_line
from ham.files import open_binary, read_bytes, read_text

from .base import DataError
from .checksums import file_sha256
from .damaged import DamagedError
from .graph_checks import check_graph, check_split, check_zip
from .graph_facts import SETS, SHA256, GraphSet
from .pickles import load_pickle, plain

_FOLDERS = {"Planetoid": "{key}/raw", "Coauthor": "{key}/raw", "Amazon": "{key}/raw", "WikiCS": "raw"}
_MASK_KEYS = {"train": "train", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class RawGraph:
    """A data set as stored in its files, undirected and without self-loops.

    Args:
        features: float32 [nodes, channels].
        labels: int64 [nodes].
        edges: int64 [2, 2 x undirected edges], sources and targets, each edge in both directions.
        masks: bool [nodes, splits] by part (train, valid, test); empty if the files have no splits.
    """

    features: Tensor
    labels: Tensor
    edges: Tensor
    masks: dict[str, Tensor]

    @property
    def splits(self) -> int:
        """Number of splits in the files."""
        return self.masks["train"].shape[1] if self.masks else 0

    def split(self, number: int) -> dict[str, Tensor]:
        """Node numbers of a split by part, int64. In wikics, all splits have the same test nodes."""
        columns = {part: mask[:, number % mask.shape[1]] for part, mask in self.masks.items()}
        return {part: column.nonzero().flatten() for part, column in columns.items()}


def read(name: str, root: Path) -> RawGraph:
    """Read and check the data set `name` from root/<name>/raw without writing there.

    Raises:
        DamagedError: a file is damaged or of another data set.
        DataError: a file is missing, or PyTorch Geometric is not installed.
    """
    facts, raw = SETS[name], root / name / "raw"
    paths = [raw / file for file in facts.files]
    for path in paths:
        _check_file(name, path)
    try:
        graph = _read_filtered(facts, raw) if facts.reader == "Filtered" else _read_pyg(facts, raw)
        actual = (len(graph.labels), graph.edges.shape[1] // 2, graph.features.shape[1])
        expected = (facts.nodes, facts.edges, facts.features)
        if actual != expected:
            raise ValueError(f"it has (nodes, edges, features) {actual}, not {expected}")
        for number in range(graph.splits):
            check_split(graph.split(number), facts.nodes, is_complete=facts.has_complete_splits)
    except DataError:
        raise
    except (OSError, MemoryError) as error:  # also of the temporary folder: the files may be good
        problem = f"{name}: {raw} cannot be read ({one_line(error)})"
        raise DataError(f"{problem}: free memory, and space in {tempfile.gettempdir()}") from error
    except Exception as error:  # a damaged file can raise anything
        raise DamagedError(f"{name}: {raw} is damaged ({one_line(error)})", _cure(name), paths) from error
    return graph


def _cure(name: str) -> str:
    return f"python scripts/prepare_graphs.py {name} --to DIR fetches it, then data.root=DIR/graphs"


def _check_file(name: str, path: Path) -> None:
    """Raise DataError for a missing file, DamagedError for one with a wrong checksum."""
    if not path.is_file():
        raise DataError(f"{name}: {path} is missing; set HAM_DATA or data.root, or {_cure(name)}")
    try:
        if (known := SHA256.get(path.name)) and file_sha256(path) != known:
            raise ValueError("its SHA-256 is not that of the published file")
        if path.suffix == ".npz":
            check_zip(path)
    except Exception as error:  # a damaged archive can raise anything
        raise DamagedError(f"{name}: {path} is damaged ({one_line(error)})", _cure(name), [path]) from error


def _read_pyg(facts: GraphSet, raw: Path) -> RawGraph:
    """Read with PyTorch Geometric from a temporary folder, because it writes beside its raw files."""
    datasets = _import_pyg()
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(temporary, _FOLDERS.get(facts.reader, "{key}/raw").format(key=facts.key))
        folder.parent.mkdir(exist_ok=True)
        if facts.reader == "Planetoid":
            _copy_pickles(facts, raw, folder)
        else:
            folder.symlink_to(raw.resolve())
        arguments = (temporary,) if facts.reader == "WikiCS" else (temporary, facts.key)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = getattr(datasets, facts.reader)(*arguments)[0]
    parts = {"train": "train_mask", "valid": "val_mask", "test": "test_mask"}
    masks = {part: data[key].reshape(len(data.y), -1) for part, key in parts.items() if key in data}
    if facts.reader == "WikiCS":  # as in the paper's code base, early stopping nodes count as validation
        masks["valid"] = masks["valid"] | data.stopping_mask
    return _normalize(facts, data.x, data.y, data.edge_index, masks)


def _copy_pickles(facts: GraphSet, raw: Path, folder: Path) -> None:
    """Pickle the contents of Planetoid's files again: PyTorch Geometric runs any code in a pickle."""
    folder.mkdir()
    for file in facts.files:
        if file.endswith(".index"):
            lines = read_text(raw / file).split()
            if len(set(lines)) < len(lines) or not all(map(str.isdigit, lines)):
                raise ValueError(f"{file} is not a list of different node numbers")
            shutil.copyfile(raw / file, folder / file)
            continue
        try:
            content = plain(load_pickle(read_bytes(raw / file)))
        except ValueError as error:
            raise ValueError(f"{file} {error}") from error
        (folder / file).write_bytes(pickle.dumps(content))


def _read_filtered(facts: GraphSet, raw: Path) -> RawGraph:
    """Squirrel and chameleon without duplicate nodes, which leak test labels (Platonov et al., 2023)."""
    content = _arrays(raw / facts.files[0])
    masks = {part: content[f"{key}_masks"].bool().t() for part, key in _MASK_KEYS.items()}
    return _normalize(facts, content["node_features"], content["node_labels"], content["edges"].t(), masks)


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a .npz file; pickled objects in it raise ValueError."""
    import numpy as np

    with open_binary(path) as file, np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _normalize(
    facts: GraphSet, features: Tensor, labels: Tensor, edges: Tensor, masks: dict[str, Tensor]
) -> RawGraph:
    """Check a graph; keep each edge once per direction, without self-loops, sorted by target."""
    features, labels, count = features.float(), labels.flatten(), len(labels)
    check_graph(features, labels, edges, facts.classes)
    edges = edges[:, edges[0] != edges[1]].long()
    keys = torch.cat([edges[1] * count + edges[0], edges[0] * count + edges[1]]).unique()
    masks = {part: mask.bool() for part, mask in masks.items()}
    return RawGraph(features, labels.long(), torch.stack([keys % count, keys // count]), masks)


def _import_pyg() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch_geometric import datasets
    except ImportError as error:
        raise DataError("graphs need PyTorch Geometric: pip install -e '.[run,gnn]'") from error
    return datasets


def fixed_split(name: str, root: Path) -> dict[str, Tensor]:
    """TunedGNN's fixed 60/20/20 split, read from root/splits/<name>_split.npz.

    Returns:
        node indices, int64, by part: train, valid, test.

    Raises:
        DamagedError: the file is damaged, or not a split of this data set.
        DataError: the file is missing.
    """
    path = root / "splits" / f"{name}_split.npz"
    _check_file(name, path)
    try:
        content = _arrays(path)
        split = {part: content[part] for part in _MASK_KEYS}
        check_split(split, SETS[name].nodes, is_complete=True)
    except Exception as error:  # a damaged file can raise anything
        raise DamagedError(f"{name}: {path} is damaged ({one_line(error)})", _cure(name), [path]) from error
    return {part: members.long() for part, members in split.items()}
