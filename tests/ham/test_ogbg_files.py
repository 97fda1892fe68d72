"""Missing, damaged and foreign files of OGB's sets."""

from __future__ import annotations

import gzip
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if find_spec("ogb") is None:  # not importorskip: `import ogb` asks the network for a newer version
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)

from ogbg_files import assert_equal, edit, load, use_ogbg, write_ogbg

from ham.data import DataError, code2
from ham.data.damaged import DamagedError
from ham.data.ogbg import cache as ogbg_cache
from ham.data.ogbg import checks
from ham.data.ogbg import files as ogbg_files
from ham.data.ogbg.download import is_there
from ham.data.ogbg.source import Source, find_source
from ham.models import gcn_plus, graph_encoders
from ham.run import config

HIV = "ogbg-molhiv"


def refusal(folder: Path, name: str) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, name)
    message = str(caught.value)
    assert "\n" not in message and "prepare_graphs.py" in message
    return message


def test_every_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ogbg_files.SETS:
        facts = use_ogbg(monkeypatch, tmp_path, name)
        for file in facts.files:
            path = tmp_path / facts.folders[0] / file
            path.rename(path.with_suffix(".away"))
            assert refusal(tmp_path, name).startswith(f"{name}: {path} is missing; python scripts")
            path.with_suffix(".away").rename(path)


def test_every_torn_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = use_ogbg(monkeypatch, tmp_path, HIV)
    for file in facts.files:
        path = tmp_path / facts.folders[0] / file
        content = path.read_bytes()
        for damaged in (content[:-9], b"<html>404</html>", content[:20] + b"\xff" * 9 + content[29:]):
            path.write_bytes(damaged)
            assert f"({path.name} is damaged: " in refusal(tmp_path, HIV), damaged
        path.write_bytes(content)
    load(tmp_path, HIV)


def test_a_missing_set_is_one_line_with_the_cure(tmp_path: Path) -> None:
    message = refusal(tmp_path, "ogbg-ppa")
    assert message == (
        f"ogbg-ppa: {tmp_path / 'ogbg_ppa' / 'raw'} is missing; set HAM_DATA or data.root, or python "
        "scripts/prepare_graphs.py ogbg-ppa --to DIR fetches it, then data.root=DIR/graphs"
    )


@pytest.mark.parametrize("package", ["ogb", "rdkit"])
def test_a_missing_package_is_one_line_with_the_cure(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == package:
            raise ogbg_cache.metadata.PackageNotFoundError(name)
        return "1"

    (tmp_path / "molhiv" / "raw").mkdir(parents=True)
    (tmp_path / "molhiv" / "raw" / "hiv.csv").write_text("smiles,HIV_active\nC,0\n")
    monkeypatch.setattr(ogbg_cache.metadata, "version", version)
    with pytest.raises(DataError) as caught:
        load(tmp_path, HIV)
    assert str(caught.value) == f"ogbg-molhiv needs {package}: pip install -e '.[run,ogb]'"


WRONG = {
    "a graph less": ("raw/graph-label", list.pop, "raw/graph-label.csv.gz has 23 rows, not 24"),
    "a node less": ("raw/node-feat", list.pop, "rows, but its graphs have"),
    "an edge less": ("raw/edge", list.pop, "raw/edge.csv.gz has"),
    "fewer edge features": ("raw/edge-feat", list.pop, "raw/edge-feat.csv.gz has"),
    "an edge to another graph": (
        "raw/edge",
        lambda rows: rows[0].__setitem__(0, 99),
        "an edge ends outside its graph",
    ),
    "an unknown atom": (
        "raw/node-feat",
        lambda rows: rows[1].__setitem__(0, 119),
        "node feature 0 is outside of 0 to 118",
    ),
    "a negative category": (
        "raw/edge-feat",
        lambda rows: rows[0].__setitem__(2, -1),
        "edge feature 2 is outside of 0 to 1",
    ),
    "another column": (
        "raw/node-feat",
        lambda rows: [row.append(0) for row in rows],
        "nodes have 10 features, not 9",
    ),
    "numbers for categories": (
        "raw/node-feat",
        lambda rows: rows[0].__setitem__(0, 1.5),
        "features of nodes are not integers",
    ),
    "a label 2": ("raw/graph-label", lambda rows: rows[3].__setitem__(0, 2), "2.0 is not a label"),
    "a graph without a label": (
        "raw/graph-label",
        lambda rows: rows[3].__setitem__(0, "nan"),
        "nan is not a label",
    ),
    "a text": ("raw/graph-label", lambda rows: rows[3].__setitem__(0, "yes"), "yes"),
    "two tasks": (
        "raw/graph-label",
        lambda rows: [row.append(0) for row in rows],
        "labels have the shape (24, 2), not (24, 1)",
    ),
    "a fraction": (
        "split/scaffold/test",
        lambda rows: rows[2].__setitem__(0, 3.5),
        "3.5 is not an integer",
    ),
    "an empty cell": (
        "split/scaffold/test",
        lambda rows: rows[2].__setitem__(0, "nan"),
        "nan is not an integer",
    ),
    "a smaller part": ("split/scaffold/test", list.pop, "its split has the sizes [12, 6, 5], not [12, 6, 6]"),
    "a graph in two parts": (
        "split/scaffold/test",
        lambda rows: rows[0].__setitem__(0, rows[1][0]),
        "its split does not have each graph once",
    ),
    "an empty graph": (
        "raw/num-node-list",
        lambda rows: (rows[1].__setitem__(0, int(rows[0][0]) + int(rows[1][0])), rows[0].__setitem__(0, 0)),
        "graph 0 has no nodes",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_contents_are_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = use_ogbg(monkeypatch, tmp_path, HIV)
    file, change, message = WRONG[case]
    edit(tmp_path / facts.folders[0] / f"{file}.csv.gz", change)
    assert message in refusal(tmp_path, HIV)


def test_a_last_line_without_its_end_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = use_ogbg(monkeypatch, tmp_path, HIV)
    fresh, _ = load(tmp_path, HIV)
    for file in facts.files:
        path = tmp_path / "ogbg_molhiv" / file
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).removesuffix(b"\n")))
    again, lines = load(tmp_path, HIV)
    assert len(lines) == 1
    assert_equal(again, fresh)


@pytest.mark.parametrize("label", [1.5, "nan", 37, -1])
def test_wrong_classes_are_one_line(label: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, "ogbg-ppa")
    edit(tmp_path / "ogbg_ppa/raw/graph-label.csv.gz", lambda rows: rows[3].__setitem__(0, label))
    assert f"{label} is not a" in refusal(tmp_path, "ogbg-ppa")


def test_the_files_of_another_set_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    write_ogbg(tmp_path / "other", "ogbg-molpcba")
    for path in (tmp_path / "other" / "ogbg_molpcba" / "raw").iterdir():
        path.rename(tmp_path / "ogbg_molhiv" / "raw" / path.name)
    assert "labels have the shape (24, 128), not (24, 1)" in refusal(tmp_path, HIV)


def test_a_small_set_is_refused_as_the_full_one(tmp_path: Path) -> None:
    write_ogbg(tmp_path, HIV)
    assert "raw/num-node-list.csv.gz has 24 rows, not 41127" in refusal(tmp_path, HIV)


@pytest.mark.parametrize("name", ["ogbg-ppa", "ogbg-molpcba", "ogbg-code2"])
def test_a_file_of_smiles_is_the_set_of_molhiv_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "molhiv" / "raw").mkdir(parents=True)
    (tmp_path / "molhiv" / "raw" / "hiv.csv").write_text("smiles,HIV_active\nC,0\n")
    assert find_source(HIV, tmp_path).is_smiles
    with pytest.raises(DataError, match=f"{name}: .* is missing"):
        find_source(name, tmp_path)


def test_a_missing_molhiv_is_not_read_as_smiles(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ogbg-molhiv: .*ogbg_molhiv.raw is missing"):
        find_source(HIV, tmp_path)


@pytest.mark.parametrize("folder", ["ogbg-molhiv", "ogbg_molhiv_pyg", "hiv"])
def test_other_names_of_the_folder_are_accepted(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    graphs, _ = load(tmp_path, HIV)
    (tmp_path / "ogbg_molhiv").rename(tmp_path / folder)
    assert_equal(load(tmp_path, HIV)[0], graphs)


def test_files_of_ogb_take_precedence_over_smiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    (tmp_path / "molhiv" / "raw").mkdir(parents=True)
    (tmp_path / "molhiv" / "raw" / "hiv.csv").write_text("smiles,HIV_active\nC,0\n")
    assert len(load(tmp_path, HIV)[0]) == 24


def test_the_encoders_of_the_networks_have_the_categories_of_the_sets() -> None:
    """ham.models does not import ham.data, so the numbers stand in both."""
    for name in ("ogbg-molhiv", "ogbg-molpcba"):
        assert ogbg_files.SETS[name].node_sizes == graph_encoders.ATOMS
        assert ogbg_files.SETS[name].edge_sizes == graph_encoders.BONDS
    assert ogbg_files.SETS["ogbg-code2"].node_sizes == graph_encoders.CODE_NODES
    assert ogbg_files.SETS["ogbg-code2"].edge_sizes == graph_encoders.CODE_EDGES
    assert ogbg_files.SETS["ogbg-code2"].positions == code2.POSITIONS == gcn_plus.POSITIONS


def test_the_walks_of_a_set_are_those_of_its_experiment() -> None:
    """scripts/prepare_graphs.py writes these; a run on several ranks needs them."""
    for name, facts in ogbg_files.SETS.items():
        data = config.load([f"+exp=graph/{name.replace('-', '_')}_ham"]).data
        assert (data.name, data.walk_steps) == (name, facts.walk_steps)


def tensors(**changes: object) -> dict[str, torch.Tensor]:
    """Two molecules of 2 and 1 nodes, with the bonds 0-1 of the first one."""
    values: dict[str, object] = {
        **{"node_starts": [0, 2, 3], "edge_starts": [0, 2, 2], "sources": [0, 1], "targets": [1, 0]},
        **{"nodes": [[118, 4, 11, 11, 9, 5, 5, 1, 1]] * 3, "edges": [[4, 5, 1]] * 2},
    }
    return {key: torch.tensor(value) for key, value in (values | changes).items()}


def test_the_largest_category_of_each_feature_is_accepted() -> None:
    checks.check_graphs(ogbg_files.SETS[HIV], tensors())
    checks.check_graphs(ogbg_files.SETS[HIV], tensors(nodes=[[0] * 9] * 3, edges=[[0] * 3] * 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_starts": [0, 0, 3]}, "graph 0 has no nodes"),
        ({"node_starts": [0, 2, 2, 3], "edge_starts": [0, 2, 2, 2]}, "graph 1 has no nodes"),
        ({"sources": [0, 2]}, "an edge ends outside its graph"),
        ({"sources": [-1, 0]}, "an edge ends outside its graph"),
        ({"targets": [2, 0]}, "an edge ends outside its graph"),
        ({"nodes": [[0] * 8] * 3}, "nodes have 8 features, not 9"),
        ({"edges": [[0] * 4] * 2}, "edges have 4 features, not 3"),
        ({"edges": [[0.0] * 3] * 2}, "features of edges are not integers"),
        ({"nodes": [[0, 5, 0, 12, 0, 0, 0, 0, 0]] * 3}, "node feature 1 is outside of 0 to 4"),
        ({"nodes": [[0, 0, 0, 0, 0, 0, 0, 0, 2]] * 3}, "node feature 8 is outside of 0 to 1"),
        ({"nodes": [[-1, 0, 0, 0, 0, 0, 0, 0, 0]] * 3}, "node feature 0 is outside of 0 to 118"),
        ({"edges": [[0, 0, 0], [0, 6, 0]]}, "edge feature 1 is outside of 0 to 5"),
    ],
)
def test_what_is_wrong_with_molecules_is_named(changes: dict[str, list], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        checks.check_graphs(ogbg_files.SETS[HIV], tensors(**changes))
    assert str(caught.value) == message


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_of_edges_are_finite(number: float) -> None:
    edges = [[0.5, -3, 0, 0, 0, 0, 1e9]] * 2
    checks.check_graphs(ogbg_files.SETS["ogbg-ppa"], tensors(nodes=[[0]] * 3, edges=edges))
    with pytest.raises(ValueError, match=r"^a feature of an edge is not a finite number$"):
        checks.check_graphs(
            ogbg_files.SETS["ogbg-ppa"], tensors(nodes=[[0]] * 3, edges=[edges[0], [number] * 7])
        )


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (HIV, [[0.0], [1.0]], [[0.0], [np.nan]]),
        ("ogbg-molpcba", [[0.0] * 128, [1.0] * 127 + [np.nan]], [[0.5] * 128, [1.0] * 128]),
        ("ogbg-ppa", [[0], [36]], [[0], [37]]),
        ("ogbg-code2", [[0, 1, 2, 3, 5001], [5000] * 5], [[0] * 5, [0, 0, 0, 0, 5002]]),
    ],
)
def test_labels_are_in_the_range_of_their_kind(name: str, good: list, bad: list) -> None:
    facts = replace(ogbg_files.SETS[name], graphs=2)
    checks.check_labels(facts, np.array(good))
    with pytest.raises(ValueError, match=r"is not a label$"):
        checks.check_labels(facts, np.array(bad))
    with pytest.raises(ValueError, match=r"^labels have the shape "):
        checks.check_labels(facts, np.array(good)[:1])
    with pytest.raises(ValueError, match=r"^labels have the shape "):
        checks.check_labels(facts, np.array(good)[:, :-1])


def test_parts_become_int64_and_have_each_graph_once() -> None:
    facts = replace(ogbg_files.SETS[HIV], graphs=4, parts={"train": 2, "valid": 1, "test": 1})
    parts = checks.check_parts(facts, {"train": [3.0, 0.0], "valid": [1], "test": [2]})
    assert {part: rows.tolist() for part, rows in parts.items()} == {
        "train": [3, 0],
        "valid": [1],
        "test": [2],
    }
    assert {rows.dtype for rows in parts.values()} == {torch.int64}
    for train in ([3, 1], [4, 0], [0, -1]):
        with pytest.raises(ValueError, match=r"^its split does not have each graph once$"):
            checks.check_parts(facts, {"train": train, "valid": [1], "test": [2]})


@pytest.mark.parametrize(("value", "text"), [(1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_the_first_number_that_is_not_whole_is_named(value: float, text: str) -> None:
    assert checks.to_integers(np.array([3.0, -1.0])).tolist() == [3, -1]
    with pytest.raises(ValueError, match=f"^{text} is not an integer$"):
        checks.to_integers(np.array([3.0, value, 0.25]))


def test_rows_of_nodes_and_edges_are_counted_apart() -> None:
    rows = {"node-feat": 5, "node_depth": 5, "edge": 7, "edge-feat": 7, "graph-label": 2}
    ogbg_files._check_rows(rows, 5, 7)
    for key in ("node-feat", "node_depth", "edge", "edge-feat"):
        expected = 5 if key.startswith("node") else 7
        with pytest.raises(ValueError) as caught:
            ogbg_files._check_rows(rows | {key: 6}, 5, 7)
        assert str(caught.value) == f"raw/{key}.csv.gz has 6 rows, but its graphs have {expected}"


@pytest.mark.parametrize(
    ("content", "count"), [(b"", 0), (b"1", 1), (b"1\n", 1), (b"1\n2", 2), (b"1\n2\n", 2)]
)
def test_rows_are_lines_with_or_without_an_end(content: bytes, count: int, tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    assert ogbg_files._count_rows(tmp_path / "a.csv.gz") == count


def test_a_set_is_there_where_a_folder_or_the_smiles_of_molhiv_are(tmp_path: Path) -> None:
    assert not is_there(HIV, tmp_path)
    (tmp_path / "molhiv" / "raw").mkdir(parents=True)
    (tmp_path / "molhiv" / "raw" / "hiv.csv").write_text("")
    assert is_there(HIV, tmp_path) and not is_there("ogbg-ppa", tmp_path)
    assert find_source(HIV, tmp_path) == Source(tmp_path / "molhiv", ("raw/hiv.csv",), is_smiles=True)
    (tmp_path / "ogbg_ppi_medium" / "raw").mkdir(parents=True)
    assert is_there("ogbg-ppa", tmp_path)
    (tmp_path / "ogbg_molpcba").mkdir()
    assert not is_there("ogbg-molpcba", tmp_path)


def test_the_preferred_folder_is_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = use_ogbg(monkeypatch, tmp_path, HIV)
    (tmp_path / "hiv" / "raw").mkdir(parents=True)
    assert find_source(HIV, tmp_path) == Source(tmp_path / "ogbg_molhiv", tuple(facts.files))
    assert facts.folders == ("ogbg_molhiv", "ogbg-molhiv", "ogbg_molhiv_pyg", "hiv")
    assert (facts.node_features, facts.positions) == (9, 1)


@pytest.mark.parametrize("name", [HIV, "ogbg-code2"])
def test_what_is_read_has_no_walks_yet(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, name)
    graphs = ogbg_files.read(name, find_source(name, tmp_path), lambda line: None)
    assert (graphs.name, graphs.walks.shape) == (name, (len(graphs.nodes), 0))
    assert (len(graphs.vocabulary), len(graphs.words)) == ((0, 0) if name == HIV else (5002, 24))


def test_the_line_before_a_reading_says_whether_there_are_other_files(tmp_path: Path) -> None:
    lines: list[str] = []
    for is_smiles, files in ((True, ("raw/hiv.csv",)), (False, ("raw/edge.csv.gz", "raw/b.csv.gz"))):
        with pytest.raises(DataError):
            ogbg_files.read(HIV, Source(tmp_path, files, is_smiles), lines.append)
    assert lines == [
        f"ogbg-molhiv: reads {tmp_path}/raw/hiv.csv",
        f"ogbg-molhiv: reads {tmp_path}/raw/edge.csv.gz and others",
    ]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("Unable to allocate 1 GiB")])
def test_a_failing_machine_is_not_taken_for_a_damaged_set(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    use_ogbg(monkeypatch, tmp_path, HIV)
    monkeypatch.setattr(ogbg_files, "_count_rows", fail)
    with pytest.raises(DataError) as caught:
        ogbg_files.read(HIV, find_source(HIV, tmp_path), lambda line: None)
    assert not isinstance(caught.value, DamagedError)
    assert f"{tmp_path / 'ogbg_molhiv'} cannot be read (" in str(caught.value)
    assert str(caught.value).endswith("): free memory, and check the disk")
