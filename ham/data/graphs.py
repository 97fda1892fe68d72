"""Node classification: a graph, its labels and its splits, prepared as in the paper's code base."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .base import Data, register
from .graph_files import SETS, RawGraph, fixed_split, read

PARTS = ("train", "valid", "test")


class Split(StrEnum):
    """How nodes are split into train, valid and test.

    per_class: 20 random training nodes per class, 500 validation, 1000 test, the same in every run. fixed:
    tunedGNN's 60/20/20. official: the splits in the files, split i for seed i. public: Planetoid's own.
    """

    per_class = "per_class"
    fixed = "fixed"
    official = "official"
    public = "public"


_SPLITS = {  # by reader; the others have official splits
    "Planetoid": (Split.per_class, Split.public),
    "Amazon": (Split.per_class, Split.fixed),
    "Coauthor": (Split.per_class, Split.fixed),
}


@dataclass
class NodeData:
    """A graph with the split of one run.

    Args:
        name: name of the data set.
        metric: accuracy or roc_auc.
        features: float32 [nodes, channels].
        labels: int64 [nodes].
        edges: int64 [2, edges], sources and targets, in both directions, with one self-loop per node.
        nodes: int64 node indices by part: train, valid, test.
    """

    name: str
    metric: str
    features: Tensor
    labels: Tensor
    edges: Tensor
    nodes: dict[str, Tensor]


@register("graph")
@dataclass
class Graph(Data):
    """One of the 13 data sets; `num_classes` is that of the data set, whatever is given.

    Args:
        name: name of the data set.
        root: the folder that contains <name>/raw; empty: $HAM_DATA/graphs.
        split: see `Split`.
        split_seed: seed of the random split `per_class`; the paper's code base uses one for all runs.
    """

    name: str = ""
    root: str = ""
    split: Split = Split.official
    split_seed: int = 123

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown data set or a split that it does not have."""
        if self.name not in SETS:
            raise ValueError(f"unknown graph data.name={self.name!r}: choose one of {', '.join(SETS)}")
        reader = SETS[self.name].reader
        choices = _SPLITS.get(reader, (Split.per_class, Split.official))
        if self.split not in choices:
            raise ValueError(
                f"data.split={self.split} does not exist for {self.name}: choose {' or '.join(choices)}"
            )
        self.num_classes = SETS[self.name].classes

    def load_graph(self, run_seed: int, device: torch.device) -> NodeData:
        """Read the graph and the split of the run with this seed.

        Raises:
            DataError: a file is missing, damaged or of another data set.
        """
        root = Path(self.root or Path(os.environ.get("HAM_DATA", "."), "graphs"))
        facts, graph = SETS[self.name], _read(self.name, root)
        nodes = self._nodes(graph, root, run_seed)
        features = graph.features
        if facts.normalize:
            features = features / features.sum(dim=1, keepdim=True).clamp(min=1)
        loops = torch.arange(len(features)).expand(2, -1)
        edges = torch.cat([graph.edges, loops], dim=1)
        return NodeData(
            name=self.name,
            metric=facts.metric,
            features=features.to(device),
            labels=graph.labels.to(device),
            edges=edges.to(device),
            nodes={part: nodes[part].to(device) for part in PARTS},
        )

    def _nodes(self, graph: RawGraph, root: Path, run_seed: int) -> dict[str, Tensor]:
        if self.split is Split.per_class:
            return per_class(graph.labels, self.split_seed)
        if self.split is Split.fixed:
            return fixed_split(self.name, root)
        return graph.split(run_seed)


def per_class(
    labels: Tensor, seed: int, *, train: int = 20, valid: int = 500, test: int = 1000
) -> dict[str, Tensor]:
    """A random split with `train` training nodes per class, equal to that of the paper's code base.

    Per class, the first nodes of a permutation are training nodes; the others are permuted together and give
    the validation and test nodes. One generator makes all draws.

    Returns:
        node indices, int64, by part: train, valid, test.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, others = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[:train])
        others.append(members[train:])
    remaining = torch.cat(others)
    remaining = remaining[torch.randperm(len(remaining), generator=generator)]
    return {"train": torch.cat(chosen), "valid": remaining[:valid], "test": remaining[valid : valid + test]}


@lru_cache(maxsize=2)
def _read(name: str, root: Path) -> RawGraph:
    """Cached: many runs in one process read a data set once."""
    return read(name, root)
