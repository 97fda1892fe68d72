"""Many graphs in flat tensors: the container of graph classification, and how single graphs are joined."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .progress import progress

PARTS = ("train", "valid", "test")
_TEXTS = "texts"


@dataclass(frozen=True)
class GraphSet:
    """Graphs, one after another. Graph i has the nodes node_starts[i]:node_starts[i + 1], and edges likewise.

    Args:
        name: name of the set, such as ogbg-molhiv.
        node_starts: int64 [graphs + 1].
        edge_starts: int64 [graphs + 1].
        nodes: int64 [nodes, columns], category numbers.
        sources: int64 [edges], number of the node within its graph. The edges of a graph are sorted by
            target, then by source; equal edges keep their order.
        targets: int64 [edges].
        edges: [edges, columns], int64 category numbers, or float32 for ogbg-ppa.
        labels: float32 [graphs, tasks] with nan for unknown (binary); int64 [graphs, 1] (classes); int64
            [graphs, 5], indices of `vocabulary` (tokens).
        walks: float32 [nodes, walk_steps], see `random_walks`.
        parts: int64 graph numbers by part: train, valid, test.
        vocabulary: vocabulary of ogbg-code2: 5,000 words, then "__UNK__" and "__EOS__"; else empty.
        words: the true words of each graph of ogbg-code2, separated by blanks; else empty.
    """

    name: str
    node_starts: Tensor
    edge_starts: Tensor
    nodes: Tensor
    sources: Tensor
    targets: Tensor
    edges: Tensor
    labels: Tensor
    walks: Tensor
    parts: dict[str, Tensor]
    vocabulary: list[str]
    words: tuple[str, ...]

    def __len__(self) -> int:
        """Number of graphs."""
        return len(self.node_starts) - 1


_TENSORS = tuple(
    field.name for field in fields(GraphSet) if field.name not in ("name", "parts", "vocabulary", "words")
)


def to_tensors(graphs: GraphSet) -> dict[str, Tensor]:
    """Everything but the walks as named tensors, as stored in a file; texts as the bytes of their JSON."""
    texts = json.dumps([graphs.name, graphs.vocabulary, graphs.words]).encode()
    tensors = {name: getattr(graphs, name).contiguous() for name in _TENSORS if name != "walks"}
    tensors |= {f"parts.{part}": graphs.parts[part].contiguous() for part in PARTS}
    return tensors | {_TEXTS: torch.frombuffer(bytearray(texts), dtype=torch.uint8)}


def from_tensors(tensors: Mapping[str, Tensor]) -> GraphSet:
    """The inverse of `to_tensors`, with 0 walk steps. Raises KeyError or ValueError for other tensors."""
    name, vocabulary, words = json.loads(bytes(tensors[_TEXTS].numpy()))
    values = {key: tensors[key] for key in _TENSORS if key != "walks"}
    parts = {part: tensors[f"parts.{part}"] for part in PARTS}
    walks = torch.zeros(len(values["nodes"]), 0)
    return GraphSet(name=name, parts=parts, vocabulary=vocabulary, words=tuple(words), walks=walks, **values)


def join_graphs(graphs: list[dict[str, Any]], name: str) -> dict[str, Tensor]:
    """Join graphs in OGB's format, and sort the edges of each by target, then source.

    Args:
        graphs: each with num_nodes, edge_index [2, edges], node_feat [num_nodes, columns] and edge_feat
            [edges, columns]. The list is emptied on the way: two copies of a large set need much memory.
        name: name of the set, for the progress bar.

    Returns:
        node_starts, edge_starts, nodes, sources, targets and edges of `GraphSet`.
    """
    node_starts = _starts([len(graph["node_feat"]) for graph in graphs])
    edge_starts = _starts([graph["edge_index"].shape[1] for graph in graphs])
    nodes = _empty(node_starts[-1], [graph["node_feat"] for graph in graphs])
    edges = _empty(edge_starts[-1], [graph["edge_feat"] for graph in graphs])
    sources, targets = (np.empty(edge_starts[-1], dtype=np.int64) for _ in range(2))
    for i in progress(range(len(graphs)), f"{name}: join", "graphs"):
        graph, graphs[i] = graphs[i], {}
        own = slice(edge_starts[i], edge_starts[i + 1])
        order = np.lexsort(tuple(graph["edge_index"]))
        sources[own], targets[own] = graph["edge_index"][:, order]
        edges[own] = graph["edge_feat"][order]
        nodes[node_starts[i] : node_starts[i + 1]] = graph["node_feat"]
    graphs.clear()
    arrays = {"node_starts": node_starts, "edge_starts": edge_starts, "nodes": nodes, "edges": edges}
    arrays |= {"sources": sources, "targets": targets}
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def _empty(rows: int, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """An empty array for the rows of all arrays; graphs without rows may have another type."""
    model = next((array for array in arrays if len(array)), arrays[0])
    return np.empty((rows, model.shape[1]), dtype=np.int64 if model.dtype.kind in "iub" else np.float32)
