"""Graph classification runs, on small sets in OGB's format."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

if find_spec("ogb") is None:  # not importorskip: `import ogb` asks the network for a newer version
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)

from ogbg_files import use_ogbg

from ham.run import loop
from ham.run.build import build
from ham.run.config import ConfigError, config_hash, load
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.run.state import Run
from ham.tasks.graphs import GraphClassification, mean_loss, with_labels
from pruning.topk import NotFinite

CPU = torch.device("cpu")
SETS = ("ppa", "molpcba", "molhiv", "code2")
SMALL = ["model.hidden=24", "model.layers=2", "batch_size=5", "epochs=4", "compute.threads=1"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$HAM_DATA with small sets."""
    for name in SETS:
        use_ogbg(monkeypatch, tmp_path / "data" / "graphs", f"ogbg-{name}")
    monkeypatch.setenv("HAM_DATA", str(tmp_path / "data"))


def built(*overrides: str, rank: int = 0, world_size: int = 1) -> Run:
    cfg = load([*SMALL, *overrides])
    task = GraphClassification.load(cfg, CPU, seed=0, rank=rank, world_size=world_size)
    return build(cfg, config_hash(cfg), task, NullLogger(Path(), cfg), CPU)


@pytest.mark.parametrize("name", SETS)
def test_a_run_from_the_command_line(name: str, command: Callable, tmp_path: Path) -> None:
    outcome = command(f"+exp=graph/ogbg_{name}_ham", *SMALL, f"runs_dir={tmp_path}")
    assert outcome.status == 0, outcome.err
    (folder,) = tmp_path.glob(f"graph/ogbg_{name}_ham-*/seed0")
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(line["valid"] for line in lines)
    first = next(line for line in lines if line["valid"] == best)
    metrics = summary["metrics"]
    assert (metrics["valid_best"], metrics["test_at_best"]) == (best, first["test"])
    assert metrics["best_epoch"] == first["epoch"] and summary["task"] == "graphs"
    assert summary["graphs"]["graphs"] == {"train": 12, "valid": 6, "test": 6}
    assert summary["sparsity"]["overall"] == 0
    assert f"{best:.2f} %" in outcome.out


@pytest.mark.parametrize("exp", ["ogbg_molhiv_ham", "ogbg_code2"])
def test_stopped_anywhere_a_run_resumes_bit_for_bit(
    exp: str, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [f"+exp=graph/{exp}", *SMALL]
    assert command(*argv, f"runs_dir={tmp_path}/whole").status == 0
    steps = iter(range(100))

    def interrupted(run: Run, batch: Any) -> torch.Tensor:
        if next(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, batch)

    monkeypatch.setattr(loop, "train_step", interrupted)
    outcome = command(*argv, f"runs_dir={tmp_path}/cut")
    assert outcome.status == 85 and "in epoch 2, step 5" in outcome.err  # 12 graphs: 5, 5 and 2
    torch.manual_seed(99)  # another process has drawn something else
    assert command(*argv, f"runs_dir={tmp_path}/cut").status == 0
    whole, cut = (next((tmp_path / name).rglob("metrics.jsonl")) for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_ac_dc_prunes_exactly_and_stays_pruned(command: Callable, tmp_path: Path) -> None:
    argv = ["+exp=graph/ogbg_molhiv_ham", "sparsifier=acdc", "sparsifier.sparsity=0.5", *SMALL, "epochs=12"]
    outcome = command(*argv, f"runs_dir={tmp_path}")
    assert outcome.status == 0, outcome.err
    (folder,) = tmp_path.glob("graph/*/seed0")
    sparsity = json.loads((folder / "summary.json").read_text())["sparsity"]
    model = torch.load(folder / "last.pt", weights_only=True)["model"]
    kept = sum(int(model[name].count_nonzero()) for name in sparsity["layers"])
    total = sum(model[name].numel() for name in sparsity["layers"])
    assert (sparsity["kept"], sparsity["total"]) == (kept, total)
    assert kept == total - math.ceil(0.5 * total)
    assert any(name.startswith("convs.") for name in sparsity["layers"])


@pytest.mark.parametrize("sparsifier", [["rigl"], ["snip", "sparsifier.batches=2"]], ids=lambda s: s[0])
def test_other_sparsifiers_train(sparsifier: list[str], command: Callable, tmp_path: Path) -> None:
    kind, *options = sparsifier
    argv = ["+exp=graph/ogbg_molpcba", f"sparsifier={kind}", "sparsifier.sparsity=0.5", *options, *SMALL]
    outcome = command(*argv, f"runs_dir={tmp_path}")
    assert outcome.status == 0, outcome.err
    (path,) = tmp_path.rglob("summary.json")
    assert json.loads(path.read_text())["sparsity"]["overall"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", ["grasp", "synflow"])
def test_methods_that_need_tensors_say_so(kind: str, command: Callable, tmp_path: Path) -> None:
    argv = ["+exp=graph/ogbg_molhiv", f"sparsifier={kind}", "sparsifier.sparsity=0.5", *SMALL]
    argv += ["sparsifier.batches=1"] if kind == "grasp" else []
    outcome = command(*argv, f"runs_dir={tmp_path}")
    assert outcome.status == 2 and "got GraphBatch: choose SNIP" in outcome.complaints[-1]


def test_ham_acts_on_the_convolutions_alone() -> None:
    run = built("+exp=graph/ogbg_molhiv_ham")
    acted = {id(p) for group in run.optimizer.param_groups if group["ham_alpha"] for p in group["params"]}
    every = dict(run.model.named_parameters())
    names = {name for name, p in every.items() if id(p) in acted}
    assert names == {f"convs.{i}.{part}" for i in range(2) for part in ("linear.weight", "bias")}
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {1e-5}


def test_runs_of_one_seed_are_paired() -> None:
    losses = []
    for exp in ("ogbg_molhiv", "ogbg_molhiv_ham"):
        run = built(f"+exp=graph/{exp}", "seed=3")
        losses.append(float(train_step(run, next(iter(run.task.batches(0))))))
    assert losses[0] == losses[1]


def test_an_epoch_reads_every_training_graph_once_in_an_order_of_its_own() -> None:
    task = built("+exp=graph/ogbg_molhiv").task
    orders = [[graph for batch, _ in task.batches(epoch) for graph in batch] for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == sorted(task.data.parts["train"].tolist())
    assert orders[0] == orders[2] != orders[1]
    rest = [graph for batch, _ in task.batches(0, start=1) for graph in batch]
    assert rest == orders[0][5:]


@settings(max_examples=100)
@given(count=st.integers(4, 40), ranks=st.integers(1, 4), parts=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_mean_over_ranks_and_parts_is_the_mean_over_the_batch(
    count: int, ranks: int, parts: int, seed: int
) -> None:
    """The last batch has another size on each rank, and graphs have different numbers of known labels."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(3, (count,), generator=generator)
    values = [torch.rand(int(number), dtype=torch.double, generator=generator) for number in known]

    def mean(graphs: list[int]) -> float:
        labels = torch.cat([values[graph] for graph in graphs])
        return float(labels.mean()) if len(labels) else 0.0

    task = object.__new__(GraphClassification)
    task.data = SimpleNamespace(parts={"train": torch.arange(count)})
    task.cfg = SimpleNamespace(batch_size=12, optimizer=SimpleNamespace(accumulate=parts))
    task.seed, task.world_size, task.known = seed, ranks, known.tolist()
    averaged = torch.zeros(task.steps_per_epoch, dtype=torch.double)
    batches: list[list[int]] = [[] for _ in averaged]
    for task.rank in range(ranks):
        for step, batch in enumerate(task.batches(0)):
            batches[step] += batch[0]
            means = [weight * mean(part) for part, weight in task.microbatches(batch, parts)]
            averaged[step] += sum(means) / ranks
    for step, graphs in enumerate(batches):
        assert len(graphs) == len(set(graphs))
        assert averaged[step] == pytest.approx(mean(graphs), abs=1e-12)
    left = count - sum(map(len, batches))
    assert left < 2 * ranks * parts


def test_unknown_labels_do_not_count() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.1]])
    labels = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    chosen, truth = with_labels(logits, labels)
    assert chosen.flatten().tolist() == pytest.approx([0.5, 2.0, 0.1]) and truth.tolist() == [1, 0, 1]
    by_hand = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(2.0)) + math.log1p(math.exp(-0.1))) / 3
    assert float(mean_loss(chosen, truth)) == pytest.approx(by_hand, rel=1e-6)


def test_a_part_without_known_labels_has_the_loss_0() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = mean_loss(*with_labels(logits, torch.full((2, 3), math.nan)))
    loss.backward()
    assert float(loss.detach()) == 0 and not logits.grad.any()


def test_words_are_the_mean_over_positions() -> None:
    """OGB's example adds the cross entropies of the five positions and divides by five."""
    logits, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    mean = sum(F.cross_entropy(logits[:, i], labels[:, i]) for i in range(5)) / 5
    torch.testing.assert_close(mean_loss(*with_labels(logits, labels)), mean)


def test_the_rate_rises_by_epoch_and_falls_on_half_a_cosine() -> None:
    """GraphGPS's cosine_with_warmup: max(1e-6, epoch / warm-up), then 0.5 (1 + cos(pi progress))."""
    for name, epochs, warmup in (("ppa", 400, 10), ("molpcba", 100, 5), ("molhiv", 100, 5), ("code2", 30, 2)):
        cfg = load([f"+exp=graph/ogbg_{name}"])
        assert (cfg.epochs, cfg.optimizer.clip_norm) == (epochs, 1.0)
        factor = cfg.optimizer.schedule.factor(epochs, 3)
        for epoch in range(epochs):
            progress = (epoch - warmup) / (epochs - warmup)
            falling = 0.5 * (1 + math.cos(math.pi * progress))
            expected = max(1e-6, epoch / warmup) if epoch < warmup else falling
            for step in range(3):
                assert factor(3 * epoch + step) == pytest.approx(expected, abs=1.1e-6)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["+demo=digits"], "does not scale down graphs"),
        (["compute.amp=true"], "compute.amp"),
        (["optimizer.label_smoothing=0.1"], "label_smoothing"),
        (["model=resnet18"], "choose an experiment made for it"),
        (["model=gnn"], "choose an experiment made for it"),
        (["model.walk_channels=0"], "go together"),
        (["model.encoder=code"], "does not read ogbg-molhiv"),
        (["model.head=positions"], "does not fit the labels"),
        (["batch_size=1"], "BatchNorm needs 2 samples at once"),
        (["data.name=nosuch"], "choose one of ogbg-ppa"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(["+exp=graph/ogbg_molhiv_ham", *overrides])
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ppa", "molhiv", "code2"])
def test_logits_that_are_not_finite_have_no_metric(name: str) -> None:
    run = built(f"+exp=graph/ogbg_{name}")
    with torch.no_grad():
        next(run.model.head.parameters()).fill_(math.nan)
    with pytest.raises(NotFinite, match="a logit of the valid graphs is not finite"):
        run.task.metric(run.model, "valid")


def test_a_run_that_diverges_says_so(command: Callable, tmp_path: Path) -> None:
    argv = ["+exp=graph/ogbg_molhiv", *SMALL, "optimizer.lr=1e30", "epochs=8", f"runs_dir={tmp_path}"]
    outcome = command(*argv)
    assert outcome.status == 1 and len(outcome.complaints) == 1 and "diverged" in outcome.err


def test_missing_data_end_with_one_line(command: Callable, tmp_path: Path) -> None:
    outcome = command("+exp=graph/ogbg_ppa", *SMALL, f"data.root={tmp_path}/nowhere", f"runs_dir={tmp_path}")
    assert outcome.status == 2 and len(outcome.complaints) == 1
    assert "prepare_graphs.py ogbg-ppa" in outcome.err
