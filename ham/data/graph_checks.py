"""Checks of what was read of a graph: a wrong file must not become a wrong number."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ham.files import open_binary


def check_graph(features: Tensor, labels: Tensor, edges: Tensor, classes: int) -> None:
    """Raise ValueError for a feature that is not finite, or a label or a node number out of range.

    Args:
        features: [nodes, channels].
        labels: [nodes].
        edges: [2, edges], node numbers.
        classes: number of classes.
    """
    if len(features) != len(labels):
        raise ValueError(f"it has features of {len(features)} nodes, and labels of {len(labels)}")
    if not bool(features.isfinite().all()):
        node = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"a feature of node {node} is nan or inf")
    check_numbers("the label", labels, classes)
    check_numbers("the end of an edge,", edges, len(labels))


def check_numbers(what: str, values: Tensor, count: int) -> None:
    """Raise ValueError unless all values are integers from 0 to count - 1."""
    is_valid = (values >= 0) & (values < count) & (values == values.long())
    if not bool(is_valid.all()):
        raise ValueError(f"{what} {values[~is_valid][0].item()} is not an integer from 0 to {count - 1}")


def check_split(parts: Mapping[str, Tensor], nodes: int, *, is_complete: bool) -> None:
    """Raise ValueError for an empty part, a node in two parts or twice in one, or a node that is missing.

    Args:
        parts: node numbers by part: train, valid, test.
        nodes: number of nodes in the graph.
        is_complete: True if every node must be in a part.
    """
    for part, members in parts.items():
        if not len(members):
            raise ValueError(f"its split has no {part} nodes")
        check_numbers(f"the {part} node", members, nodes)
    counts = torch.cat([members.long() for members in parts.values()]).bincount(minlength=nodes)
    if int(counts.max()) > 1:
        raise ValueError(f"its split has node {int(counts.argmax())} more than once")
    if is_complete and not bool(counts.all()):
        raise ValueError(f"its split lacks node {int(counts.argmin())}")


def check_zip(path: Path) -> None:
    """Read a .npz or .zip file to its end. Raises ValueError where a checksum in it is wrong."""
    with open_binary(path) as file, zipfile.ZipFile(file) as archive:
        if (member := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {member} in {path.name} is wrong")
