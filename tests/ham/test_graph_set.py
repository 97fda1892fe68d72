"""Many graphs in flat tensors, joined by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ham.data import graph_set
from ham.data.graph_set import GraphSet, from_tensors, join_graphs, to_tensors


def graph(nodes: int, edges: list[tuple[int, int]], features: list[list[float]]) -> dict[str, Any]:
    """Graph whose node i has the features i and 10 * i."""
    width = len(features[0]) if features else 2
    return {
        "num_nodes": nodes,
        "node_feat": np.stack([np.arange(nodes), 10 * np.arange(nodes)], axis=1),
        "edge_index": np.array(edges, dtype=np.int64).reshape(-1, 2).T,
        "edge_feat": np.array(features).reshape(-1, width),
    }


def test_edges_are_sorted_by_target_then_source_and_equal_ones_keep_their_order() -> None:
    graphs = [
        graph(3, [(2, 0), (0, 2), (1, 2), (0, 1), (0, 2)], [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5]]),
        graph(1, [], []),
        graph(2, [(1, 0)], [[6, 6]]),
    ]
    joined = {key: tensor.tolist() for key, tensor in join_graphs(graphs, "set").items()}
    assert joined == {
        "node_starts": [0, 3, 4, 6],
        "edge_starts": [0, 5, 5, 6],
        "nodes": [[0, 0], [1, 10], [2, 20], [0, 0], [0, 0], [1, 10]],
        "edges": [[1, 1], [4, 4], [2, 2], [5, 5], [3, 3], [6, 6]],
        "sources": [2, 0, 0, 0, 1, 1],
        "targets": [0, 1, 2, 2, 2, 0],
    }
    assert graphs == [], "two copies of a large set need much memory"


def test_graphs_are_forgotten_one_by_one_while_they_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, kept = [graph(2, [(0, 1)], [[1, 1]]) for _ in range(3)], []

    def progress(items: range, name: str, unit: str) -> Any:
        assert (name, unit) == ("set: join", "graphs")
        for item in items:
            yield item
            kept.append([bool(one) for one in graphs])

    monkeypatch.setattr(graph_set, "progress", progress)
    join_graphs(graphs, "set")
    assert kept == [[False, True, True], [False, False, True], [False, False, False]]


def test_a_set_may_have_one_graph() -> None:
    joined = join_graphs([graph(2, [(1, 0)], [[0.5, 2]])], "set")
    assert (joined["node_starts"].tolist(), joined["edges"].tolist()) == ([0, 2], [[0.5, 2]])


@pytest.mark.parametrize(
    ("features", "dtype"), [([[1, 2]], torch.int64), ([[0.5, 2]], torch.float32), ([], torch.float32)]
)
def test_the_type_of_features_is_that_of_a_graph_with_edges(features: list, dtype: torch.dtype) -> None:
    graphs = [graph(2, [], []), graph(2, [(0, 1)] * len(features), features)]
    joined = join_graphs(graphs, "set")
    assert joined["edges"].dtype == dtype and joined["edges"].shape == (len(features), 2)
    assert joined["nodes"].dtype == joined["sources"].dtype == joined["edge_starts"].dtype == torch.int64


def test_a_set_equals_what_its_tensors_give_without_its_walks() -> None:
    joined = join_graphs([graph(2, [(0, 1)], [[1, 1]]), graph(3, [], [])], "set")
    parts = {part: torch.tensor([number]) for number, part in enumerate(("train", "valid", "test"))}
    texts = {"vocabulary": ["ä", "__UNK__"], "words": ("a b", "")}
    labels = torch.tensor([[0.0], [torch.nan]])
    original = GraphSet(name="set", labels=labels, walks=torch.ones(5, 4), parts=parts, **texts, **joined)
    again = from_tensors(to_tensors(original))
    assert len(again) == len(original) == 2
    assert (again.name, again.vocabulary, again.words) == ("set", ["ä", "__UNK__"], ("a b", ""))
    assert again.walks.shape == (5, 0) and again.parts == parts
    torch.testing.assert_close(again.labels, labels, equal_nan=True, rtol=0, atol=0)
    for key, tensor in joined.items():
        assert torch.equal(getattr(again, key), tensor)
