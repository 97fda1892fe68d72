"""Node classification on a graph of four nodes: what is refused, measured, summed up and reported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ham.data.graphs import Graph, NodeData, Split
from ham.models.gnn import GNN, Norm
from ham.tasks.nodes import NodeClassification, build_subgraphs, negative_metric_share, roc_auc
from pruning import SNIP, Dense

CPU = torch.device("cpu")
PATH = torch.tensor([[0, 1, 1, 2, 2, 3, 0, 1, 2, 3], [1, 0, 2, 1, 3, 2, 0, 1, 2, 3]])  # 0 - 1 - 2 - 3
PARTS = {"train": torch.tensor([3]), "valid": torch.tensor([0, 1]), "test": torch.tensor([2, 0, 1])}


def graph(metric: str = "accuracy") -> NodeData:
    return NodeData("tiny", metric, torch.eye(4, 3), torch.tensor([0, 1, 1, 0]), PATH, PARTS)


def configured(**changes: Any) -> SimpleNamespace:
    """A configuration that can be trained, with some of its values changed; `a__b` is the value a.b."""
    cfg = SimpleNamespace(
        model=GNN(hidden=4, layers=1),
        data=Graph(name="cora", split=Split.public),
        sparsifier=Dense(),
        trains_factors=False,
        batch_size=1,
        optimizer=SimpleNamespace(label_smoothing=0.0, sam_rho=0.0),
        compute=SimpleNamespace(amp=False, channels_last=False, compile=False, sync_bn=False),
        ham=SimpleNamespace(alpha=-2.0, beta=0.25),
        epochs=3,
    )
    for key, value in changes.items():
        *path, name = key.split("__")
        setattr(getattr(cfg, path[0]) if path else cfg, name, value)
    return cfg


def test_a_dense_network_of_one_graph_can_be_trained() -> None:
    NodeClassification.check(configured())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "data=graph needs model=gnn: use an experiment node/..."),
        (
            {"sparsifier": SNIP(0.5)},
            "graphs are trained dense: use sparsifier=dense and parameterization=plain",
        ),
        (
            {"trains_factors": True},
            "graphs are trained dense: use sparsifier=dense and parameterization=plain",
        ),
        (
            {"optimizer__label_smoothing": 0.1},
            "optimizer.label_smoothing applies only to images: omit it",
        ),
        ({"batch_size": 2}, "batch_size does not apply to a graph, which is one batch: omit it"),
        ({"optimizer__sam_rho": 0.1}, "optimizer.sam_rho does not apply to a graph, which is one batch"),
        ({"compute__amp": True}, "compute.amp does not apply to a graph, which is one batch"),
        ({"compute__channels_last": True}, "compute.channels_last does not apply to a graph"),
        ({"compute__compile": True}, "compute.compile does not apply to a graph"),
        ({"compute__sync_bn": True}, "compute.sync_bn does not apply to a graph"),
        ({"data__image_size": 32}, "model=gnn reads graphs, not images"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        NodeClassification.check(configured(**changes))
    assert str(caught.value).startswith(message)


def task(metric: str = "accuracy") -> NodeClassification:
    """Subgraphs are the names of the parts."""
    return NodeClassification(configured(), CPU, graph(metric), {part: part for part in PARTS})


class Logits(nn.Module):
    """Logits of the nodes of a part: node 0 is right, node 1 wrong, node 2 right, node 3 wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.tensor([[2.0, 1.0], [1.5, 0.0], [0.0, 3.0], [0.0, 1.0]])
        self.modes: list[bool] = []

    def forward(self, part: str) -> Tensor:
        self.modes.append(self.training)
        return self.table[PARTS[part]]


def test_the_split_of_a_run_is_that_of_its_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = configured(seed=7)
    asked = []
    monkeypatch.setattr(
        Graph, "load_graph", lambda self, seed, device: asked.append((seed, device)) or graph()
    )
    loaded = NodeClassification.load(cfg, CPU, seed=99, rank=0, world_size=1)
    assert asked == [(7, CPU)] and loaded.cfg is cfg and loaded.device == CPU
    assert set(loaded.subgraphs) == set(PARTS)
    model = loaded.build_model(torch.Generator().manual_seed(0))
    assert model(loaded.subgraphs["test"]).shape == (3, 7), "cora has seven classes"


def test_an_epoch_is_one_step_over_the_entire_graph() -> None:
    own = task()
    assert own.steps_per_epoch == 1
    assert list(own.batches(0)) == list(own.batches(5)) == ["train"] and list(own.batches(0, start=1)) == []
    assert list(own.microbatches("train", 3)) == [("train", 1.0)]


def test_the_loss_is_the_cross_entropy_of_the_part_s_nodes() -> None:
    loss, logits, labels = task().loss(Logits(), "valid")
    first, second = 0.3132617, 1.7014133  # ln(1 + e^-1) of node 0, ln(1 + e^1.5) of node 1
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)
    assert logits.tolist() == [[2.0, 1.0], [1.5, 0.0]] and labels.tolist() == [0, 1]


def test_accuracy_is_in_percent_and_the_mode_stays_as_it_is() -> None:
    model = Logits().train()
    assert task().metric(model, "valid") == 50
    assert task().metric(model, "test") == pytest.approx(200 / 3)
    assert task().metric(model, "train") == 0
    assert model.training and not any(model.modes)


def test_roc_auc_is_that_of_the_difference_of_the_logits_in_percent() -> None:
    """Differences of nodes 2, 0 and 1 are 3, -1 and -1.5 with labels 1, 0 and 1: one of two pairs."""
    assert task("roc_auc").metric(Logits(), "test") == 50
    assert roc_auc(torch.tensor([3.0, -1.0, -1.0]), torch.tensor([1, 0, 1])) == 0.75


def weights(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def progress(alpha: float, history: list[dict[str, Any]] = ()) -> SimpleNamespace:
    """A run whose HAM acts on four weights, one of which is beyond 1 / 2 on each side."""
    acted, other = weights(0.5, 0.50001, -0.6, 0.0), weights(9.0, 9.0)
    groups = [
        {"params": [acted], "ham_alpha": alpha},
        {"params": [other], "ham_alpha": 0.0},
        {"params": [other]},
    ]
    model = nn.ParameterList([acted, other])
    return SimpleNamespace(
        cfg=configured(ham__alpha=alpha),
        optimizer=SimpleNamespace(param_groups=groups),
        model=model,
        network=model,
        history=list(history),
        epoch=len(history),
    )


def test_the_share_of_a_negative_metric_is_of_weights_under_ham_beyond_one_over_alpha() -> None:
    assert negative_metric_share(progress(-2.0)) == {"negative_metric": 0.5}
    assert negative_metric_share(progress(-0.5)) == {"negative_metric": 0.0}
    assert negative_metric_share(progress(0.0)) == negative_metric_share(progress(0.5)) == {}


def test_the_share_of_a_negative_metric_is_measured_where_the_test_nodes_are() -> None:
    own = task()
    values = {"valid": 50.0, "test": 40.0}
    own.metric = lambda model, part: values[part]
    assert own.evaluate(progress(-2.0)) == {"valid": 50.0, "test": 40.0, "negative_metric": 0.5}
    earlier = [{"valid": 60.0}]
    assert own.evaluate(progress(-2.0, earlier)) == {"valid": 50.0}


LINES = [
    {"epoch": 0, "valid": 60.0, "test": 50.0, "train_loss": 1.0, "negative_metric": 0.25},
    {"epoch": 1, "valid": 55.0, "test": 52.0, "train_loss": 0.5, "negative_metric": 0.75},
]


def test_the_summary_has_graph_parts_values_metrics_and_zeros_of_all_parameters() -> None:
    found = task().summarize(progress(-2.0, LINES))
    assert found["graph"] == {
        "name": "tiny",
        "metric": "accuracy",
        "nodes": {"train": 1, "valid": 2, "test": 3},
    }
    assert found["ham"] == {"alpha": -2.0, "beta": 0.25}
    assert found["metrics"] == {
        **{"valid_best": 60.0, "test_at_best": 50.0, "best_epoch": 0, "valid_last": 55.0, "test_last": 52.0},
        **{"train_loss": 0.5, "negative_metric_best": 0.25, "negative_metric_last": 0.75},
    }
    share = pytest.approx(1 / 6)
    assert found["sparsity"] == {"target": 0.0, "overall": share, "kept": 5, "total": 6, "layers": {}}
    without = [{key: value for key, value in line.items() if key != "negative_metric"} for line in LINES]
    assert not [name for name in task().summarize(progress(2.0, without))["metrics"] if "negative" in name]


@pytest.mark.parametrize(("metric", "name"), [("accuracy", "accuracy"), ("roc_auc", "ROC AUC")])
def test_the_metric_is_reported_by_its_name(metric: str, name: str) -> None:
    metrics = {"valid_best": 60.0, "best_epoch": 4, "test_at_best": 50.0, "test_last": 52.0}
    first, second = NodeClassification.describe({"graph": {"metric": metric}, "metrics": metrics})
    assert first == f"valid        60.00 % {name}, the best, in epoch 5" and second.startswith(
        "test         50."
    )


@pytest.mark.parametrize(("norm", "sizes"), [(Norm.batch, [4, 3, 4]), (Norm.layer, [2, 3, 4])])
def test_statistics_of_batchnorm_alone_are_over_the_entire_graph_in_training(
    norm: Norm, sizes: list[int]
) -> None:
    """In one layer the output of a node at the end of the path depends on two nodes."""
    found = build_subgraphs(GNN(hidden=4, layers=1, norm=norm), graph())
    assert [own.features.shape[0] for own in found.values()] == sizes
    assert [own.num_outputs for own in found.values()] == [1, 2, 3]


def test_a_graph_s_run_keeps_no_epochs_no_statistics_and_one_process() -> None:
    own = NodeClassification
    assert (own.stores_history, own.logs_statistics, own.distributed) == (False, False, False)
