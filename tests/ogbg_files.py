"""Small sets in the format of OGB's raw files for graph classification."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ham.data import OGBG, GraphSet
from ham.data.ogbg import files as ogbg_files
from ham.data.ogbg.sets import SETS, OGBGSet

GRAPHS = 24
NAMES = ("get item", "set item", "set value", "is open", "add all items to list now", "null")


def write_ogbg(folder: Path, name: str, *, graphs: int = GRAPHS, seed: int = 0) -> OGBGSet:
    """Write a valid small set into folder/<name with underscores>, and return its facts.

    Half of the graphs are for training, a quarter each for validation and test; labels depend on the
    features, and binary tasks have both labels in each part. Graph 0 of molecules is a single node.

    Args:
        folder: the folder of all sets.
        name: of the set.
        graphs: number of graphs, at least 16.
        seed: of the random numbers.
    """
    rng, facts = np.random.default_rng(seed), SETS[name]
    target = folder / facts.folders[0]
    pieces = [_draw(rng, facts, i, i % len(NAMES)) for i in range(graphs)]
    files = {
        "num-node-list": [[len(nodes)] for nodes, _, _ in pieces],
        "num-edge-list": [[len(edges)] for _, edges, _ in pieces],
        "edge": [edge for _, edges, _ in pieces for edge in edges],
        "graph-label": [_label(facts, i) for i in range(graphs)],
    }
    nodes = np.concatenate([nodes for nodes, _, _ in pieces])
    if facts.kind == "tokens":
        files["node-feat"] = nodes[:, :2]
        keys = ("node_depth", "node_dfs_order", "node_is_attributed")
        files |= {key: nodes[:, [column]] for column, key in enumerate(keys, start=2)}
    else:
        files["edge-feat"] = [row for _, _, rows in pieces for row in rows]
        files |= {} if facts.kind == "classes" else {"node-feat": nodes}
    for key, rows in files.items():
        write_table(target / "raw" / f"{key}.csv.gz", rows)
    blocks = np.arange(graphs) // len(NAMES) % 4  # each block has each kind of label
    parts = {"train": blocks < 2, "valid": blocks == 2, "test": blocks == 3}
    for part, members in parts.items():
        rows = rng.permutation(np.flatnonzero(members))[:, None]
        write_table(target / "split" / facts.split / f"{part}.csv.gz", rows)
    return replace(facts, graphs=graphs, parts={part: int(rows.sum()) for part, rows in parts.items()})


def use_ogbg(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, **options: int) -> OGBGSet:
    """`write_ogbg`, and let the code expect the numbers of graphs of the small set."""
    facts = write_ogbg(folder, name, **options)
    monkeypatch.setitem(ogbg_files.SETS, name, facts)
    return facts


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file without header, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)


def read_table(path: Path) -> list[list[str]]:
    """Its cells, read without pandas."""
    with gzip.open(path, "rt") as file:
        return [line.rstrip("\n").split(",") for line in file]


def edit(path: Path, change: Callable[[list[list]], object]) -> None:
    """Change the rows of a table, in place."""
    rows: list[list] = read_table(path)
    change(rows)
    write_table(path, rows)


def load(folder: Path, name: str, **options: int) -> tuple[GraphSet, list[str]]:
    """The set, read or from its cache, and the lines that are printed."""
    lines: list[str] = []
    return OGBG(name=name, root=str(folder), **options).load_graphs(log=lines.append), lines


def assert_equal(first: GraphSet, second: GraphSet) -> None:
    """Bit for bit; nan is equal to nan."""
    for field in fields(GraphSet):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        elif field.name == "parts":
            assert {part: rows.tolist() for part, rows in one.items()} == {
                part: rows.tolist() for part, rows in other.items()
            }
        else:
            assert one == other


def _draw(
    rng: np.random.Generator, facts: OGBGSet, i: int, kind: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, edges [edges, 2] of a tree with some cycles, and features of the edges."""
    count = 1 if i == 0 and facts.kind == "binary" else int(rng.integers(4, 9))
    parents = np.array([rng.integers(0, node) for node in range(1, count)], dtype=int)
    edges = np.stack([parents, np.arange(1, count)], axis=1)
    if facts.kind == "tokens":
        depth = np.zeros(count, dtype=int)
        for node, parent in enumerate(parents, start=1):
            depth[node] = depth[parent] + 1
        types = np.full(count, kind)
        nodes = [types, rng.integers(0, 50, count), depth, np.arange(count), rng.integers(0, 2, count)]
        return np.stack(nodes, axis=1), edges, np.empty((len(edges), 0))
    if count > 3:
        edges = np.concatenate([edges, [[count - 1, 0]]])
    if facts.kind == "classes":
        features = (rng.random((len(edges), 7)) + kind).round(3)
        return np.zeros((count, 1), dtype=int), edges, features
    nodes = rng.integers(0, [min(size, 4) for size in facts.node_sizes], (count, facts.node_features))
    nodes[:, 0] = 10 * kind + rng.integers(0, 2, count)
    return nodes, edges, rng.integers(0, facts.edge_sizes, (len(edges), facts.edge_features))


def _label(facts: OGBGSet, i: int) -> list[object]:
    kind = i % len(NAMES)
    if facts.kind == "tokens":
        return [NAMES[kind]]
    if facts.kind == "classes":
        return [kind]
    tasks = range(facts.outputs)
    return ["" if task % 3 and (i + task) % 7 == 0 else (kind + task) % 2 for task in tasks]
