"""Node classification: a graph, its labels and its splits, as the paper's code base prepares them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .base import Data, DataError
from .graph_files import SETS, RawGraph, fixed_split, read

PARTS = ("train", "valid", "test")


class Split(StrEnum):
    """per_class: 20 random training nodes a class, 500 validation, 1000 test, the same in every run.

    fixed: tunedGNN's 60/20/20. official: those of the files, split i for seed i. public: Planetoid's own.
    """

    per_class = "per_class"
    fixed = "fixed"
    official = "official"
    public = "public"


@dataclass
class NodeTask:
    """What a run trains on.

    Args:
        name: of the set.
        metric: accuracy or roc_auc.
        features: float32 [nodes, channels].
        labels: int64 [nodes].
        edges: int64 [2, edges], sources and targets: both directions and one loop a node.
        nodes: int64 node numbers by part: train, valid, test.
    """

    name: str
    metric: str
    features: Tensor
    labels: Tensor
    edges: Tensor
    nodes: dict[str, Tensor]


@dataclass
class Graph(Data):
    """One of the 13 sets; `num_classes` 0 stands for the set's own.

    Args:
        name: of the set.
        root: folder of <name>/raw; "": $HAM_DATA/graphs.
        split: which nodes are for what.
        split_seed: of a split drawn at random; the paper's code base draws one for all runs.
    """

    name: str = ""
    root: str = ""
    split: Split = Split.official
    split_seed: int = 123

    def __post_init__(self) -> None:
        """Raise ValueError on an unknown set and on a split that a set does not have."""
        if self.name not in SETS:
            raise ValueError(f"data.name={self.name!r} is no graph: choose one of {', '.join(SETS)}")
        reader = SETS[self.name].reader
        have = {"Planetoid": (Split.per_class, Split.public), "Amazon": (Split.per_class, Split.fixed)}
        have["Coauthor"] = have["Amazon"]
        choices = have.get(reader, (Split.per_class, Split.official))
        if self.split not in choices:
            raise ValueError(
                f"data.split={self.split} does not exist for {self.name}: choose {' or '.join(choices)}"
            )
        self.num_classes = SETS[self.name].classes

    def load(
        self, *, batch_size: int = 1, seed: int = 0, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> NodeTask:
        """What a run with seed 0 gets; `task` has those of the others."""
        return self.task(0, device)

    def task(self, run_seed: int, device: torch.device) -> NodeTask:
        """Graph and split of the run with this seed."""
        root = Path(self.root or Path(os.environ.get("HAM_DATA", "."), "graphs"))
        known, graph = SETS[self.name], _read(self.name, root)
        nodes = self._nodes(graph, root, run_seed)
        features = graph.features
        if known.normalize:
            features = features / features.sum(dim=1, keepdim=True).clamp(min=1)
        loops = torch.arange(len(features)).expand(2, -1)
        edges = torch.cat([graph.edges, loops], dim=1)
        whole = (features, graph.labels, edges)
        return NodeTask(
            self.name,
            known.metric,
            *(t.to(device) for t in whole),
            {part: nodes[part].to(device) for part in PARTS},
        )

    def _nodes(self, graph: RawGraph, root: Path, run_seed: int) -> dict[str, Tensor]:
        if self.split is Split.per_class:
            return per_class(graph.labels, self.split_seed)
        if self.split is Split.fixed:
            return fixed_split(self.name, root)
        if not graph.masks:
            raise DataError(f"{self.name}: its files hold no splits")
        column = run_seed % graph.masks["train"].shape[1]
        tests = graph.masks["test"]  # wikics has one for all splits
        return {
            part: (tests[:, column % tests.shape[1]] if part == "test" else graph.masks[part][:, column])
            .nonzero()
            .flatten()
            for part in PARTS
        }


def per_class(
    labels: Tensor, seed: int, *, train: int = 20, valid: int = 500, test: int = 1000
) -> dict[str, Tensor]:
    """A random split with `train` nodes of each class, drawn as the paper's code base draws it.

    Class by class a permutation, whose first nodes train; then one of all others. With one generator this is
    the code base's split of the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, others = [], []
    for number in labels.unique():
        members = (labels == number).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[:train])
        others.append(members[train:])
    rest = torch.cat(others)
    rest = rest[torch.randperm(len(rest), generator=generator)]
    return {"train": torch.cat(chosen), "valid": rest[:valid], "test": rest[valid : valid + test]}


@lru_cache(maxsize=2)
def _read(name: str, root: Path) -> RawGraph:
    """Many runs in one process read a set once."""
    return read(name, root)
