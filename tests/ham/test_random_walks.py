"""Return probabilities of random walks against dense powers of the transition matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ham.data import random_walks
from ham.data.random_walks import return_probabilities

Edges = list[tuple[int, int]]


def both_ways(edges: Edges) -> Edges:
    return [direction for a, b in edges for direction in ((a, b), (b, a))]


def walks(graphs: list[tuple[int, Edges]], steps: int) -> list[Tensor]:
    """One tensor [nodes, steps] per graph of (number of nodes, edges)."""
    sizes = [size for size, _ in graphs]
    node_starts = torch.tensor([0, *sizes]).cumsum(0)
    edge_starts = torch.tensor([0, *(len(edges) for _, edges in graphs)]).cumsum(0)
    ends = torch.tensor([edge for _, edges in graphs for edge in edges], dtype=torch.int64).view(-1, 2)
    result = return_probabilities(node_starts, edge_starts, ends[:, 0], ends[:, 1], steps)
    assert result.dtype is torch.float32
    return list(result.split(sizes))


def reference(size: int, edges: Edges, steps: int) -> Tensor:
    """float64; one matrix power per step."""
    adjacency = torch.zeros(size, size, dtype=torch.float64)
    for source, target in edges:
        adjacency[source, target] += 1
    degrees = adjacency.sum(1)
    inverse = torch.where(degrees > 0, 1 / degrees, 0)
    step = torch.diag(inverse) @ adjacency
    powers = [torch.linalg.matrix_power(step, k).diagonal() for k in range(1, steps + 1)]
    return torch.stack(powers, dim=1) if powers else torch.zeros(size, 0)


def test_a_triangle_and_a_path_by_hand() -> None:
    triangle = both_ways([(0, 1), (1, 2), (2, 0)])
    path = both_ways([(0, 1), (1, 2)])
    first, second = walks([(3, triangle), (3, path)], 4)
    # back on a triangle: never after 1 step, by one of two neighbors after 2; a(k + 1) = (1 - a(k)) / 2
    torch.testing.assert_close(first, torch.tensor([[0, 1 / 2, 1 / 4, 3 / 8]]).expand(3, 4))
    # the middle of the path is left and reached in turn; an end is one of the two choices of the middle
    torch.testing.assert_close(second, torch.tensor([[0, 0.5, 0, 0.5], [0, 1, 0, 1], [0, 0.5, 0, 0.5]]))


def test_nodes_without_edges_and_repeated_edges() -> None:
    lonely, doubled = walks([(2, []), (3, [(0, 1), (0, 1), (0, 2), (1, 0), (2, 0)])], 2)
    assert lonely.tolist() == [[0, 0], [0, 0]]
    torch.testing.assert_close(doubled, torch.tensor([[0, 1], [0, 2 / 3], [0, 1 / 3]]))


@st.composite
def drawn_graphs(draw: st.DrawFn) -> list[tuple[int, Edges]]:
    graphs = []
    for _ in range(draw(st.integers(1, 6))):
        size = draw(st.integers(1, 7))
        node = st.integers(0, size - 1)
        graphs.append((size, draw(st.lists(st.tuples(node, node), max_size=14))))
    return graphs


@settings(max_examples=60)
@given(drawn_graphs(), st.integers(0, 9), st.sampled_from([1, 40, 2**21]))
def test_every_graph_equals_its_own_dense_powers(
    graphs: list[tuple[int, Edges]], steps: int, elements: int
) -> None:
    """Directed edges, self-loops and repeated edges included, whatever graphs are computed together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_walks, "_ELEMENTS", elements)
        results = walks(graphs, steps)
    for result, (size, edges) in zip(results, graphs, strict=True):
        expected = reference(size, edges, steps)
        torch.testing.assert_close(result.double(), expected.double(), rtol=0, atol=1e-6)


def test_graphs_without_nodes_have_no_rows() -> None:
    first, empty, last = walks([(1, [(0, 0)]), (0, []), (2, both_ways([(0, 1)]))], 2)
    assert (first.tolist(), empty.shape, last.tolist()) == ([[1, 1]], (0, 2), [[0, 1], [0, 1]])
    (nothing,) = walks([(0, [])], 3)
    assert nothing.shape == (0, 3)


def test_a_large_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_walks, "MAX_NODES", 4)
    walks([(4, [])], 1)
    with pytest.raises(ValueError, match="a graph has 5 nodes, random walks are computed for at most 4"):
        walks([(5, [])], 1)


def test_a_graph_of_more_than_4096_nodes_is_refused() -> None:
    with pytest.raises(
        ValueError, match="a graph has 4097 nodes, random walks are computed for at most 4096"
    ):
        walks([(4097, [])], 1)


def test_progress_counts_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bar:
        counts: list[int] = []

        def __init__(self, *arguments: object, total: int) -> None:
            assert arguments == (None, "random walks", "graphs") and total == 3

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int) -> None:
            self.counts.append(count)

    monkeypatch.setattr(random_walks, "progress", Bar)
    walks([(2, [(0, 1)]), (3, []), (2, [])], 2)
    assert sorted(Bar.counts) == [1, 2]
