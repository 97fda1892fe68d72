"""A run in memory: what a training loop needs, and its state for checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ham import distributed
from ham.data import derived_seed
from ham.optim import HAM
from ham.tasks import Task
from pruning import Sparsifier
from pruning.stats import SignFlips

from .c_operations import operations_in_c
from .config import Config
from .logger import NullLogger, RunLogger
from .metrics import EpochMetrics


@dataclass
class Run:
    """One training run. `step` iterations are done, `batch` of them in `epoch`.

    Attributes:
        cfg: the configuration.
        config_hash: hash of the configuration.
        device: device of this rank.
        task: data, loss and metrics.
        model: the bare network.
        network: the model as it is called: compiled, and averaging gradients over the ranks.
        sparsifier: sparsifier attached to the model.
        optimizer: the base optimizer.
        ham: HAM on the optimizer; None without it.
        scheduler: scheduler of the learning rate.
        logger: logger of this run; a `NullLogger` on ranks other than 0.
        flips: counter of sign flips.
        metrics: sums over the current epoch.
        history: one line of metrics per finished epoch, as in metrics.jsonl.
    """

    cfg: Config
    config_hash: str
    device: torch.device
    task: Task
    model: nn.Module
    network: nn.Module
    sparsifier: Sparsifier
    optimizer: torch.optim.Optimizer
    ham: HAM | None
    scheduler: LambdaLR
    logger: RunLogger | NullLogger
    flips: SignFlips
    metrics: EpochMetrics
    epoch: int = 0
    batch: int = 0
    step: int = 0
    saved_at: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def params(self) -> list[nn.Parameter]:
        """All trained parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def shared_state(self) -> dict[str, Any]:
        """The state that is the same on all ranks, once they have rank 0's buffers."""
        return {
            "progress": {name: getattr(self, name) for name in ("epoch", "batch", "step")},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "ham": self.ham.state_dict() if self.ham else {},
            "flips": self.flips.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; a collective."""
        cuda = self.device.type == "cuda"
        return {
            **self.shared_state(),
            "config_hash": self.config_hash,
            "logger": distributed.on_rank_zero(self.logger.state_dict) or {},
            "metrics": self.metrics.state_dict(),
            "history": self.history,
            "rng": {
                "cpu": distributed.all_gather(torch.get_rng_state()),
                "cuda": distributed.all_gather(torch.cuda.get_rng_state()) if cuda else None,
            },
            "threads": torch.get_num_threads(),
            "c_operations": operations_in_c(self.cfg, self.device),
            "data": self.task.data_digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint.

        Raises:
            ValueError: its optimizer is of another kind, or has tensors of other shapes than the parameters.
            Exception: an error of a module that the state does not fit, see `checkpoint.explain_mismatch`.
        """
        self.model.load_state_dict(state["model"])
        fused = [group.get("fused") for group in self.optimizer.param_groups]
        _check_optimizer_state(self.optimizer, state["optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, value in zip(self.optimizer.param_groups, fused, strict=True):
            group["fused"] = value  # of this device, not of the device the checkpoint was written on
        self.scheduler.load_state_dict(state["scheduler"])
        self.sparsifier.load_state_dict(state["sparsifier"])
        if self.ham:
            self.ham.load_state_dict(state["ham"])
        self.flips.load_state_dict(state["flips"])
        self.metrics.load_state_dict(state["metrics"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self.history = state["history"]
        self._load_rng(state["rng"])

    def _load_rng(self, streams: dict[str, Tensor | None]) -> None:
        """Restore this rank's random stream; a rank that the checkpoint does not have gets a new one."""
        rank = distributed.world().rank
        if rank >= len(streams["cpu"]):
            torch.manual_seed(derived_seed(self.cfg.seed, f"training {rank} from {self.step}"))
            return
        torch.set_rng_state(streams["cpu"][rank].clone())  # a view has the storage of all ranks
        if self.device.type == "cuda" and streams["cuda"] is not None:
            torch.cuda.set_rng_state(streams["cuda"][rank].clone())


def _check_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise ValueError if a state is of another kind of optimizer, which torch notices only at a step."""
    own, other = optimizer.param_groups[0].keys(), state["param_groups"][0].keys()
    if own - other and other - own:  # versions of torch add keys, kinds of optimizers exchange them
        kinds = f"its groups have {min(other - own)!r}, this run's {min(own - other)!r}"
        raise ValueError(f"it was saved with another kind of optimizer: {kinds}")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != params[number].shape:
                raise ValueError(f"{name} of parameter {number} has shape {list(value.shape)}")
