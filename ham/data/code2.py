"""ogbg-code2: clipped graphs, additional edges, and names of functions as words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

WORDS, POSITIONS, MAX_DEPTH = 5000, 5, 20
UNKNOWN, END = WORDS, WORDS + 1
"""Tokens of a word outside of the vocabulary, and of the end of a name."""

MAX_NODES = 1000
"""Of a graph, see `clip`."""

NODE_FILES = ["node_is_attributed", "node_dfs_order", "node_depth"]


def clip(graph: dict[str, Any]) -> dict[str, Any]:
    """The first 1,000 nodes of a graph in OGB's format and the edges among them.

    GraphGPS (Rampasek et al. 2022, arXiv 2205.12454) and GNNPlus clip the graphs of all parts, before
    `augment`. The nodes are in depth-first order.

    Args:
        graph: node_feat [nodes, 2], edge_index [2, edges], and the three `NODE_FILES` [nodes, 1].

    Returns:
        the same, and num_nodes; smaller graphs unchanged.

    Raises:
        ValueError: an edge ends outside a graph that is clipped.
    """
    edges, count = graph["edge_index"], len(graph["node_feat"])
    if count <= MAX_NODES:
        return graph
    if ((edges < 0) | (edges >= count)).any():
        raise ValueError("an edge ends outside its graph")
    nodes = {key: graph[key][:MAX_NODES] for key in ("node_feat", *NODE_FILES)}
    return graph | nodes | {"edge_index": edges[:, (edges < MAX_NODES).all(axis=0)], "num_nodes": MAX_NODES}


def augment(graph: dict[str, Any]) -> dict[str, Any]:
    """The features of a graph in OGB's format, with the edges of OGB's example for the set.

    Edges are those of the syntax tree, their inverses, those from each attributed node to the next one in
    depth-first order, and the inverses of those. Edge features: whether an edge connects successive
    attributed nodes (1) or is of the tree (0), and whether it is an inverse (1).

    Args:
        graph: node_feat [nodes, 2], edge_index [2, edges], and the three `NODE_FILES` [nodes, 1].

    Returns:
        node_feat [nodes, 3]: type, attribute, and depth of at most 20; edge_index; edge_feat [edges, 2].
    """
    tree = graph["edge_index"]
    attributed = np.flatnonzero(graph["node_is_attributed"][:, 0] == 1)
    attributed = attributed[np.argsort(graph["node_dfs_order"][attributed, 0], kind="stable")]
    following = np.stack([attributed[:-1], attributed[1:]])
    pieces = [(tree, (0, 0)), (tree[::-1], (0, 1)), (following, (1, 0)), (following[::-1], (1, 1))]
    depth = np.minimum(graph["node_depth"], MAX_DEPTH)
    return {
        "node_feat": np.concatenate([graph["node_feat"], depth], axis=1),
        "edge_index": np.concatenate([edges for edges, _ in pieces], axis=1),
        "edge_feat": np.concatenate([np.tile(value, (edges.shape[1], 1)) for edges, value in pieces]),
    }


def build_vocabulary(names: Iterable[Sequence[str]]) -> list[str]:
    """The 5,000 most frequent words, then "__UNK__" and "__EOS__".

    Of equally frequent words the one that occurs first comes first. Where there are fewer words, empty
    strings fill the list, so that the last two have the same tokens in every set.
    """
    counts = Counter(word for name in names for word in name)
    words = [word for word, _ in counts.most_common(WORDS)]  # a stable sort
    return [*words, *[""] * (WORDS - len(words)), "__UNK__", "__EOS__"]


def encode_labels(cells: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    """Names of functions as tokens.

    Args:
        cells: one name per graph, its words separated by blanks.
        train: numbers of the graphs that give the vocabulary.

    Returns:
        labels, int64 [graphs, 5]; vocabulary; words, one string per graph.
    """
    names = [str(cell).split(" ") for cell in cells]
    vocabulary = build_vocabulary(names[i] for i in train)
    tokens = {word: token for token, word in enumerate(vocabulary) if word}
    labels = np.full((len(names), POSITIONS), END, dtype=np.int64)
    for row, name in zip(labels, names, strict=True):
        row[: len(name)] = [tokens.get(word, UNKNOWN) for word in name[:POSITIONS]]
    return {"labels": labels, "vocabulary": vocabulary, "words": tuple(map(" ".join, names))}


def decode(tokens: Iterable[Sequence[int]], vocabulary: Sequence[str]) -> list[list[str]]:
    """Words up to the first "__EOS__" of each row."""
    rows = []
    for row in tokens:
        row = list(row)
        rows.append([vocabulary[token] for token in row[: row.index(END) if END in row else None]])
    return rows
