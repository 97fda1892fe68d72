"""The checks of a graph accept the limits of each range, and name the first thing beyond."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from ham.data.graph_checks import check_graph, check_numbers, check_split, check_zip

NAN, INF = float("nan"), float("inf")


def test_numbers_from_0_to_the_last_one_are_valid() -> None:
    check_numbers("the label", torch.tensor([0, 2]), 3)
    check_numbers("the label", torch.tensor([0.0, 2.0]), 3)


@pytest.mark.parametrize("value", [-1, 3, 1.5, NAN])
def test_the_first_number_out_of_range_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^the label {value:.1f} is not an integer from 0 to 2$"):
        check_numbers("the label", torch.tensor([0.0, value, 7.0]), 3)


def test_a_graph_of_two_nodes_is_valid() -> None:
    check_graph(torch.tensor([[0.5], [-3.0]]), torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 1]]), 2)


@pytest.mark.parametrize(
    ("features", "labels", "edges", "message"),
    [
        ([[1.0]], [0, 1], [[0], [1]], "it has features of 1 nodes, and labels of 2"),
        ([[1.0, 1], [1, NAN], [INF, 1]], [0, 1, 1], [[0], [1]], "a feature of node 1 is nan or inf"),
        ([[1.0], [1]], [0, 2], [[0], [1]], "the label 2 is not an integer from 0 to 1"),
        ([[1.0], [1]], [0, 1], [[0], [2]], "the end of an edge, 2 is not an integer from 0 to 1"),
    ],
)
def test_what_is_wrong_with_a_graph_is_named(features: list, labels: list, edges: list, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_graph(torch.tensor(features), torch.tensor(labels), torch.tensor(edges), 2)
    assert str(caught.value) == message


def split(train: list[int], valid: list[int], test: list[int], *, is_complete: bool = True) -> None:
    parts = {"train": train, "valid": valid, "test": test}
    check_split({part: torch.tensor(nodes) for part, nodes in parts.items()}, 5, is_complete=is_complete)


def test_a_split_may_lack_nodes_where_it_need_not_be_complete() -> None:
    split([4, 1], [0], [3, 2])
    split([4], [0], [3], is_complete=False)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([0, 1], [], [2, 3, 4]), "its split has no valid nodes"),
        (([0, 1], [5], [2, 3, 4]), "the valid node 5 is not an integer from 0 to 4"),
        (([0, 1], [1], [2, 3, 4]), "its split has node 1 more than once"),
        (([0, 0, 1], [2], [3, 4]), "its split has node 0 more than once"),
        (([0, 1], [4], [2]), "its split lacks node 3"),
    ],
)
def test_what_is_wrong_with_a_split_is_named(parts: tuple, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        split(*parts)
    assert str(caught.value) == message


def test_an_archive_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first", b"a" * 50)
        archive.writestr("last", b"b" * 50)
    check_zip(path)
    path.write_bytes(path.read_bytes().replace(b"b" * 50, b"b" * 49 + b"c"))
    with pytest.raises(ValueError, match=r"^the checksum of last in set\.npz is wrong$"):
        check_zip(path)
