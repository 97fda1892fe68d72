"""Entire runs of `ham.run` on any device: data, training, evaluation, checkpoints, resume, summary."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import graph_files
import ogbg_files
import pytest
import torch
from cells import Around
from recorder import Outcome, Recorder
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ham.data import graphs
from ham.models import receptive, sparse
from ham.run import checkpoint, loop, main
from ham.run.build import run_directory
from ham.run.config import config_hash, load
from ham.run.logger import RunLogger
from ham.run.metrics import EpochMetrics
from ham.run.state import Run
from ham.tasks import base as tasks
from ham.tasks.graph_batches import GraphTensors
from ham.tasks.graphs import GraphClassification

IMAGES = ["+demo=tiny", "batch_size=700", "epochs=2", "checkpoint.minutes=0", "flips_every=1"]
"""Two epochs of two steps; a checkpoint after each step."""

DEIT = ["model.depth=1", "model.embed_dim=16", "model.num_heads=2"]
NODES = ["model.hidden=8", "epochs=3", "compute.threads=1", "checkpoint.minutes=0"]
RUNS = {
    "rigl_sign_in_s90": [
        *(*IMAGES, "model.width=4", "compute.amp=true", "optimizer.sam_rho=0.05"),
        *("sparsifier.interval=2", "parameterization.reset_every=1"),
    ],
    "str_ham_s90": [*IMAGES, *DEIT, "model=deit_small", "optimizer.clip_norm=1"],
    "deit_acdc_ham_s50": [*IMAGES, *DEIT],
    "node/chameleon_gcn_nham": NODES,
    "node/chameleon_sage_ham": NODES,
}
"""Experiment -> what it changes. A run of each task, model family and kind of sparsifier."""

has_ogb = find_spec("ogb") is not None
if has_ogb:
    RUNS["graph/ogbg_ppa_ham"] = [
        *("model.hidden=24", "model.layers=1", "batch_size=6", "epochs=2", "compute.threads=1"),
        "checkpoint.minutes=0",
    ]


class GraphFiles:
    """$HAM_DATA with a small graph in the format of chameleon, and a small set in that of ogbg-ppa."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.changes = folder, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        graph_files.write("chameleon", self.folder / "graphs")
        graph_files.shrink_sets(self.changes, "chameleon")
        self.changes.setenv("HAM_DATA", str(self.folder))
        self.changes.setattr(tasks, "digest", lambda content: "digest")  # it reads values
        graphs._read.cache_clear()
        graphs._read("chameleon", self.folder / "graphs")  # numpy reads it: on the simulated device it cannot
        if has_ogb:
            ogbg_files.use_ogbg(self.changes, self.folder / "graphs", "ogbg-ppa")

    def __exit__(self, *error: object) -> None:
        graphs._read.cache_clear()
        self.changes.undo()


def run(name: str, folder: Path, device: torch.device, around: Around) -> Outcome:
    """Train an experiment of RUNS, take it back to the checkpoint before the last, and resume it.

    Args:
        name: a key of RUNS.
        folder: an empty one.
        device: where.
        around: each step and the update of the training metrics.
    """
    cfg = load([f"+exp={name}", *RUNS[name], f"runs_dir={folder}"])
    directory = run_directory(cfg, config_hash(cfg))
    watched = Watched(device, around)
    with watched.patches():
        main.run_experiment(cfg)
        (directory / "summary.json").unlink()
        os.replace(directory / checkpoint.PREVIOUS, directory / checkpoint.LAST)
        main.run_experiment(cfg)
    return watched.outcome


class Watched:
    """Looks at the steps and the tensors of every run inside `patches`.

    Args:
        device: of the runs.
        around: each step.
    """

    def __init__(self, device: torch.device, around: Around) -> None:
        self.device, self.around = device, around
        self.recorder = Recorder(device)
        self.outcome = self.recorder.outcome

    def patches(self) -> ExitStack:
        """Runs on the device, in which the loop always wants to see the loss."""
        stack = ExitStack()
        for where, name, replacement in (
            (main, "setup_device", lambda cfg: self.device),
            (RunLogger, "should_log", lambda logger: True),
            (loop, "train_step", self._step(loop.train_step)),
            (loop, "finish_epoch", self._end(loop.finish_epoch)),
            (EpochMetrics, "update_loss", self._update(EpochMetrics.update_loss)),
        ):
            stack.enter_context(patch.object(where, name, replacement))
        return stack

    def _step(self, train_step: Callable[[Run, Any], Tensor]) -> Callable[[Run, Any], Tensor]:
        def step(run: Run, batch: Any) -> Tensor:
            self.recorder.look_at("batch", {"batch": batch})
            with self.around(run.step), self.recorder.updates_noted(run.sparsifier.masks, run.step):
                loss = train_step(run, batch)
            self.recorder.look_at("outputs", {"loss": loss})
            return loss

        return step

    def _update(self, update_loss: Callable[..., None]) -> Callable[..., None]:
        def update(metrics: EpochMetrics, step: int, loss: Tensor) -> None:
            with self.around(step):
                update_loss(metrics, step, loss)

        return update

    def _end(self, finish_epoch: Callable[..., None]) -> Callable[..., None]:
        def end(run: Run, received: list[str]) -> None:
            finish_epoch(run, received)
            when = f"after epoch {run.epoch}"
            self.recorder.look(when, run.model, run.sparsifier, run.optimizer)
            self.recorder.look_at(f"metrics {when}", vars(run.metrics))
            self.recorder.look_at(f"sign flips {when}", run.flips.state_dict())
            for part, subgraph in getattr(run.task, "subgraphs", {}).items():
                self.recorder.look_at(f"subgraph {part}", vars(subgraph))
                for block in subgraph.blocks:
                    self.recorder.look_at(f"edges {part}", vars(block.operator))

        return end


class FakeCsr:
    """In place of a CSR tensor, which has no fake kind: a product checks the devices of its operands.

    Args:
        parts: row starts, columns and values.
        size: rows and columns.
    """

    def __init__(self, parts: tuple[Tensor, ...], size: tuple[int, int]) -> None:
        self.parts, self.size = parts, size

    def __matmul__(self, dense: Tensor) -> Tensor:
        devices = {tensor.device for tensor in (*self.parts, dense)}
        if len(devices) > 1:
            raise RuntimeError(f"a sparse product of tensors on {sorted(map(str, devices))}")
        return dense.new_empty(self.size[0], dense.shape[1])


def graph_stand_ins() -> ExitStack:
    """What fake tensors cannot do in a run on a graph: sparse products, and numbers of neighbors.

    Every layer computes all nodes; the probe `graph` calls the replaced function. GAT is left out: its
    `sampled_addmm` needs a real CSR tensor.
    """

    def all_nodes(
        edges: Tensor, output_nodes: Tensor, layers: int, count: int, *, full_graph: bool
    ) -> tuple[Tensor, list[int]]:
        return torch.arange(count, device=edges.device), [count] * (layers + 1)

    def on_the_cpu(function: Callable) -> Callable:
        """Batches are put together of real tensors on the CPU, where values may be read."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with unset_fake_temporarily():
                result = function(*args, **kwargs)
                return iter(list(result)) if isinstance(result, Iterator) else result

        return call

    stack = ExitStack()
    load_set = on_the_cpu(GraphClassification.load.__func__)
    stack.enter_context(patch.object(GraphClassification, "load", classmethod(load_set)))
    for owner, name in ((GraphClassification, "batches"), (GraphTensors, "batch")):
        stack.enter_context(patch.object(owner, name, on_the_cpu(getattr(owner, name))))
    stack.enter_context(patch("ham.tasks.graphs.score", lambda *args, **kwargs: 50.0))
    csr = lambda starts, columns, values, size: FakeCsr((starts, columns, values), size)  # noqa: E731
    stack.enter_context(patch.object(sparse, "_csr", csr))
    stack.enter_context(patch.object(receptive, "_closure", all_nodes))
    return stack
