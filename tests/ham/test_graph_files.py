"""Raw graphs: edges in a normal form, splits by their number, and what is read of one folder alone."""

from __future__ import annotations

import sys
from pathlib import Path

import graph_files as small_files
import numpy as np
import pytest
import torch

from ham.data import DataError, graph_files
from ham.data.damaged import DamagedError
from ham.data.graph_files import SETS, RawGraph, fixed_split, read

CURE = "python scripts/prepare_graphs.py {} --to DIR fetches it, then data.root=DIR/graphs"


def raw(**masks: list[list[int]]) -> RawGraph:
    """A graph of four nodes; a mask has a row per node and a column per split."""
    given = {part: torch.tensor(rows, dtype=torch.bool) for part, rows in masks.items()}
    return RawGraph(torch.zeros(4, 1), torch.zeros(4), torch.zeros(2, 0), given)


def test_splits_are_counted_around_and_a_single_mask_is_that_of_all() -> None:
    graph = raw(
        train=[[1, 0], [0, 1], [0, 0], [0, 0]],
        valid=[[0, 1], [1, 0], [0, 0], [0, 0]],
        test=[[0], [0], [1], [1]],
    )
    assert graph.splits == 2 and raw().splits == 0
    for number in (1, 3):
        nodes = {part: members.tolist() for part, members in graph.split(number).items()}
        assert nodes == {"train": [1], "valid": [0], "test": [2, 3]}
    assert graph.split(0)["train"].tolist() == graph.split(4)["train"].tolist() == [0]


def test_edges_are_both_directions_once_sorted_by_target_without_loops() -> None:
    facts = SETS["chameleon"]
    edges = torch.tensor(
        [[3, 0, 2, 0, 1, 2], [0, 3, 2, 3, 2, 1]]
    )  # 0-3 in both directions and twice, 1-2 too
    labels = torch.tensor([[0], [1], [2], [4]], dtype=torch.int32)
    graph = graph_files._normalize(
        facts, torch.eye(4, dtype=torch.float64), labels, edges.int(), {"train": torch.tensor([1, 0, 0, 1])}
    )
    assert graph.edges.tolist() == [[3, 2, 1, 0], [0, 1, 2, 3]]
    types = (graph.edges.dtype, graph.labels.dtype, graph.features.dtype, graph.masks["train"].dtype)
    assert types == (torch.int64, torch.int64, torch.float32, torch.bool)
    assert graph.labels.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("name", ["chameleon", "cora", "amazon-photo"])
def test_a_missing_file_is_no_damaged_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(name, tmp_path)
    path = tmp_path / name / "raw" / SETS[name].files[0]
    assert str(caught.value) == (
        f"{name}: {path} is missing; set HAM_DATA or data.root, or {CURE.format(name)}"
    )
    assert not isinstance(caught.value, DamagedError)


def test_damaged_files_are_those_that_a_good_copy_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_geometric", reason="needs pip install -e '.[gnn]'")
    small_files.write("cora", tmp_path)
    small_files.shrink_sets(monkeypatch, "cora")
    graph = read("cora", tmp_path)
    monkeypatch.setitem(
        graph_files.SHA256, "ind.cora.y", "0" * 64
    )  # of the fourth file; the others have none here
    with pytest.raises(DamagedError) as caught:
        read("cora", tmp_path)
    path = tmp_path / "cora" / "raw" / "ind.cora.y"
    assert caught.value.paths == (path,) and caught.value.cure == CURE.format("cora")
    assert caught.value.problem == (
        f"cora: {path} is damaged (its SHA-256 is not that of the published file)"
    )
    monkeypatch.undo()
    monkeypatch.setattr(graph_files, "SHA256", {})
    with pytest.raises(DamagedError) as caught:
        read("cora", tmp_path)
    actual = (600, graph.edges.shape[1] // 2, 12)
    assert f"(it has (nodes, edges, features) {actual}, not (2708, 5278, 1433))" in caught.value.problem
    assert caught.value.paths == tuple(tmp_path / "cora" / "raw" / file for file in SETS["cora"].files)


def test_without_pytorch_geometric_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files.write("cora", tmp_path)
    small_files.shrink_sets(monkeypatch, "cora")
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(DataError) as caught:
        read("cora", tmp_path)
    assert str(caught.value) == "graphs need PyTorch Geometric: pip install -e '.[run,gnn]'"


def test_a_split_is_int64_and_has_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files.write("amazon-photo", tmp_path)
    small_files.shrink_sets(monkeypatch, "amazon-photo")
    split = fixed_split("amazon-photo", tmp_path)
    assert {part: (members.dtype, len(members)) for part, members in split.items()} == {
        **{"train": (torch.int64, 30), "valid": (torch.int64, 15), "test": (torch.int64, 15)}
    }
    path = tmp_path / "splits" / "amazon-photo_split.npz"
    np.savez(path, train=np.arange(60), valid=np.arange(1), test=np.arange(1))
    with pytest.raises(DamagedError) as caught:
        fixed_split("amazon-photo", tmp_path)
    assert caught.value.paths == (path,)
    path.unlink()
    with pytest.raises(DataError, match=r"^amazon-photo: .*amazon-photo_split\.npz is missing; set HAM_DATA"):
        fixed_split("amazon-photo", tmp_path)


def test_lines_of_test_nodes_are_different_numbers(tmp_path: Path) -> None:
    facts = SETS["cora"]
    for lines in ("1 1", "1 -2", "1 x", "1 2.5"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        small = graph_files.GraphSet("Planetoid", "cora", 1, 1, 1, 1, ("ind.cora.test.index",), facts.url)
        (tmp_path / "raw" / "ind.cora.test.index").write_text(lines)
        with pytest.raises(ValueError, match=r"test\.index is not a list of different node numbers$"):
            graph_files._copy_pickles(small, tmp_path / "raw", tmp_path / f"copy of {lines}")
