"""Missing, damaged and foreign files of OGB's sets."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("ogb") is None:  # not importorskip: `import ogb` asks the network for a newer version
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)

from ogbg_files import assert_equal, edit, load, use_ogbg, write_ogbg

from ham.data import DataError, code2
from ham.data.ogbg import cache as ogbg_cache
from ham.data.ogbg import files as ogbg_files
from ham.data.ogbg.source import find_source
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
        "features of nodes are not whole numbers",
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
        "3.5 is not a whole number",
    ),
    "an empty cell": (
        "split/scaffold/test",
        lambda rows: rows[2].__setitem__(0, "nan"),
        "nan is not a whole number",
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
