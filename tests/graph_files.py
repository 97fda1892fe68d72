"""Small graphs in the formats of the raw files of the 13 data sets."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from ham.data import graph_files

NODES, FEATURES, CLASSES = 60, 12, 3
PLANETOID = 600  # nodes; its reader uses the 500 nodes after the training nodes for validation


def draw_graph(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that correlate with the labels, labels, and undirected edges, mostly within a class."""
    rng, facts = np.random.default_rng(0), graph_files.SETS[name]
    count = PLANETOID if facts.reader == "Planetoid" else NODES
    labels = np.arange(count) % min(facts.classes, CLASSES)
    features = (rng.random((count, FEATURES)) < 0.15).astype(np.float32)
    features[np.arange(count), labels] = rng.random(count) < 0.7
    probability = np.where(labels[:, None] == labels, 0.12, 0.02)
    return features, labels, np.argwhere(np.tril(rng.random((count, count)) < probability, -1))


def masks(name: str) -> dict[str, np.ndarray]:
    """Random splits by part, bool [splits, NODES]; those of wikics have the same test nodes."""
    rng = np.random.default_rng(1)
    order = np.stack([rng.permutation(NODES) for _ in range(20 if name == "wikics" else 10)])
    if name == "wikics":
        order = np.stack([np.append(rng.permutation(order[0, :45]), order[0, 45:]) for _ in order])
    bounds = {"train": (0, 24), "stopping": (24, 30), "val": (30, 45), "test": (45, NODES)}
    masks_by_part = {}
    for part, (begin, end) in bounds.items():
        masks_by_part[part] = np.zeros((len(order), NODES), dtype=bool)
        for row, nodes in zip(masks_by_part[part], order, strict=True):
            row[nodes[begin:end]] = True
    return masks_by_part


def write(name: str, root: Path) -> None:
    """Write the small graph as the raw files of the data set `name` below root."""
    facts = graph_files.SETS[name]
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    features, labels, edges = draw_graph(name)
    if facts.reader == "Planetoid":
        _planetoid(folder, facts.key, features, labels, edges)
    elif facts.reader in ("Amazon", "Coauthor"):
        adjacency = scipy.sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(NODES, NODES)).tocsr()
        matrices = {"adj": adjacency, "attr": scipy.sparse.csr_matrix(features)}
        content = {
            f"{key}_{part}": getattr(matrix, part)
            for key, matrix in matrices.items()
            for part in ("data", "indices", "indptr", "shape")
        }
        np.savez(folder / facts.files[0], labels=labels, **content)
        split = {"train": np.arange(30), "valid": np.arange(30, 45), "test": np.arange(45, NODES)}
        (root / "splits").mkdir(exist_ok=True)
        np.savez(root / "splits" / f"{name}_split.npz", **split)
    elif facts.reader == "WikiCS":
        _wikics(folder, features, labels, edges)
    else:
        parts = {f"{part}_masks": mask for part, mask in masks(name).items()}
        parts["val_masks"] |= parts.pop("stopping_masks")  # each node is in a part
        np.savez(folder / facts.files[0], node_features=features, node_labels=labels, edges=edges, **parts)


def shrink_sets(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Set the facts of the data sets to those of the small graphs of `write`."""
    monkeypatch.setattr(graph_files, "SHA256", {})
    for name in names:
        facts = graph_files.SETS[name]
        _, labels, edges = draw_graph(name)
        sizes = dict(nodes=len(labels), edges=len(edges), features=FEATURES, classes=int(labels.max()) + 1)
        monkeypatch.setitem(graph_files.SETS, name, replace(facts, **sizes))


def _planetoid(folder: Path, key: str, features: np.ndarray, labels: np.ndarray, edges: np.ndarray) -> None:
    one_hot = np.eye(CLASSES)[labels]
    graph: dict[int, list[int]] = {node: [] for node in range(PLANETOID)}
    for i, j in edges.tolist():
        graph[i].append(j)
        graph[j].append(i)
    sparse = scipy.sparse.csr_matrix(features)
    train, rest = 15, 580  # the last 20 are test nodes, as test.index says
    parts = {
        **{"x": sparse[:train], "y": one_hot[:train], "allx": sparse[:rest], "ally": one_hot[:rest]},
        **{"tx": sparse[rest:], "ty": one_hot[rest:], "graph": graph},
    }
    for part, content in parts.items():
        (folder / f"ind.{key}.{part}").write_bytes(pickle.dumps(content))
    (folder / f"ind.{key}.test.index").write_text("\n".join(map(str, range(rest, PLANETOID))) + "\n")


def _wikics(folder: Path, features: np.ndarray, labels: np.ndarray, edges: np.ndarray) -> None:
    links: list[list[int]] = [[] for _ in range(NODES)]
    for i, j in edges.tolist():
        links[i].append(j)
    parts = masks("wikics")
    content = {
        **{"features": features.tolist(), "labels": labels.tolist(), "links": links},
        **{"train_masks": parts["train"].tolist(), "val_masks": parts["val"].tolist()},
        **{"stopping_masks": parts["stopping"].tolist(), "test_mask": parts["test"][0].tolist()},
    }
    (folder / "data.json").write_text(json.dumps(content))
