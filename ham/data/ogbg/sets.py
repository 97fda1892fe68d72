"""Facts of OGB's four sets for graph classification."""

from __future__ import annotations

from dataclasses import dataclass

from .. import code2
from ..graph_set import PARTS

_URL = "http://snap.stanford.edu/ogb/data/graphproppred"
_ATOMS, _BONDS = (119, 5, 12, 12, 10, 6, 6, 2, 2), (5, 6, 2)  # ogb.utils.features
SMILES = "molhiv/raw/hiv.csv"
"""Molecules of ogbg-molhiv as SMILES, which replace OGB's files."""


@dataclass(frozen=True)
class OGBGSet:
    """Facts of one set.

    Args:
        folders: names of its folder, the preferred one first; the last one is that in OGB's archive.
        url: URL of OGB's archive.
        graphs: number of graphs.
        parts: number of graphs by part: train, valid, test.
        split: folder of the split, below split/.
        kind: binary (one logit per task), classes, or tokens (5 words out of `outputs`).
        outputs: number of outputs of the model: tasks, classes, or tokens per position.
        metric: metric of OGB's evaluator: rocauc, ap, acc or F1.
        node_sizes: number of categories of each column of `GraphSet.nodes`.
        edge_sizes: number of categories of each column of `GraphSet.edges`; empty for numbers.
        edge_features: number of columns of `GraphSet.edges`.
        positions: predictions per graph; a model has positions x outputs values per graph.
        walk_steps: number of steps of the random-walk encodings in the paper's recipe; 0: no encodings.
    """

    folders: tuple[str, ...]
    url: str
    graphs: int
    parts: dict[str, int]
    split: str
    kind: str
    outputs: int
    metric: str
    node_sizes: tuple[int, ...]
    edge_sizes: tuple[int, ...]
    edge_features: int
    positions: int = 1
    walk_steps: int = 0

    @property
    def node_features(self) -> int:
        """Number of columns of `GraphSet.nodes`."""
        return len(self.node_sizes)

    @property
    def files(self) -> list[str]:
        """The files that are read, relative to the folder of the set."""
        names = ["edge", "num-node-list", "num-edge-list", "graph-label"]
        names += [] if self.kind == "classes" else ["node-feat"]
        names += code2.NODE_FILES if self.kind == "tokens" else ["edge-feat"]
        parts = [f"split/{self.split}/{part}.csv.gz" for part in PARTS]
        return [f"raw/{name}.csv.gz" for name in names] + parts


def _parts(*counts: int) -> dict[str, int]:
    return dict(zip(PARTS, counts, strict=True))


def _folders(name: str, archive: str) -> tuple[str, ...]:
    return (name.replace("-", "_"), name, f"{name.replace('-', '_')}_pyg", archive)


# counts: Hu et al. 2020 (arXiv 2005.00687) and ogb's master.csv; categories of code2: its mapping files
SETS = {
    "ogbg-ppa": OGBGSet(
        *(_folders("ogbg-ppa", "ogbg_ppi_medium"), f"{_URL}/ogbg_ppi_medium.zip"),
        *(158_100, _parts(78_200, 45_100, 34_800), "species"),
        *("classes", 37, "acc", (1,), (), 7),
    ),
    "ogbg-molpcba": OGBGSet(
        *(_folders("ogbg-molpcba", "pcba"), f"{_URL}/csv_mol_download/pcba.zip"),
        *(437_929, _parts(350_343, 43_793, 43_793), "scaffold"),
        *("binary", 128, "ap", _ATOMS, _BONDS, len(_BONDS)),
        walk_steps=16,
    ),
    "ogbg-molhiv": OGBGSet(
        *(_folders("ogbg-molhiv", "hiv"), f"{_URL}/csv_mol_download/hiv.zip"),
        *(41_127, _parts(32_901, 4_113, 4_113), "scaffold"),
        *("binary", 1, "rocauc", _ATOMS, _BONDS, len(_BONDS)),
        walk_steps=20,
    ),
    "ogbg-code2": OGBGSet(
        *(_folders("ogbg-code2", "code2"), f"{_URL}/code2.zip"),
        *(452_741, _parts(407_976, 22_817, 21_948), "project"),
        *("tokens", code2.WORDS + 2, "F1", (98, 10_030, code2.MAX_DEPTH + 1), (2, 2), 2),
        positions=code2.POSITIONS,
    ),
}
