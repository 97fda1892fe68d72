"""The 13 node classification data sets: their facts, and how their raw files are read."""

from __future__ import annotations

import contextlib
import io
import pickle
import tempfile
import urllib.request
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ham.files import one_line

from .base import DataError

_GITHUB = "https://raw.githubusercontent.com"
_PLANETOID = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


@dataclass(frozen=True)
class GraphSet:
    """Facts of one data set.

    Args:
        reader: the PyTorch Geometric class that reads it; "Filtered": the reader of this file, PyG has none.
        key: the name of the data set in PyTorch Geometric.
        nodes: number of nodes.
        edges: number of undirected edges without self-loops.
        features: number of features per node.
        classes: number of classes.
        files: names of the raw files.
        url: the folder from which they are downloaded.
        metric: accuracy, or roc_auc of class 1.
        normalize: whether each node's features are scaled to sum 1, as in the paper's code base.
    """

    reader: str
    key: str
    nodes: int
    edges: int
    features: int
    classes: int
    files: tuple[str, ...]
    url: str
    metric: str = "accuracy"
    normalize: bool = False


def _planetoid(key: str, *counts: int) -> GraphSet:
    files = tuple(f"ind.{key}.{part}" for part in _PLANETOID)
    return GraphSet("Planetoid", key, *counts, files, f"{_GITHUB}/kimiyoung/planetoid/master/data")


def _npz(reader: str, key: str, file: str, *counts: int) -> GraphSet:
    url = f"{_GITHUB}/shchur/gnn-benchmark/master/data/npz"
    return GraphSet(reader, key, *counts, (file,), url, normalize=True)


def _heterophilous(
    key: str, file: str, *counts: int, reader: str = "HeterophilousGraphDataset", metric: str = "accuracy"
) -> GraphSet:
    url = f"{_GITHUB}/yandex-research/heterophilous-graphs/main/data"
    return GraphSet(reader, key, *counts, (file,), url, metric)


# nodes, edges, features, classes: Tables 14 and 15; citeseer has 4,552 edges, the paper prints 4,522
SETS = {
    "cora": _planetoid("cora", 2708, 5278, 1433, 7),
    "citeseer": _planetoid("citeseer", 3327, 4552, 3703, 6),
    "pubmed": _planetoid("pubmed", 19717, 44324, 500, 3),
    "wikics": GraphSet(
        *("WikiCS", "", 11701, 216123, 300, 10, ("data.json",)),
        f"{_GITHUB}/pmernyei/wiki-cs-dataset/master/dataset",
    ),
    "coauthor-cs": _npz("Coauthor", "CS", "ms_academic_cs.npz", 18333, 81894, 6805, 15),
    "coauthor-physics": _npz("Coauthor", "Physics", "ms_academic_phy.npz", 34493, 247962, 8415, 5),
    "amazon-computer": _npz(
        "Amazon", "Computers", "amazon_electronics_computers.npz", 13752, 245861, 767, 10
    ),
    "amazon-photo": _npz("Amazon", "Photo", "amazon_electronics_photo.npz", 7650, 119081, 745, 8),
    "amazon-ratings": _heterophilous("amazon_ratings", "amazon_ratings.npz", 24492, 93050, 300, 5),
    "squirrel": _heterophilous("", "squirrel_filtered.npz", 2223, 46998, 2089, 5, reader="Filtered"),
    "chameleon": _heterophilous("", "chameleon_filtered.npz", 890, 8854, 2325, 5, reader="Filtered"),
    "minesweeper": _heterophilous("minesweeper", "minesweeper.npz", 10000, 39402, 7, 2, metric="roc_auc"),
    "roman-empire": _heterophilous("roman_empire", "roman_empire.npz", 22662, 32927, 300, 18),
}
_FOLDERS = {"Planetoid": "{key}/raw", "Coauthor": "{key}/raw", "Amazon": "{key}/raw", "WikiCS": "raw"}
_MASK_KEYS = {"train": "train", "valid": "val", "test": "test"}
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_SPLITS = f"{_GITHUB}/LUOyk1999/tunedGNN/main/medium_graph/data"


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


def read(name: str, root: Path) -> RawGraph:
    """Read the data set `name` from root/<name>/raw without writing there.

    Raises:
        DataError: a file is missing, damaged or of another data set, or PyTorch Geometric is not installed.
    """
    facts, raw = SETS[name], root / name / "raw"
    cure = f"python scripts/prepare_graphs.py {name} --to DIR fetches it, then data.root=DIR/graphs"
    if missing := [file for file in facts.files if not (raw / file).is_file()]:
        raise DataError(f"{name}: {raw / missing[0]} is missing; set HAM_DATA or data.root, or {cure}")
    try:
        graph = _read_filtered(raw / facts.files[0]) if facts.reader == "Filtered" else _read_pyg(facts, raw)
    except (*_DAMAGED, IndexError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"{name}: {raw} cannot be read ({one_line(error)}); {cure}") from error
    actual = (len(graph.labels), graph.edges.shape[1] // 2, graph.features.shape[1])
    expected = (facts.nodes, facts.edges, facts.features)
    if actual != expected:
        raise DataError(f"{name}: {raw} has (nodes, edges, features) {actual}, not {expected}; {cure}")
    return graph


def _read_pyg(facts: GraphSet, raw: Path) -> RawGraph:
    """Read with PyTorch Geometric through a temporary symlink, because it writes beside its raw files."""
    datasets = _import_pyg()
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(temporary, _FOLDERS.get(facts.reader, "{key}/raw").format(key=facts.key))
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(raw.resolve(), target_is_directory=True)
        arguments = (temporary,) if facts.reader == "WikiCS" else (temporary, facts.key)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = getattr(datasets, facts.reader)(*arguments)[0]
    parts = {"train": "train_mask", "valid": "val_mask", "test": "test_mask"}
    masks = {part: data[key].reshape(len(data.y), -1) for part, key in parts.items() if key in data}
    if facts.reader == "WikiCS":  # as in the paper's code base, early stopping nodes count as validation
        masks["valid"] = masks["valid"] | data.stopping_mask
    return _normalized(data.x, data.y, data.edge_index, masks)


def _read_filtered(path: Path) -> RawGraph:
    """Squirrel and chameleon without duplicate nodes, which leak test labels (Platonov et al., 2023)."""
    import numpy as np

    with np.load(path) as file:
        content = {key: torch.from_numpy(file[key]) for key in file.files}
    masks = {part: content[f"{key}_masks"].bool().t() for part, key in _MASK_KEYS.items()}
    return _normalized(content["node_features"], content["node_labels"], content["edges"].t(), masks)


def _normalized(features: Tensor, labels: Tensor, edges: Tensor, masks: dict[str, Tensor]) -> RawGraph:
    """Each edge once per direction, without self-loops, sorted by target."""
    count = len(labels)
    edges = edges[:, edges[0] != edges[1]].long()
    keys = torch.cat([edges[1] * count + edges[0], edges[0] * count + edges[1]]).unique()
    masks = {part: mask.bool() for part, mask in masks.items()}
    return RawGraph(
        features.float(), labels.long().flatten(), torch.stack([keys % count, keys // count]), masks
    )


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
        DataError: the file is missing or damaged.
    """
    import numpy as np

    path = root / "splits" / f"{name}_split.npz"
    try:
        with np.load(path) as file:
            return {part: torch.from_numpy(file[part]).long() for part in _MASK_KEYS}
    except FileNotFoundError as error:
        raise DataError(
            f"{name}: {path} is missing; python scripts/prepare_graphs.py {name} --to DIR fetches it"
        ) from error
    except _DAMAGED as error:
        raise DataError(f"{name}: {path} cannot be read ({one_line(error)}); download it again") from error


def sources(name: str) -> dict[str, str]:
    """Path below the root -> URL, for every file that `name` needs."""
    facts = SETS[name]
    urls = {f"{name}/raw/{file}": f"{facts.url}/{file}" for file in facts.files}
    if facts.reader in ("Amazon", "Coauthor"):
        urls[f"splits/{name}_split.npz"] = f"{_SPLITS}/{name}_split.npz"
    return urls


def fetch(name: str, root: Path) -> list[Path]:
    """Download the missing files of `name` and return their paths; each file is replaced atomically.

    Raises:
        DataError: a file cannot be downloaded.
    """
    downloaded = []
    for location, url in sources(name).items():
        path = root / location
        if path.exists():
            continue
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            urllib.request.urlretrieve(url, part)
            part.replace(path)
        except (OSError, ValueError) as error:
            part.unlink(missing_ok=True)
            raise DataError(f"cannot download {url}: {one_line(error)}; save the file as {path}") from error
        downloaded.append(path)
    return downloaded
