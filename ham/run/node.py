"""Node classification: one graph is one batch. Read `train_step` first; the rest is what is told when."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from ham.data import NodeTask, derived_seed
from ham.models import GNN, build_model
from ham.models.gnn import Norm
from ham.models.receptive import View, edge_weights, inputs
from ham.optim import HAM

from . import checkpoint, distributed
from .build import build_ham, build_optimizer, build_schedule
from .config import to_yaml
from .loop import Diverged, Stopped, signals
from .provenance import provenance
from .record import Record
from .schema import Config, ConfigError

_TOLD = 10  # lines of a run in its log


@dataclass
class NodeRun:
    """One run and where it stands: `epoch` steps are done, the best validation metric came at `best`.

    Args:
        cfg: the run.
        identity: hash of its configuration.
        task: graph and split.
        views: the part of the graph that the nodes of train, valid and test depend on.
        model: the network.
        optimizer: Adam.
        ham: HAM, or None for the base optimizer alone.
        scheduler: of the learning rate.
        record: the run directory.
        lines: of metrics.jsonl, one per epoch.
    """

    cfg: Config
    identity: str
    task: NodeTask
    views: dict[str, View]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ham: HAM | None
    scheduler: LambdaLR
    record: Record
    lines: list[dict[str, Any]] = field(default_factory=list)
    written: int = 0

    @property
    def epoch(self) -> int:
        """Steps done."""
        return len(self.lines)

    @property
    def best(self) -> dict[str, Any]:
        """The first line with the highest validation metric."""
        return max(self.lines, key=lambda line: line["valid"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
        cuda = self.task.labels.device.type == "cuda"
        return {
            "config_hash": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "ham": self.ham.state_dict() if self.ham else {},
            "record": self.record.state_dict(),
            "lines": self.lines,
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if cuda else None,
            },
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ham:
            self.ham.load_state_dict(state["ham"])
        self.record.load_state_dict(state["record"])
        self.lines = state["lines"]
        self.written = len(self.lines)
        torch.set_rng_state(state["rng"]["cpu"])
        if self.task.labels.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"])


def check_ranks() -> None:
    """Raise ConfigError where several processes would share a graph."""
    if distributed.world().size > 1:
        raise ConfigError("a graph is trained by one process: start it without torchrun or srun --ntasks")


def build_node(cfg: Config, identity: str, task: NodeTask, record: Record, device: torch.device) -> NodeRun:
    """Model, optimizer, HAM and schedule; runs of the same seed begin with the same weights and dropout."""
    generator = torch.Generator().manual_seed(derived_seed(cfg.seed, "model"))
    torch.manual_seed(derived_seed(cfg.seed, "training"))
    sizes = dict(num_classes=cfg.data.num_classes, image_size=0, num_features=task.features.shape[1])
    model = build_model(cfg.model, generator=generator, **sizes).to(device)
    try:
        cfg.sparsifier.attach(model, total_epochs=cfg.epochs, steps_per_epoch=1, seed=0)
        optimizer = build_optimizer(cfg, model, cfg.sparsifier)
        ham = build_ham(cfg, optimizer, cfg.sparsifier)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scheduler = LambdaLR(optimizer, build_schedule(cfg, cfg.epochs))
    views = build_views(cfg.model, task)
    return NodeRun(cfg, identity, task, views, model, optimizer, ham, scheduler, record)


def build_views(spec: GNN, task: NodeTask) -> dict[str, View]:
    """What the nodes of each part depend on; BatchNorm's statistics in training are of the whole graph."""
    edges, weights = edge_weights(str(spec.conv), task.edges, len(task.labels), task.features.dtype)
    features = inputs(task.features)
    return {
        part: View(
            *(features, edges, weights, wanted, spec.layers),
            whole=part == "train" and spec.norm is Norm.batch,
        )
        for part, wanted in task.nodes.items()
    }


def train_node(
    cfg: Config,
    identity: str,
    task: NodeTask,
    record: Record,
    device: torch.device,
    state: dict[str, Any] | None,
) -> dict[str, Any]:
    """Train, or go on from a checkpoint's state; returns the summary.

    Raises:
        Diverged: the loss turned nan or inf.
        Stopped: SIGTERM or SIGUSR1 arrived; the checkpoint is from this very epoch.
        CheckpointError: a checkpoint could not be written.
    """
    run = build_node(cfg, identity, task, record, device)
    record.begin(provenance(identity), to_yaml(cfg))
    if state is not None:
        run.load_state_dict(state)
        record.say(f"resumed at epoch {run.epoch + 1}")
    record.open(cfg.epochs, run.epoch)
    saved_at = time.monotonic()
    with signals() as received:
        while run.epoch < cfg.epochs:
            run.lines.append(finish_epoch(run, train_step(run)))
            record.step()
            if time.monotonic() - saved_at >= 60 * cfg.checkpoint.minutes or received:
                save(run)
                saved_at = time.monotonic()
            if received and run.epoch < cfg.epochs:
                raise Stopped(f"stopped by {received[0]} after epoch {run.epoch}")
    write_lines(run)
    summary = summarize(run)
    record.finish(summary)
    return summary


def train_step(run: NodeRun) -> Tensor:
    """One epoch: the loss over the training nodes, Adam's step, HAM's."""
    run.model.train()
    logits = run.model(run.views["train"])
    loss = F.cross_entropy(logits, run.task.labels[run.task.nodes["train"]])
    loss.backward()
    if run.cfg.optimizer.clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.cfg.optimizer.clip_norm)
    run.optimizer.step()  # HAM fires here
    run.scheduler.step()
    run.optimizer.zero_grad()
    return loss.detach()


def finish_epoch(run: NodeRun, loss: Tensor) -> dict[str, Any]:
    """The epoch's line. Test nodes are looked at where validation is at a new best, and at the end."""
    value = float(loss)
    if not value < float("inf"):  # nan too
        cure = "optimizer.lr or ham.alpha" if run.ham else "optimizer.lr"
        raise Diverged(f"diverged: the loss is not finite at epoch {run.epoch + 1}; lower {cure}")
    line = {"epoch": run.epoch, "train_loss": value, "valid": evaluate(run, "valid")}
    better = not run.lines or line["valid"] > run.best["valid"]
    last = run.epoch + 1 == run.cfg.epochs
    if better or last:
        line["test"] = evaluate(run, "test")
        line |= negative_share(run)
    if run.epoch % max(run.cfg.epochs // _TOLD, 1) == 0 or last:
        told = "  ".join(f"{key} {v:.4f}" for key, v in line.items() if key != "epoch")
        run.record.say(f"epoch {run.epoch + 1}/{run.cfg.epochs}  {told}")
    return line


@torch.no_grad()
def evaluate(run: NodeRun, part: str) -> float:
    """The set's metric over the nodes of a part, in percent."""
    run.model.eval()
    logits = run.model(run.views[part])
    labels = run.task.labels[run.task.nodes[part]]
    if run.task.metric == "roc_auc":
        return 100 * roc_auc(logits[:, 1] - logits[:, 0], labels)
    return 100 * int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Chance that a node of class 1 scores above one of class 0, ties counting half."""
    _, place, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]  # from 1, ties share their mean
    positive = labels == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    return float(ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)


@torch.no_grad()
def negative_share(run: NodeRun) -> dict[str, float]:
    """Share of the weights under HAM where nHAM's 1 + alpha abs(theta) is negative."""
    if run.cfg.ham.alpha >= 0:
        return {}
    groups = [group for group in run.optimizer.param_groups if group.get("ham_alpha")]
    params = [p for group in groups for p in group["params"]]
    beyond = sum(int((p.abs() > -1 / run.cfg.ham.alpha).sum()) for p in params)
    return {"negative_metric": beyond / sum(p.numel() for p in params)}


def write_lines(run: NodeRun) -> None:
    """Bring metrics.jsonl up to date: many lines at once, an epoch may take a few milliseconds."""
    run.record.lines(run.lines[run.written :])
    run.written = len(run.lines)


def save(run: NodeRun) -> None:
    """Write a checkpoint."""
    write_lines(run)
    checkpoint.save(run.record.folder, run.state_dict())


def summarize(run: NodeRun) -> dict[str, Any]:
    """summary.json. `valid_best` is what the paper's tables print, `test_at_best` the test metric then."""
    best, last = run.best, run.lines[-1]
    params = [p for p in run.model.parameters()]
    total = sum(p.numel() for p in params)
    kept = sum(int(p.count_nonzero()) for p in params)
    seconds = run.record.seconds()
    shares = {
        f"negative_metric_{when}": line["negative_metric"]
        for when, line in (("best", best), ("last", last))
        if "negative_metric" in line
    }
    return {
        "exp": run.cfg.name,
        "cell": run.cfg.cell,
        "demo": None,
        "overridden": run.cfg.overridden,
        "seed": run.cfg.seed,
        "config_hash": run.identity,
        "status": "done",
        "epochs": run.cfg.epochs,
        "graph": {
            "name": run.task.name,
            "metric": run.task.metric,
            "nodes": {part: len(nodes) for part, nodes in run.task.nodes.items()},
        },
        "ham": {"alpha": run.cfg.ham.alpha, "beta": run.cfg.ham.beta},
        "metrics": {
            "valid_best": best["valid"],
            "test_at_best": best["test"],
            "best_epoch": best["epoch"],
            "valid_last": last["valid"],
            "test_last": last["test"],
            "train_loss": last["train_loss"],
            **shares,
        },
        "sparsity": {"target": 0.0, "overall": 1 - kept / total, "kept": kept, "total": total, "layers": {}},
        "timing": {
            "seconds": round(seconds, 1),
            "steps": run.epoch,
            "steps_per_second": round(run.epoch / seconds, 2),
        },
        "provenance": run.record.provenance(),
    }


def tell(record: Record, summary: dict[str, Any]) -> dict[str, Any]:
    """The last lines for the reader."""
    m, graph = summary["metrics"], summary["graph"]
    metric = {"accuracy": "accuracy", "roc_auc": "ROC AUC"}[graph["metric"]]
    record.say(f"valid        {m['valid_best']:.2f} % {metric}, the best, in epoch {m['best_epoch'] + 1}")
    record.say(f"test         {m['test_at_best']:.2f} % then, {m['test_last']:.2f} % after the last epoch")
    record.say(f"run          {record.folder}")
    return summary
