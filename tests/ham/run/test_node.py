"""A node classification run, on a small graph in chameleon's format."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import graph_files as small_files
import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric", reason="needs pip install -e '.[gnn]'")

from ham.data import graphs
from ham.run import loop
from ham.run.build import build
from ham.run.config import ConfigError, config_hash, load
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.run.main import run_experiment
from ham.run.state import Run
from ham.tasks.nodes import NodeClassification, negative_metric_share, roc_auc

CPU = torch.device("cpu")
LEAF = "+exp=node/chameleon_gcn_nham"
SMALL = ["model.hidden=16", "epochs=12", "compute.threads=1"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$HAM_DATA with small graphs."""
    graphs._read.cache_clear()
    for name in ("chameleon", "minesweeper", "cora"):
        small_files.write(name, tmp_path / "data" / "graphs")
    small_files.shrink_sets(monkeypatch, "chameleon", "minesweeper", "cora")
    monkeypatch.setenv("HAM_DATA", str(tmp_path / "data"))
    yield
    graphs._read.cache_clear()


def built(*overrides: str) -> Run:
    cfg = load([*overrides, *SMALL])
    task = NodeClassification.load(cfg, CPU, seed=0, rank=0, world_size=1)
    return build(cfg, config_hash(cfg), task, NullLogger(Path(), cfg), CPU)


def step(run: Run) -> float:
    """The loss before one step of the loop."""
    return float(train_step(run, "train"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_the_command_line(command: Callable, tmp_path: Path) -> None:
    outcome = command(LEAF, *SMALL, f"runs_dir={tmp_path}")
    assert outcome.status == 0, outcome.err
    (folder,) = tmp_path.glob("node/chameleon_gcn_nham-*/seed0")
    summary = json.loads((folder / "summary.json").read_text())
    epochs, metrics = lines(folder), summary["metrics"]
    best = max(line["valid"] for line in epochs)
    first = next(line for line in epochs if line["valid"] == best)  # the first of equals
    assert (metrics["valid_best"], metrics["test_at_best"], metrics["best_epoch"]) == (
        *(best, first["test"]),
        first["epoch"],
    )
    assert [line["epoch"] for line in epochs] == list(range(12))
    looked = [line["epoch"] for line in epochs if "test" in line]
    valid = [line["valid"] for line in epochs]
    better = [n for n in range(12) if valid[n] > max(valid[:n], default=-1)]
    assert looked == sorted({*better, 11})  # test nodes are looked at where they can matter
    assert summary["graph"]["nodes"] == {"train": 24, "valid": 21, "test": 15}
    assert summary["exp"] == "node/chameleon_gcn_nham" and summary["status"] == "done"
    assert 0 <= metrics["negative_metric_last"] <= 1
    assert {"config.yaml", "provenance.json", "train.log"} <= {path.name for path in folder.iterdir()}
    again = command(LEAF, *SMALL, f"runs_dir={tmp_path}")
    assert again.status == 0 and "already finished" in again.out
    assert f"{metrics['valid_best']:.2f} %" in again.out


@pytest.mark.parametrize(
    "leaf", ["node/chameleon_gcn_nham", "node/minesweeper_sage_ham", "node/cora_gat_ham"]
)
def test_stopped_anywhere_a_run_goes_on_bit_for_bit(
    leaf: str, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [f"+exp={leaf}", *SMALL, "model.layers=2"]
    assert command(*argv, f"runs_dir={tmp_path}/whole").status == 0
    steps = iter(range(100))

    def interrupted(run: Run, batch: str) -> torch.Tensor:
        if next(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, batch)

    monkeypatch.setattr(loop, "train_step", interrupted)
    outcome = command(*argv, f"runs_dir={tmp_path}/cut")
    assert outcome.status == 85 and "in epoch 6, step 6" in outcome.err
    torch.manual_seed(99)  # another process has drawn something else
    assert command(*argv, f"runs_dir={tmp_path}/cut").status == 0
    whole, cut = (next((tmp_path / name).rglob("metrics.jsonl")) for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    one, other = (json.loads((path.parent / "summary.json").read_text()) for path in (whole, cut))
    assert one["metrics"] == other["metrics"]
    assert len(json.loads((cut.parent / "provenance.json").read_text())["resumed_from"]) == 1


def test_killed_between_checkpoints_a_run_repeats_what_it_lost(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [LEAF, *SMALL]
    assert command(*argv, f"runs_dir={tmp_path}/whole").status == 0
    steps = iter(range(100))

    def killed(run: Run, batch: str) -> torch.Tensor:
        if next(steps) == 7:
            raise KeyboardInterrupt
        return train_step(run, batch)

    monkeypatch.setattr(loop, "train_step", killed)
    assert command(*argv, f"runs_dir={tmp_path}/cut", "checkpoint.minutes=0").status == 130
    assert command(*argv, f"runs_dir={tmp_path}/cut", "checkpoint.minutes=0").status == 0
    whole, cut = (next((tmp_path / name).rglob("metrics.jsonl")) for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_checkpoints_are_a_second_apart_and_of_the_step_that_a_signal_stops(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # half seconds
    saved: list[tuple[int, int]] = []
    save = loop.save

    def interrupted(run: Run, batch: str) -> torch.Tensor:
        if run.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, batch)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock) / 2))
    monkeypatch.setattr(loop, "save", lambda run: (saved.append((run.epoch, run.step)), save(run)))
    monkeypatch.setattr(loop, "train_step", interrupted)
    assert command(LEAF, *SMALL, f"runs_dir={tmp_path}/cut").status == 85
    assert saved == [(2, 2), (4, 4), (6, 6), (7, 8)]  # a signal is seen after the step, inside epoch 8
    (last,) = (tmp_path / "cut").rglob("last.pt")
    progress = torch.load(last, weights_only=True)["progress"]
    assert progress == {"epoch": 7, "batch": 1, "step": 8}


def test_a_run_that_another_process_ends_meanwhile_is_kept(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held no checkpoint, so that starting over would have deleted it."""
    argv = [LEAF, *SMALL, f"runs_dir={tmp_path}/runs"]
    assert command(*argv).status == 0
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    read = graphs.Graph.load_graph

    def slow(*args: Any) -> graphs.NodeData:
        shutil.copytree(tmp_path / "elsewhere", tmp_path / "runs")
        return read(*args)

    monkeypatch.setattr(graphs.Graph, "load_graph", slow)
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("it is finished"))
    outcome = command(*argv)
    assert outcome.status == 0 and "already finished" in outcome.out
    kept, ours = (next((tmp_path / n).rglob("summary.json")).read_text() for n in ("elsewhere", "runs"))
    assert kept == ours


def test_a_run_that_diverges_says_so(command: Callable, tmp_path: Path) -> None:
    outcome = command(LEAF, *SMALL, "optimizer.lr=1e30", f"runs_dir={tmp_path}")
    assert outcome.status == 1 and len(outcome.complaints) == 1
    assert "diverged" in outcome.err and "ham.alpha" in outcome.err


def test_runs_of_one_seed_are_paired() -> None:
    """Equal weights, split and dropout: the first losses of all three methods are one number."""
    names = ("chameleon_gcn", "chameleon_gcn_ham", "chameleon_gcn_nham")
    first = {name: built(f"+exp=node/{name}", "seed=3") for name in names}
    draws = {name: step(built(f"+exp=node/{name}", "seed=3")) for name in names}
    assert len(set(draws.values())) == 1
    assert step(built("+exp=node/chameleon_gcn", "seed=4")) not in draws.values()
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in first.values()]
    assert all(torch.equal(weights[0], other) for other in weights)


@pytest.mark.parametrize("arch", ["gcn", "sage", "gat", "gat model.attention=v1"])
@pytest.mark.parametrize("biases", [True, False])
def test_ham_acts_on_the_convolutions_alone(arch: str, biases: bool) -> None:
    """Weights, biases and attention parameters of convolutions; not norms, skips and the classifier."""
    arch, *overrides = arch.split()
    overrides += [] if biases else ["ham.select=convolutions_but_biases"]
    run = built(f"+exp=node/squirrel_{arch}_ham", "data.name=chameleon", "model.layers=2", *overrides)
    acted = {id(p) for group in run.optimizer.param_groups if group["ham_alpha"] for p in group["params"]}
    every = dict(run.model.named_parameters())
    names = {name for name, p in every.items() if id(p) in acted}
    convolutions = {name for name in every if name.startswith("convs.")}
    assert names == {name for name in convolutions if biases or not name.endswith(".bias")}
    assert (names < convolutions) == (not biases and arch != "gat")
    assert any("skips" in name for name in every)
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {5e-4}
    assert {group["lr"] for group in run.optimizer.param_groups} == {run.cfg.optimizer.lr}


def test_training_equals_a_plain_loop_of_pyg() -> None:
    """An independent loop: PyG's layers on the whole graph, torch's Adam, HAM's formula written out."""
    from torch_geometric.nn import GCNConv

    run = built("+exp=node/chameleon_gcn_ham", "model.dropout=0", "model.layers=2", "ham.beta=0.1")
    cfg, data = run.cfg, run.task.data
    convs = [GCNConv(data.features.shape[1], 16), GCNConv(16, 16)]
    head = nn.Linear(16, cfg.data.num_classes)
    with torch.no_grad():
        for own, other in zip(run.model.convs, convs, strict=True):
            other.lin.weight.copy_(own.weight.t())
            other.bias.copy_(own.bias)
        head.load_state_dict(run.model.classifier.state_dict())
    params = [p for layer in (*convs, head) for p in layer.parameters()]
    optimizer = torch.optim.Adam(params, lr=cfg.optimizer.lr, weight_decay=cfg.optimizer.weight_decay)
    wanted = data.nodes["train"]

    def logits() -> torch.Tensor:
        x = data.features
        for conv in convs:
            x = torch.relu(conv(x, data.edges))
        return head(x)

    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(logits()[wanted].log_softmax(dim=1), data.labels[wanted])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p in (p for conv in convs for p in conv.parameters()):
                beta = cfg.ham.beta * (p.grad != 0)
                p *= torch.exp((-cfg.optimizer.lr * (cfg.ham.alpha * p.sign() * p.grad + beta)).clamp(-5, 5))
        assert step(run) == pytest.approx(loss.item(), rel=1e-5)
    with torch.no_grad():
        for part in ("valid", "test"):
            right = (logits().argmax(dim=1) == data.labels)[data.nodes[part]].float().mean()
            assert run.task.metric(run.model, part) == pytest.approx(100 * float(right))


def test_roc_auc_is_scikit_learns_with_ties() -> None:
    from sklearn.metrics import roc_auc_score

    draw = torch.Generator().manual_seed(0)
    for size in (10, 1000):
        scores = torch.randint(8, (size,), generator=draw) / 8
        labels = torch.randint(2, (size,), generator=draw)
        assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert roc_auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])) == 0.75  # by hand


def test_the_share_with_a_negative_metric_by_hand() -> None:
    """alpha = -200: 1 + alpha abs(theta) is negative for abs(theta) > 0.005."""
    run = built(LEAF, "model.layers=1")
    assert run.cfg.ham.alpha == -200
    weights = run.model.convs[0]
    with torch.no_grad():
        weights.weight.fill_(0.004)
        weights.bias.zero_()
        weights.weight.view(-1)[:24] = torch.tensor([0.006, -0.006, 1.0]).repeat(8)
    total = weights.weight.numel() + weights.bias.numel()
    assert negative_metric_share(run) == {"negative_metric": 24 / total}
    for alpha in ("200", "0.5", "0"):  # for these the metric is at least 1
        assert negative_metric_share(built("+exp=node/chameleon_gcn_ham", f"ham.alpha={alpha}")) == {}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["+demo=digits"], "does not scale down nodes"),
        (["sparsifier=rigl", "sparsifier.sparsity=0.5"], "sparsifier=dense"),
        (["parameterization=product", "ham.alpha=0"], "sparsifier=dense"),
        (["optimizer.sam_rho=0.05"], "optimizer.sam_rho"),
        (["batch_size=2"], "batch_size"),
        (["compute.amp=true"], "compute.amp"),
        (["model=resnet18"], "model=resnet18"),
        (["data.name=nosuch"], "choose one of cora"),
        (["data.split=fixed"], "choose per_class or official"),
        (["model.dropout=1"], "model.dropout"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_graph_cannot_be_is_refused_in_one_line(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([LEAF, *overrides])
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ham import distributed

    monkeypatch.setattr(distributed, "world", lambda: distributed.World(rank=0, size=2, local_rank=0))
    with pytest.raises(ConfigError, match="one process"):
        run_experiment(load([LEAF, *SMALL, f"runs_dir={tmp_path}"]))


def test_images_do_not_take_a_graph_network() -> None:
    with pytest.raises(ConfigError, match="reads graphs"):
        load(["+exp=dense", "model=gnn"])


def test_a_missing_graph_ends_with_one_line(command: Callable, tmp_path: Path) -> None:
    outcome = command(LEAF, *SMALL, f"data.root={tmp_path}/nowhere", f"runs_dir={tmp_path}")
    assert outcome.status == 2 and len(outcome.complaints) == 1
    assert "prepare_graphs.py chameleon" in outcome.err


def test_unknown_names_get_the_nearest(command: Callable) -> None:
    outcome = command("+exp=node/chameleon_gnc")
    assert outcome.status == 2 and "node/chameleon_gcn" in outcome.err
