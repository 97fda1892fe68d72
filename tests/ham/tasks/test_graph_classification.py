"""Graph classification: what is refused, weights of labels, predictions, summary; without files of OGB."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ham.data.ogbg import OGBG
from ham.models.gcn_plus import GCNPlus, Head
from ham.models.graph_encoders import Encoder
from ham.tasks import graphs
from ham.tasks.graphs import GraphClassification, mean_loss, predictions, with_labels
from pruning.topk import NotFinite

CPU = torch.device("cpu")
FITTING = {
    "ogbg-molhiv": GCNPlus(hidden=8),
    "ogbg-molpcba": GCNPlus(hidden=8),
    "ogbg-ppa": GCNPlus(hidden=8, encoder=Encoder.proteins),
    "ogbg-code2": GCNPlus(hidden=8, encoder=Encoder.code, head=Head.positions),
}


def configured(name: str = "ogbg-molhiv", **changes: Any) -> SimpleNamespace:
    """A configuration that can be trained, with some of its values changed; `a__b` is the value a.b."""
    cfg = SimpleNamespace(
        model=FITTING[name],
        data=OGBG(name=name),
        batch_size=4,
        optimizer=SimpleNamespace(label_smoothing=0.0, accumulate=1),
        compute=SimpleNamespace(amp=False, channels_last=False, compile=False, sync_bn=False),
        ham=SimpleNamespace(alpha=-2.0, beta=0.25),
    )
    for key, value in changes.items():
        *path, attribute = key.split("__")
        setattr(getattr(cfg, path[0]) if path else cfg, attribute, value)
    return cfg


@pytest.mark.parametrize("name", FITTING)
def test_every_set_can_be_trained_with_its_encoder_and_its_head(name: str) -> None:
    GraphClassification.check(configured(name))
    walks = GCNPlus(hidden=8, walk_channels=1, encoder=FITTING[name].encoder, head=FITTING[name].head)
    GraphClassification.check(configured(name, model=walks, data__walk_steps=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "data=ogbg needs model=gcn_plus: use an experiment graph/..."),
        (
            {"optimizer__label_smoothing": 0.1},
            "optimizer.label_smoothing does not apply to graph classification",
        ),
        ({"compute__amp": True}, "compute.amp does not apply to graph classification: omit it"),
        ({"compute__channels_last": True}, "compute.channels_last does not apply to graph classification"),
        ({"compute__compile": True}, "compute.compile does not apply to graph classification"),
        (
            {"data__walk_steps": 1},
            "model.walk_channels and data.walk_steps go together: set both, or both to 0, got 0 and 1",
        ),
        (
            {"model": GCNPlus(hidden=8, walk_channels=1)},
            "model.walk_channels and data.walk_steps go together: set both, or both to 0, got 1 and 0",
        ),
        (
            {"model": FITTING["ogbg-ppa"]},
            "model.encoder=proteins does not read ogbg-molhiv: set molecules",
        ),
        (
            {"model": GCNPlus(hidden=8, head=Head.positions)},
            "model.head=positions does not fit the labels of ogbg-molhiv",
        ),
        ({"data__image_size": 32}, "model=gcn_plus reads graphs, not images"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        GraphClassification.check(configured(**changes))
    assert str(caught.value).startswith(message)


def task(known: list[int], rank: int = 0, ranks: int = 1, **changes: Any) -> GraphClassification:
    """A task whose training graphs have so many known labels."""
    data = SimpleNamespace(parts={"train": torch.arange(len(known))}, labels=None, name="tiny")
    return GraphClassification(configured(**changes), CPU, data, None, known, {}, 0, rank, ranks)


@pytest.mark.parametrize(
    ("count", "ranks", "accumulate", "steps"),
    [(8, 1, 1, 2), (9, 1, 1, 2), (10, 1, 1, 3), (11, 2, 1, 2), (10, 2, 1, 2), (10, 1, 2, 2), (11, 1, 1, 3)],
)
def test_the_last_batch_is_trained_with_two_graphs_for_every_rank_and_part(
    count: int, ranks: int, accumulate: int, steps: int
) -> None:
    own = task([1] * count, ranks=ranks, optimizer__accumulate=accumulate)
    assert own.steps_per_epoch == steps
    assert len(list(own.batches(0))) == steps and len(list(own.batches(0, start=1))) == steps - 1


def test_a_rank_s_graphs_are_weighted_by_their_share_of_the_known_labels() -> None:
    known = [3, 1, 0, 4]
    batches = [next(task(known, rank, 2).batches(0)) for rank in (0, 1)]
    assert sorted(batches[0][0] + batches[1][0]) == [0, 1, 2, 3]
    for graphs_of_rank, weight in batches:
        assert len(graphs_of_rank) == 2
        assert weight == pytest.approx(2 * sum(known[i] for i in graphs_of_rank) / 8)


def test_parts_are_weighted_by_their_known_labels_and_by_0_where_none_is_known() -> None:
    own = task([3, 1, 0, 4])
    parts = list(own.microbatches(([0, 1, 2, 3], 0.5), 3))
    assert parts == [([0], 0.5 * 3 / 8), ([1], 0.5 * 1 / 8), ([2, 3], 0.5 * 4 / 8)]
    assert [weight for _, weight in task([0, 0]).microbatches(([0, 1], 1.0), 2)] == [0, 0]
    assert [weight for _, weight in task([0, 1]).microbatches(([0, 1], 1.0), 2)] == [0, 1]


def test_the_loss_of_binary_labels_has_logits_of_both_classes() -> None:
    own = task([1, 2])
    own.data.labels = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    own.batch = lambda graphs: graphs
    outputs = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
    loss, logits, labels = own.loss(lambda graphs: outputs[graphs], [1, 0])
    assert logits.tolist() == [[0, 2.0], [0, 0.25], [0, 0.5]]
    assert labels.tolist() == [0, 1, 1] and labels.dtype is torch.int64
    by_hand = math.log1p(math.exp(2)) + math.log1p(math.exp(-0.25)) + math.log1p(math.exp(-0.5))
    assert float(loss) == pytest.approx(by_hand / 3, rel=1e-6)
    assert float(own.initialization_loss(outputs, own.data.labels)) == pytest.approx(by_hand / 3, rel=1e-6)


def test_the_loss_of_classes_is_the_mean_cross_entropy() -> None:
    own = task([1, 1])
    own.data.labels = torch.tensor([[2], [0]])
    own.batch = lambda graphs: graphs
    outputs = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    loss, logits, labels = own.loss(lambda graphs: outputs[graphs], [0, 1])
    by_hand = (math.log(2 + math.e) - 1 + math.log(3)) / 2
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    assert torch.equal(logits, outputs) and labels.tolist() == [2, 0]


def test_batches_of_pruning_at_initialization_are_those_of_the_first_epoch() -> None:
    own = task([1] * 8)
    own.data.labels = torch.arange(8)[:, None]
    own.batch = lambda graphs: graphs
    expected = [batch for batch, _ in own.batches(0)]
    found = list(own.initialization_batches())
    assert [graphs for graphs, _ in found] == expected
    assert [labels.flatten().tolist() for _, labels in found] == expected


def test_binary_predictions_are_the_logits_and_others_the_most_likely_class_or_nan() -> None:
    logits = torch.tensor([[0.5, 2.0, 1.0], [3.0, math.inf, 0.0], [0.0, -1.0, math.nan]])
    assert predictions(logits, "binary") is logits
    classes = predictions(logits, "classes")
    assert classes.shape == (3, 1) and float(classes[0]) == 1 and classes[1:].isnan().all()
    words = predictions(logits[None], "tokens")
    assert words.shape == (1, 3) and float(words[0, 0]) == 1 and words[0, 1:].isnan().all()


def test_a_label_of_each_position_belongs_to_its_logits() -> None:
    logits = torch.arange(12.0).reshape(2, 2, 3)
    chosen, labels = with_labels(logits, torch.tensor([[2, 0], [1, 2]]))
    assert chosen.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert labels.tolist() == [2, 0, 1, 2]
    assert float(mean_loss(torch.zeros(0, 1), torch.zeros(0))) == 0


class Echo(nn.Module):
    """The logit of a graph is its index in the set."""

    def forward(self, graphs: list[int]) -> torch.Tensor:
        assert not self.training
        return torch.tensor(graphs, dtype=torch.float32)[:, None]


def test_the_metric_is_of_each_graph_s_own_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    own = task([1] * 9)
    own.data.parts["valid"] = torch.tensor([4, 7, 8])
    own.data.labels, own.data.vocabulary, own.data.words = torch.arange(9.0)[:, None], ["a"], []
    own.groups = {"valid": [(0, [4, 7]), (2, [8])]}
    own.batch = lambda graphs: graphs
    asked: list[Any] = []
    monkeypatch.setattr(graphs, "score", lambda *args, **words: asked.append((args, words)) or 12.5)
    model = Echo().train()
    assert own.metric(model, "valid") == 12.5 and model.training
    ((name, predicted, labels), words) = asked[0]
    assert name == "tiny" and predicted.tolist() == labels.tolist() == [[4], [7], [8]]
    assert words == {"vocabulary": ["a"], "words": []}
    own.data.words = [f"word {i}" for i in range(9)]
    own.metric(model, "valid")
    assert asked[1][1]["words"] == ["word 4", "word 7", "word 8"]


def test_classes_are_compared_as_numbers_and_buffers_are_those_of_the_first_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = task([1] * 4, data=OGBG(name="ogbg-ppa"))
    own.data.parts["test"] = torch.tensor([3, 1])
    own.data.labels, own.data.vocabulary, own.data.words = torch.arange(4)[:, None], [], []
    own.groups = {"test": [(0, [3, 1])]}
    own.batch = lambda graphs: torch.eye(5)[graphs]
    asked, sent = [], []
    monkeypatch.setattr(graphs, "score", lambda *args, **words: asked.append(args) or 1.0)
    monkeypatch.setattr(graphs.distributed, "broadcast_buffers", sent.append)
    model = nn.Identity()
    own.metric(model, "test")
    ((_, predicted, labels),) = asked
    assert torch.equal(predicted, labels) and predicted.dtype is torch.int64 and sent == [model]
    own.batch = lambda graphs: torch.full((2, 5), math.nan)
    with pytest.raises(NotFinite, match=r"^a logit of the test graphs is not finite"):
        own.metric(model, "test")


def test_a_loaded_set_has_known_labels_and_groups_of_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of 2, 1 and 3 nodes, without edges; groups of evaluation have at most 4 nodes."""
    monkeypatch.setattr(graphs, "_EVALUATION_NODES", 4)
    none = torch.zeros(0, dtype=torch.int64)
    data = SimpleNamespace(
        node_starts=torch.tensor([0, 2, 3, 6]),
        edge_starts=torch.zeros(4, dtype=torch.int64),
        nodes=torch.zeros(6, 9, dtype=torch.int64),
        walks=torch.zeros(6, 0),
        sources=none,
        targets=none,
        edges=torch.zeros(0, 3, dtype=torch.int64),
        labels=torch.tensor([[1.0, math.nan], [math.nan, math.nan], [0.0, 1.0]]),
        parts={"train": torch.tensor([0, 2]), "valid": torch.tensor([2, 1, 0])},
    )
    cfg = configured(data=SimpleNamespace(load_graphs=lambda: data, num_classes=2, walk_steps=0))
    own = GraphClassification.load(cfg, CPU, 7, 1, 2)
    assert own.known == [1, 0, 2] and (own.seed, own.rank, own.world_size) == (7, 1, 2)
    assert own.groups == {"train": [(0, [0]), (1, [2])], "valid": [(0, [2, 1]), (2, [0])]}
    assert own.cfg is cfg and own.data is data and own.device == CPU
    model = own.build_model(torch.Generator().manual_seed(0)).eval()
    assert model(own.batch([2, 0])).shape == (2, 2)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    cfg.compute.sync_bn = True
    synced = own.build_model(torch.Generator().manual_seed(0))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules()) == 12


def test_the_summary_has_the_set_the_values_of_ham_and_the_sparsity() -> None:
    own = task([1, 1])
    line = {"epoch": 0, "valid": 60.0, "test": 50.0, "train_loss": 1.0}
    sparsifier = SimpleNamespace(counts=lambda: [("fc", 1, 4)], achieved_sparsity=lambda: 0.75)
    found = own.summarize(SimpleNamespace(cfg=own.cfg, history=[line], sparsifier=sparsifier))
    assert found["graphs"] == {"name": "tiny", "metric": "rocauc", "graphs": {"train": 2}}
    assert found["ham"] == {"alpha": -2.0, "beta": 0.25}
    assert found["metrics"]["valid_best"] == 60.0 and found["sparsity"]["overall"] == 0.75


@pytest.mark.parametrize(
    ("metric", "name"),
    [("rocauc", "ROC AUC"), ("ap", "average precision"), ("acc", "accuracy"), ("F1", "F1")],
)
def test_the_metric_is_reported_by_its_name_with_the_sparsity(metric: str, name: str) -> None:
    metrics = {"valid_best": 60.0, "best_epoch": 4, "test_at_best": 50.0, "test_last": 52.0}
    sparsity = {"overall": 0.5, "kept": 1, "total": 2, "target": 0.5}
    lines = GraphClassification.describe(
        {"graphs": {"metric": metric}, "metrics": metrics, "sparsity": sparsity}
    )
    assert lines[0] == f"valid        60.00 % {name}, the best, in epoch 5" and len(lines) == 3
    assert lines[2].startswith("sparsity     50.00 %")


def test_runs_on_graphs_keep_no_epochs_and_have_a_scale_of_20_epochs() -> None:
    assert not GraphClassification.stores_history and GraphClassification.demos == {"epochs20"}
