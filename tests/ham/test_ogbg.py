"""OGB's four sets for graph classification: what is read, the cache, and the scores."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

if find_spec("ogb") is None:  # not importorskip: `import ogb` asks the network for a newer version
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)

from ogbg_files import load, read_table, use_ogbg
from sklearn.metrics import average_precision_score, roc_auc_score

from ham.data import OGBG, DataError
from ham.data.ogbg import score
from ham.data.ogbg.package import import_ogb
from ham.data.ogbg.sets import SETS, OGBGSet


def test_the_facts_are_those_of_the_ogb_package() -> None:
    import pandas as pd

    features = import_ogb("utils.features")
    table = pd.read_csv(Path(import_ogb("graphproppred").__file__).with_name("master.csv"), index_col=0)
    for name, facts in SETS.items():
        known = table[name]
        assert facts.url == known["url"]
        assert facts.metric == known["eval metric"]
        assert facts.split == known["split"]
        assert facts.folders[0] == name.replace("-", "_")
        assert sum(facts.parts.values()) == facts.graphs
        if facts.kind == "binary":
            assert facts.outputs == int(known["num tasks"])
            assert facts.node_sizes == tuple(features.get_atom_feature_dims())
            assert facts.edge_sizes == tuple(features.get_bond_feature_dims())
        elif facts.kind == "classes":
            assert facts.outputs == int(known["num classes"])
    assert SETS["ogbg-code2"].outputs == 5002


def test_the_parts_have_the_sizes_that_ogb_publishes() -> None:
    published = {
        "ogbg-ppa": (78_200, 45_100, 34_800),
        "ogbg-molpcba": (350_343, 43_793, 43_793),
        "ogbg-molhiv": (32_901, 4_113, 4_113),
        "ogbg-code2": (407_976, 22_817, 21_948),
    }
    parts = {name: [(part, count) for part, count in facts.parts.items()] for name, facts in SETS.items()}
    names = ("train", "valid", "test")
    assert parts == {name: list(zip(names, counts, strict=True)) for name, counts in published.items()}
    ppa = SETS["ogbg-ppa"]
    assert (ppa.node_sizes, ppa.edge_sizes, ppa.edge_features) == ((1,), (), 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ogbg-molhv"}, "unknown set data.name='ogbg-molhv': choose one of ogbg-ppa, "),
        ({"name": "ogbg-ppa", "walk_steps": -1}, "data.walk_steps must not be negative, got -1"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        OGBG(**options)
    assert str(caught.value).startswith(message)


def plain_graph(facts: OGBGSet, cells: dict[str, list[list[str]]]) -> tuple[list, list]:
    """Rows of nodes, and edges (source, target, features), of the cells of one graph."""
    ends = [tuple(map(int, row)) for row in cells["edge"]]
    if facts.kind != "tokens":
        number = float if facts.kind == "classes" else int
        pairs = [
            (a, b, [number(x) for x in row]) for (a, b), row in zip(ends, cells["edge-feat"], strict=True)
        ]
        nodes = [[int(x) for x in row] for row in cells.get("node-feat", [])]
        if facts.kind == "classes":
            nodes = [[0]] * (max(max(pair) for pair in ends) + 1)
        return nodes, [edge for a, b, row in pairs for edge in ((a, b, row), (b, a, row))]
    depths = [min(int(row[0]), 20) for row in cells["node_depth"]]
    nodes = [[*map(int, row), depth] for row, depth in zip(cells["node-feat"], depths, strict=True)]
    listed = [i for i, row in enumerate(cells["node_is_attributed"]) if row == ["1"]]  # in depth-first order
    edges = [(a, b, [0, 0]) for a, b in ends] + [(b, a, [0, 1]) for a, b in ends]
    edges += [(a, b, [1, 0]) for a, b in pairwise(listed)] + [(b, a, [1, 1]) for a, b in pairwise(listed)]
    return nodes, edges


@pytest.mark.parametrize("name", SETS)
def test_graphs_equal_an_independent_reading_of_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = use_ogbg(monkeypatch, tmp_path, name)
    graphs, _ = load(tmp_path, name)
    raw = tmp_path / facts.folders[0] / "raw"
    cells = {path.name.split(".")[0]: read_table(path) for path in raw.iterdir()}
    node_counts, edge_counts = ([int(row[0]) for row in cells[f"num-{key}-list"]] for key in ("node", "edge"))
    node, edge = 0, 0
    for i, counts in enumerate(zip(node_counts, edge_counts, strict=True)):
        own = {"node": slice(node, node + counts[0]), "edge": slice(edge, edge + counts[1])}
        rows, edges = plain_graph(facts, {key: cells[key][own[key[:4]]] for key in cells if key[:4] in own})
        edges.sort(key=lambda one: (one[1], one[0]))
        assert graphs.nodes[graphs.node_starts[i] : graphs.node_starts[i + 1]].tolist() == rows
        place = slice(graphs.edge_starts[i], graphs.edge_starts[i + 1])
        assert graphs.sources[place].tolist() == [source for source, _, _ in edges]
        assert graphs.targets[place].tolist() == [target for _, target, _ in edges]
        expected = torch.tensor([row for _, _, row in edges]).view(-1, facts.edge_features)
        torch.testing.assert_close(graphs.edges[place], expected.to(graphs.edges.dtype))
        node, edge = node + counts[0], edge + counts[1]
    assert (len(graphs), len(graphs.nodes)) == (facts.graphs, node)
    assert graphs.nodes.dtype is torch.int64
    assert graphs.edges.dtype is (torch.float32 if name == "ogbg-ppa" else torch.int64)
    for part, rows in graphs.parts.items():
        written = read_table(tmp_path / facts.folders[0] / "split" / facts.split / f"{part}.csv.gz")
        assert rows.tolist() == [int(row[0]) for row in written]


def test_unknown_labels_of_molecules_stay_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = use_ogbg(monkeypatch, tmp_path, "ogbg-molpcba")
    for _ in range(2):  # from the files, and from the cache
        labels = load(tmp_path, "ogbg-molpcba")[0].labels
        written = read_table(tmp_path / facts.folders[0] / "raw" / "graph-label.csv.gz")
        expected = torch.tensor([[float(cell or "nan") for cell in row] for row in written])
        assert expected.isnan().any() and labels.dtype is torch.float32
        torch.testing.assert_close(labels, expected, equal_nan=True)


def test_classes_are_int64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = use_ogbg(monkeypatch, tmp_path, "ogbg-ppa")
    labels = load(tmp_path, "ogbg-ppa")[0].labels
    written = read_table(tmp_path / facts.folders[0] / "raw" / "graph-label.csv.gz")
    assert labels.dtype is torch.int64
    assert labels.tolist() == [[int(row[0])] for row in written]


def test_names_become_five_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = use_ogbg(monkeypatch, tmp_path, "ogbg-code2")
    graphs, _ = load(tmp_path, "ogbg-code2")
    written = read_table(tmp_path / facts.folders[0] / "raw" / "graph-label.csv.gz")
    names = [row[0].replace("null", "nan").split(" ") for row in written]  # as OGB's reader
    counts = Counter(word for i in graphs.parts["train"].tolist() for word in names[i])
    assert set(graphs.vocabulary[: len(counts)]) == set(counts)
    numbers = [counts[word] for word in graphs.vocabulary[: len(counts)]]
    assert numbers == sorted(numbers, reverse=True)
    assert graphs.words == tuple(map(" ".join, names))
    for row, name in zip(graphs.labels.tolist(), names, strict=True):
        padded = (name + ["__EOS__"] * 5)[:5]
        assert [graphs.vocabulary[token] for token in row] == padded
    assert {len(name) for name in names} >= {1, 2, 6}


def test_scores_of_molecules_are_sklearns_over_known_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 128, generator=generator) < 0.2).float()
    labels[torch.rand(200, 128, generator=generator) < 0.3] = torch.nan
    labels[:, 5] = 0  # a task without positives does not count
    logits = torch.randn(200, 128, generator=generator)
    known = [(labels[:, task], logits[:, task], ~labels[:, task].isnan()) for task in range(128) if task != 5]
    precision = [average_precision_score(label[mask], logit[mask]) for label, logit, mask in known]
    assert score("ogbg-molpcba", logits, labels) == pytest.approx(100 * np.mean(precision))
    label, logit, mask = known[0]
    assert score("ogbg-molhiv", logit[mask, None], label[mask, None]) == pytest.approx(
        100 * roc_auc_score(label[mask], logit[mask])
    )


def test_the_score_of_ppa_is_the_share_of_correct_classes() -> None:
    chosen = torch.tensor([[3], [4], [36], [0]])
    assert score("ogbg-ppa", chosen, torch.tensor([[3], [4], [36], [1]])) == pytest.approx(75)


def test_the_score_of_code2_compares_words_up_to_the_end_of_a_name() -> None:
    vocabulary = ["get", "item", "list", *[""] * 4997, "__UNK__", "__EOS__"]
    end, unknown = 5001, 5000
    tokens = torch.tensor(
        [[0, 1, end, 2, 2], [0, unknown, end, end, end], [end, 0, 0, 0, 0], [2, 1, 0, 2, 1]]
    )
    words = ("get item", "get rid of", "list", "get item list all others now")
    # precision, recall: 1, 1; 1/2 (an unknown word is wrong), 1/3; 0, 0; 1, 3/6
    expected = (1 + 2 * (1 / 2 * 1 / 3) / (1 / 2 + 1 / 3) + 0 + 2 * 0.5 / 1.5) / 4
    options = {"vocabulary": vocabulary, "words": words}
    assert score("ogbg-code2", tokens, torch.empty(0), **options) == pytest.approx(100 * expected)


def test_the_score_of_the_true_names_is_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, "ogbg-code2")
    graphs, _ = load(tmp_path, "ogbg-code2")
    short = [i for i, name in enumerate(graphs.words) if len(name.split()) <= 5]
    words = [graphs.words[i] for i in short]
    assert score(
        "ogbg-code2", graphs.labels[short], graphs.labels, vocabulary=graphs.vocabulary, words=words
    ) == pytest.approx(100)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0], [float("nan")]], [[0.0], [1.0]], "predictions for ogbg-molhiv have nan or inf"),
        ([[0.0], [1.0]], [[0.0], [0.0]], "OGB cannot score ogbg-molhiv: No positively labeled data"),
        ([[0.0, 1.0]], [[0.0]], "OGB cannot score ogbg-molhiv: Shape of y_true and y_pred must be the same"),
    ],
)
def test_what_has_no_score_is_an_error(logits: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        score("ogbg-molhiv", torch.tensor(logits), torch.tensor(labels))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_root_defaults_to_ham_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path / "graphs", "ogbg-ppa")
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    graphs = OGBG(name="ogbg-ppa").load_graphs(log=lambda line: None)
    assert (len(graphs), graphs.walks.shape) == (24, (len(graphs.nodes), 0))


def test_a_graph_that_is_too_large_for_walks_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_ogbg(monkeypatch, tmp_path, "ogbg-molhiv")
    monkeypatch.setattr("ham.data.random_walks.MAX_NODES", 3)
    with pytest.raises(DataError) as caught:
        load(tmp_path, "ogbg-molhiv", walk_steps=2)
    message = str(caught.value)
    assert message.startswith("ogbg-molhiv: a graph has ") and message.endswith("; set data.walk_steps=0")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_predictions_that_are_no_numbers_have_no_score(number: float) -> None:
    with pytest.raises(ValueError, match=r"^predictions for ogbg-ppa have nan or inf$"):
        score("ogbg-ppa", torch.tensor([[number], [1.0]]), torch.tensor([[0], [1]]))
