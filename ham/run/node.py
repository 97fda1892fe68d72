"""Node classification: one graph is one batch. Read `train_step` first; the rest is what is told when."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ham.data import NodeTask

from . import checkpoint, distributed
from .config import to_yaml
from .loop import Diverged, Stopped, signals
from .node_build import NodeRun, build_node
from .node_summary import evaluate, negative_share, summarize
from .provenance import provenance
from .record import Record
from .schema import Config, ConfigError

_TOLD = 10  # lines of a run in its log
_MINUTES = 1.0  # the most that a run killed without a signal repeats: a graph's checkpoint is small


def check_ranks() -> None:
    """Raise ConfigError where several processes would share a graph."""
    if distributed.world().size > 1:
        raise ConfigError("a graph is trained by one process: start it without torchrun or srun --ntasks")


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
            if time.monotonic() - saved_at >= 60 * min(cfg.checkpoint.minutes, _MINUTES) or received:
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


def write_lines(run: NodeRun) -> None:
    """Bring metrics.jsonl up to date: many lines at once, an epoch may take a few milliseconds."""
    run.record.lines(run.lines[run.written :])
    run.written = len(run.lines)


def save(run: NodeRun) -> None:
    """Write a checkpoint."""
    write_lines(run)
    checkpoint.save(run.record.folder, run.state_dict())
