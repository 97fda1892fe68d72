"""What a run of node classification is made of, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ham.data import NodeTask, derived_seed
from ham.models import GNN, build_model
from ham.models.gnn import Norm
from ham.models.receptive import View, edge_weights, inputs
from ham.optim import HAM

from .build import build_ham, build_optimizer, build_schedule
from .record import Record
from .schema import Config, ConfigError


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
