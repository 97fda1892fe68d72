"""ogbg-code2: clipped graphs, additional edges, and names as words."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("ogb") is None:  # not importorskip: `import ogb` asks the network for a newer version
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)

from ogbg_files import edit, load, use_ogbg

from ham.data import DataError, code2

CODE = "ogbg-code2"


def test_code2_gets_edges_between_successive_attributed_nodes() -> None:
    """0 is the parent of 1 and 2, and 1 of 3 and 4; the attributed nodes 3, 4, 2 follow in this order."""
    graph = {
        "node_feat": np.array([[7, 1], [7, 2], [7, 3], [7, 4], [7, 5]]),
        "edge_index": np.array([[0, 0, 1, 1], [1, 2, 3, 4]]),
        "node_depth": np.array([[0], [1], [1], [20], [21]]),
        "node_dfs_order": np.array([[0], [1], [4], [2], [3]]),
        "node_is_attributed": np.array([[0], [0], [1], [1], [1]]),
    }
    more = code2.augment(graph)
    assert more["node_feat"].tolist() == [[7, 1, 0], [7, 2, 1], [7, 3, 1], [7, 4, 20], [7, 5, 20]]
    edges = list(zip(*more["edge_index"].tolist(), map(tuple, more["edge_feat"].tolist()), strict=True))
    tree = [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert edges == [
        *((a, b, (0, 0)) for a, b in tree),
        *((b, a, (0, 1)) for a, b in tree),
        *((3, 4, (1, 0)), (4, 2, (1, 0))),
        *((4, 3, (1, 1)), (2, 4, (1, 1))),
    ]


@pytest.mark.parametrize("attributed", [[0, 0], [0, 1]])
def test_code2_needs_two_attributed_nodes_for_an_edge_between_them(attributed: list[int]) -> None:
    column = np.array(attributed)[:, None]
    graph = {"node_feat": np.zeros((2, 2), int), "edge_index": np.array([[0], [1]])}
    more = code2.augment(graph | dict.fromkeys(code2.NODE_FILES, column))
    assert more["edge_index"].tolist() == [[0, 1], [1, 0]]


def test_the_vocabulary_has_the_most_frequent_training_words_and_ties_keep_their_order() -> None:
    names = [["b", "a"], ["c", "a"], ["d"], ["c", "b", "a"]]
    vocabulary = code2.build_vocabulary(names)
    assert vocabulary[:4] == ["a", "b", "c", "d"]
    assert (len(vocabulary), vocabulary[-2:]) == (5002, ["__UNK__", "__EOS__"])
    many = [[f"w{i}"] * (2 if i == 6000 else 1) for i in range(6001)]
    assert code2.build_vocabulary(many) == ["w6000", *(f"w{i}" for i in range(4999)), "__UNK__", "__EOS__"]


def test_words_outside_of_the_training_graphs_are_unknown() -> None:
    content = code2.encode_labels(np.array(["get a", "get b"], dtype=object), np.array([0]))
    unknown, end = 5000, 5001
    assert content["labels"].tolist() == [[0, 1, end, end, end], [0, unknown, end, end, end]]


def path_graph(count: int) -> dict[str, np.ndarray]:
    """Node i is the parent of i + 1; all are attributed, in depth-first order."""
    nodes = np.arange(count)
    return {
        "node_feat": np.stack([nodes % 98, nodes], axis=1),
        "edge_index": np.stack([nodes[:-1], nodes[1:]]),
        "node_depth": nodes[:, None],
        "node_dfs_order": nodes[:, None],
        "node_is_attributed": np.ones((count, 1), dtype=int),
    }


def test_a_graph_of_1000_nodes_stays_and_a_larger_one_loses_the_nodes_after_them() -> None:
    largest = path_graph(1000)
    assert code2.clip(largest) is largest
    clipped = code2.clip(path_graph(1003))
    assert clipped.pop("num_nodes") == 1000
    for key, value in largest.items():
        np.testing.assert_array_equal(clipped[key], value, err_msg=key)


def test_edges_between_attributed_nodes_are_those_of_the_clipped_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With room for 3 nodes; 0 is the parent of 1 and 3, 1 of 2, and 3 of 4.

    Nodes 0, 2, 3 and 4 are attributed, and 3 comes before 2 in depth-first order: 0 and 2 succeed each other
    only because 3 is not there any more.
    """
    monkeypatch.setattr(code2, "MAX_NODES", 3)
    graph = {
        "node_feat": np.array([[7, 1], [7, 2], [7, 3], [7, 4], [7, 5]]),
        "edge_index": np.array([[0, 0, 1, 3], [1, 3, 2, 4]]),
        "node_depth": np.array([[0], [1], [2], [1], [2]]),
        "node_dfs_order": np.array([[0], [3], [4], [1], [2]]),
        "node_is_attributed": np.array([[1], [0], [1], [1], [1]]),
    }
    more = code2.augment(code2.clip(graph))
    assert more["node_feat"].tolist() == [[7, 1, 0], [7, 2, 1], [7, 3, 2]]
    edges = list(zip(*more["edge_index"].tolist(), map(tuple, more["edge_feat"].tolist()), strict=True))
    assert edges == [
        *((0, 1, (0, 0)), (1, 2, (0, 0))),
        *((1, 0, (0, 1)), (2, 1, (0, 1))),
        *((0, 2, (1, 0)), (2, 0, (1, 1))),
    ]


def test_graphs_are_clipped_in_all_parts_and_keep_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = use_ogbg(monkeypatch, tmp_path / "all", CODE)
    every, _ = load(tmp_path / "all", CODE)
    monkeypatch.setattr(code2, "MAX_NODES", 5)
    assert use_ogbg(monkeypatch, tmp_path / "clipped", CODE) == facts
    graphs, _ = load(tmp_path / "clipped", CODE)
    sizes, clipped = every.node_starts.diff(), graphs.node_starts.diff()
    assert clipped.tolist() == sizes.clamp(max=5).tolist()
    assert all((sizes[rows] > 5).any() for rows in graphs.parts.values())
    assert graphs.words == every.words and graphs.labels.equal(every.labels)


@pytest.mark.parametrize("end", [-1, 99])
def test_an_edge_that_leaves_a_clipped_graph_is_an_error(
    end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_ogbg(monkeypatch, tmp_path, CODE)
    monkeypatch.setattr(code2, "MAX_NODES", 3)
    edit(tmp_path / "ogbg_code2/raw/edge.csv.gz", lambda rows: rows[0].__setitem__(0, end))
    with pytest.raises(DataError) as caught:
        load(tmp_path, CODE)
    assert "(an edge ends outside its graph)" in str(caught.value)


@pytest.mark.parametrize("end", [-1, 1003])
def test_a_large_graph_with_an_edge_out_of_range_is_not_clipped(end: int) -> None:
    graph = path_graph(1003)
    graph["edge_index"][1, 7] = end
    with pytest.raises(ValueError, match=r"^an edge ends outside its graph$"):
        code2.clip(graph)


def test_tokens_become_the_words_before_the_end() -> None:
    vocabulary = [f"w{number}" for number in range(5000)] + ["__UNK__", "__EOS__"]
    rows = [[4, 5000, 5001, 3, 3], [5001, 1, 1, 1, 1], [1, 2, 3, 4, 4999]]
    assert code2.decode(rows, vocabulary) == [["w4", "__UNK__"], [], ["w1", "w2", "w3", "w4", "w4999"]]


def test_names_longer_than_five_words_are_cut_off_in_labels_alone() -> None:
    content = code2.encode_labels(np.array(["a b c d e f", "f"], dtype=object), np.array([0, 1]))
    assert content["vocabulary"][:6] == ["f", "a", "b", "c", "d", "e"]
    assert content["labels"].tolist() == [[1, 2, 3, 4, 5], [0, 5001, 5001, 5001, 5001]]
    assert content["words"] == ("a b c d e f", "f")
