"""The 13 node classification sets: what they hold, their raw files, and how PyTorch Geometric reads them."""

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

import torch
from torch import Tensor

from .base import DataError

_GITHUB = "https://raw.githubusercontent.com"
_PLANETOID = tuple(["x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"])


@dataclass(frozen=True)
class GraphSet:
    """One set.

    Args:
        reader: the class of PyTorch Geometric that reads it; Filtered: our own, PyG has none.
        key: its name there.
        nodes: how many there are.
        edges: undirected, without loops.
        features: per node.
        classes: of the labels.
        files: raw files.
        url: the folder that they are downloaded from.
        metric: accuracy, or roc_auc of class 1.
        normalize: rows of the features are scaled to sum 1, as in the paper's code base.
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


def _heterophilous(key: str, file: str, *counts: int, reader: str = "HeterophilousGraphDataset", **more: str):
    url = f"{_GITHUB}/yandex-research/heterophilous-graphs/main/data"
    return GraphSet(reader, key, *counts, (file,), url, **more)


# nodes, edges, features, classes: Tables 14 and 15; citeseer has 4,552 edges, not the 4,522 that are printed
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
_SPLITS = f"{_GITHUB}/LUOyk1999/tunedGNN/main/medium_graph/data"


@dataclass(frozen=True)
class RawGraph:
    """A set as its files hold it: undirected, without loops.

    Args:
        features: float32 [nodes, channels].
        labels: int64 [nodes].
        edges: int64 [2, 2 x undirected edges], sources and targets, each pair in both directions.
        masks: bool [nodes, splits] by part (train, valid, test) where the files hold splits.
    """

    features: Tensor
    labels: Tensor
    edges: Tensor
    masks: dict[str, Tensor]


def read(name: str, root: Path) -> RawGraph:
    """The set `name` of root/<name>/raw; nothing is written there.

    Raises:
        DataError: a file is missing, damaged or of another set, or PyTorch Geometric is not installed.
    """
    known, raw = SETS[name], root / name / "raw"
    cure = f"python scripts/prepare_graphs.py {name} --to DIR fetches it, then data.root=DIR/graphs"
    if missing := [file for file in known.files if not (raw / file).is_file()]:
        raise DataError(f"{name}: there is no {raw / missing[0]}; set HAM_DATA or data.root, or {cure}")
    try:
        graph = _filtered(raw / known.files[0]) if known.reader == "Filtered" else _through_pyg(known, raw)
    except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name}: {raw} cannot be read ({_line(error)}); {cure}") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise DataError(f"{name}: {raw} cannot be read ({_line(error)}); {cure}") from error
    found = (len(graph.labels), graph.edges.shape[1] // 2, graph.features.shape[1])
    if found != (known.nodes, known.edges, known.features):
        expected = (known.nodes, known.edges, known.features)
        raise DataError(f"{name}: {raw} has (nodes, edges, features) {found}, not {expected}; {cure}")
    return graph


def _through_pyg(known: GraphSet, raw: Path) -> RawGraph:
    """PyG writes what it has processed beside its raw files: it gets a folder of links to ours."""
    datasets = _pyg()
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(place, _FOLDERS.get(known.reader, "{key}/raw").format(key=known.key))
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(raw.resolve(), target_is_directory=True)
        arguments = (place,) if known.reader == "WikiCS" else (place, known.key)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = getattr(datasets, known.reader)(*arguments)[0]
    parts = {"train": "train_mask", "valid": "val_mask", "test": "test_mask"}
    masks = {part: data[key].reshape(len(data.y), -1) for part, key in parts.items() if key in data}
    if known.reader == "WikiCS":  # the paper's code base: its early stopping nodes count as validation
        masks["valid"] = masks["valid"] | data.stopping_mask
    return _tidy(data.x, data.y, data.edge_index, masks)


def _filtered(path: Path) -> RawGraph:
    """Squirrel and chameleon without the duplicates that leak (Platonov et al., 2023)."""
    import numpy as np

    with np.load(path) as file:
        content = {key: torch.from_numpy(file[key]) for key in file.files}
    masks = {part: content[f"{key}_masks"].bool().t() for part, key in _MASKS.items()}
    return _tidy(content["node_features"], content["node_labels"], content["edges"].t(), masks)


_MASKS = {"train": "train", "valid": "val", "test": "test"}


def _tidy(features: Tensor, labels: Tensor, edges: Tensor, masks: dict[str, Tensor]) -> RawGraph:
    """Both directions of every edge once, no loops, sorted by target."""
    count = len(labels)
    edges = edges[:, edges[0] != edges[1]].long()
    keys = torch.cat([edges[1] * count + edges[0], edges[0] * count + edges[1]]).unique()
    masks = {part: mask.bool() for part, mask in masks.items()}
    return RawGraph(
        features.float(), labels.long().flatten(), torch.stack([keys % count, keys // count]), masks
    )


def _pyg():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch_geometric import datasets
    except ImportError as error:
        raise DataError("graphs need PyTorch Geometric: pip install -e '.[run,gnn]'") from error
    return datasets


def fixed_split(name: str, root: Path) -> dict[str, Tensor]:
    """TunedGNN's fixed 60/20/20 split: node numbers by part, from root/splits/<name>_split.npz."""
    import numpy as np

    path = root / "splits" / f"{name}_split.npz"
    try:
        with np.load(path) as file:
            return {part: torch.from_numpy(file[part]).long() for part in _MASKS}
    except FileNotFoundError as error:
        raise DataError(
            f"{name}: there is no {path}; python scripts/prepare_graphs.py {name} --to DIR fetches it"
        ) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name}: {path} cannot be read ({_line(error)}); fetch it anew") from error


def sources(name: str) -> dict[str, str]:
    """Path below the root -> URL of everything that `name` needs."""
    known = SETS[name]
    found = {f"{name}/raw/{file}": f"{known.url}/{file}" for file in known.files}
    if known.reader in ("Amazon", "Coauthor"):
        found[f"splits/{name}_split.npz"] = f"{_SPLITS}/{name}_split.npz"
    return found


def fetch(name: str, root: Path) -> list[Path]:
    """Download what is missing of `name`; a file appears whole or not at all. Raises DataError."""
    fresh = []
    for place, url in sources(name).items():
        path = root / place
        if path.exists():
            continue
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            urllib.request.urlretrieve(url, part)
            part.replace(path)
        except (OSError, ValueError) as error:
            part.unlink(missing_ok=True)
            raise DataError(f"cannot fetch {url}: {_line(error)}; put the file to {path} yourself") from error
        fresh.append(path)
    return fresh


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
