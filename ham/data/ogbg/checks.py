"""Checks of what was read of one of OGB's sets: a wrong file must not become a wrong number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .sets import OGBGSet


def check_graphs(facts: OGBGSet, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for an empty graph, an edge that leaves its graph, or a wrong feature."""
    sizes = tensors["node_starts"].diff()
    if int(sizes.min()) < 1:
        raise ValueError(f"graph {int(sizes.argmin())} has no nodes")
    limits = sizes.repeat_interleave(tensors["edge_starts"].diff())
    for key in ("sources", "targets"):
        ends = tensors[key]
        if bool(((ends < 0) | (ends >= limits)).any()):
            raise ValueError("an edge ends outside its graph")
    _check_columns("node", tensors["nodes"], facts.node_sizes, facts.node_features)
    _check_columns("edge", tensors["edges"], facts.edge_sizes, facts.edge_features)


def _check_columns(what: str, values: Tensor, sizes: tuple[int, ...], columns: int) -> None:
    if values.shape[1] != columns:
        raise ValueError(f"{what}s have {values.shape[1]} features, not {columns}")
    if not sizes:
        if not bool(values.isfinite().all()):
            raise ValueError(f"a feature of an {what} is not a finite number")
        return
    if values.is_floating_point():
        raise ValueError(f"features of {what}s are not integers")
    outside = ((values < 0) | (values >= torch.tensor(sizes))).any(dim=0)
    if bool(outside.any()):
        column = int(outside.nonzero()[0])
        raise ValueError(f"{what} feature {column} is outside of 0 to {sizes[column] - 1}")


def check_labels(facts: OGBGSet, labels: np.ndarray) -> None:
    """Raise ValueError for labels of another number, width or range."""
    columns = facts.outputs if facts.kind == "binary" else facts.positions
    if labels.shape != (facts.graphs, columns):
        raise ValueError(f"labels have the shape {labels.shape}, not {(facts.graphs, columns)}")
    if facts.kind == "binary":
        is_valid = (labels == 0) | (labels == 1)
        is_valid |= np.isnan(labels) & (facts.outputs > 1)  # a graph without any label is not in a set
    else:
        is_valid = (labels >= 0) & (labels < facts.outputs)
    if not is_valid.all():
        raise ValueError(f"{labels[~is_valid][0]} is not a label")


def check_parts(facts: OGBGSet, parts: Mapping[str, object]) -> dict[str, Tensor]:
    """The parts as int64. Raises ValueError unless they have the known sizes and each graph once in all."""
    tensors = {part: torch.from_numpy(to_integers(np.array(members))) for part, members in parts.items()}
    sizes = {part: len(members) for part, members in tensors.items()}
    if sizes != facts.parts:
        raise ValueError(f"its split has the sizes {list(sizes.values())}, not {list(facts.parts.values())}")
    if not torch.equal(torch.cat(list(tensors.values())).sort().values, torch.arange(facts.graphs)):
        raise ValueError("its split does not have each graph once")
    return tensors


def to_integers(values: np.ndarray) -> np.ndarray:
    """The values as int64. Raises ValueError where this changes one, or where one is not a number."""
    rounded = np.where(np.isfinite(values.astype(np.float64)), values, 0).astype(np.int64)
    if not np.array_equal(rounded, values):
        raise ValueError(f"{values[rounded != values][0]} is not an integer")
    return rounded
