"""The typed configuration of a run: what `configs/` fills in and the rest of `ham.run` reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ham.data import Data, Graph
from ham.models import GNN, Model, ResNet
from pruning import STR, Dense, PILoT, Plain, Product, Sparsifier, Spred


class ConfigError(Exception):
    """A configuration that cannot run; the message is one line and names the cure."""


class Schedule(StrEnum):
    """Learning-rate schedules of `ham.optim.schedules`, or one rate throughout."""

    triangular = "triangular"
    cosine = "cosine"
    constant = "constant"


class Device(StrEnum):
    """Where a run computes; auto is the GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class WandbMode(StrEnum):
    """As wandb's own setting."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


class Ascent(StrEnum):
    """SAM's ascent follows the gradient averaged over the ranks, or each rank's own (m-sharpness)."""

    averaged = "averaged"
    per_rank = "per_rank"


class Rule(StrEnum):
    """Parameter rules of `ham.optim.groups`; convolutions: those of a graph network (App. G.6.2)."""

    not_norm = "not_norm"
    ndim2 = "ndim2"
    everything = "everything"
    convolutions = "convs.*"


@dataclass(kw_only=True)
class ScheduleConfig:
    """`warmup`: share of the steps that the rate rises, `start`: its first factor; null: the default."""

    kind: Schedule = Schedule.triangular
    warmup: float | None = None
    start: float | None = None


@dataclass(kw_only=True)
class OptimizerConfig:
    """What every optimizer has. `sam_rho` 0: no SAM; `clip_norm` 0: the gradient's norm is not clipped.

    `matched_decay`: weight decay beside `weight_decay` on the weights that `ham.select` chooses. HAM's beta
    decays them by lr * beta a step; SGD with momentum mu does the same with beta * (1 - mu), AdamW with beta.
    """

    lr: float
    weight_decay: float = 0.0
    matched_decay: float = 0.0
    decay: Rule = Rule.everything
    sam_rho: float = 0.0
    sam_adaptive: bool = False
    sam_freeze_bn: bool = True
    sam_ascent: Ascent = Ascent.averaged
    clip_norm: float = 0.0
    accumulate: int = 1
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    demo: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError on values no optimizer can run with."""
        _require(self.lr > 0 and math.isfinite(self.lr), f"optimizer.lr must be positive, got {self.lr:g}")
        for name in ("weight_decay", "matched_decay", "sam_rho", "clip_norm"):
            value = getattr(self, name)
            _require(
                value >= 0 and math.isfinite(value), f"optimizer.{name} must not be negative, got {value:g}"
            )
        _require(self.accumulate >= 1, f"optimizer.accumulate must be at least 1, got {self.accumulate}")


@dataclass(kw_only=True)
class SGDConfig(OptimizerConfig):
    """torch.optim.SGD."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on a momentum outside [0, 1)."""
        super().__post_init__()
        _require(0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), got {self.momentum:g}")
        _require(self.momentum > 0 or not self.nesterov, "optimizer.nesterov needs a momentum above 0")


@dataclass(kw_only=True)
class AdamWConfig(OptimizerConfig):
    """torch.optim.AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Raise ValueError on values torch refuses."""
        super().__post_init__()
        valid = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        _require(valid, f"optimizer.betas must be two numbers in [0, 1), got {list(self.betas)}")
        _require(self.eps > 0, f"optimizer.eps must be positive, got {self.eps:g}")


@dataclass(kw_only=True)
class AdamConfig(AdamWConfig):
    """torch.optim.Adam: weight decay is part of the gradient that its moments see."""


@dataclass(kw_only=True)
class HamConfig:
    """Arguments of `ham.HAM`; alpha = beta = 0: the base optimizer alone, `max_weight_norm` 0: no clip."""

    alpha: float = 0.0
    beta: float = 0.0
    clamp: float = 5.0
    select: Rule = Rule.not_norm
    mask_zero_grad: bool = False
    max_weight_norm: float = 0.0

    @property
    def active(self) -> bool:
        """Does any hyperbolic step happen?"""
        return self.alpha != 0 or self.beta != 0

    def __post_init__(self) -> None:
        """Raise ValueError on values HAM refuses."""
        _require(math.isfinite(self.alpha), f"ham.alpha must be finite, got {self.alpha}")
        _require(
            self.beta >= 0 and math.isfinite(self.beta),
            f"ham.beta must be finite and not negative, got {self.beta:g}",
        )
        _require(self.clamp > 0, f"ham.clamp must be positive, got {self.clamp:g}; the paper uses 5")
        unused = self.max_weight_norm > 0 and not self.active
        _require(
            not unused, "ham.max_weight_norm is part of HAM's step: set ham.alpha or ham.beta, or drop it"
        )
        _require(
            self.max_weight_norm >= 0,
            f"ham.max_weight_norm must not be negative, got {self.max_weight_norm:g}",
        )


@dataclass(kw_only=True)
class ComputeConfig:
    """How to compute.

    Args:
        device: where.
        amp: bfloat16 autocast.
        channels_last: memory layout of images and convolutions.
        compile: torch.compile the network.
        threads: of this process, 0 for torch's own number; a resumed run keeps the number it began with.
        sync_bn: BatchNorm over the images of all ranks; GPUs alone can do it.
        timeout: seconds after which ranks that do not answer count as hung.
    """

    device: Device = Device.auto
    amp: bool = False
    channels_last: bool = False
    compile: bool = False
    threads: int = 0
    sync_bn: bool = False
    timeout: float = 600.0

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        _require(self.threads >= 0, f"compute.threads must not be negative, got {self.threads}")
        _require(self.timeout > 0, f"compute.timeout must be positive seconds, got {self.timeout:g}")


@dataclass(kw_only=True)
class CheckpointConfig:
    """A checkpoint is written after every epoch and inside one every `minutes`; 0: after every step."""

    minutes: float = 15.0

    def __post_init__(self) -> None:
        """Raise ValueError on a negative time."""
        _require(self.minutes >= 0, f"checkpoint.minutes must not be negative, got {self.minutes:g}")


@dataclass(kw_only=True)
class WandbConfig:
    """Mirror of metrics.jsonl on wandb."""

    mode: WandbMode = WandbMode.disabled
    project: str = "ham"


@dataclass(kw_only=True)
class Config:
    """One run. `name`, `overridden` and `demo` tell what it is; see `ham.run.config.load`.

    `flips_every`: epochs of an interval over which sign flips are counted. `allow_unpublished`: run
    combinations that the paper does not have.
    """

    epochs: int
    batch_size: int
    model: Model
    data: Data
    optimizer: OptimizerConfig
    ham: HamConfig
    sparsifier: Sparsifier
    parameterization: Plain
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0
    runs_dir: str = "runs"
    resume: bool = True
    flips_every: int = 10
    allow_unpublished: bool = False
    name: str = "custom"
    cell: str = ""
    demo: str = ""
    overridden: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on impossible combinations."""
        _require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        _require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        _require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        accumulate = self.optimizer.accumulate
        _require(
            self.batch_size % accumulate == 0,
            f"optimizer.accumulate={accumulate} must divide batch_size={self.batch_size}",
        )
        part = self.batch_size // accumulate
        _require(
            part > 1 or not isinstance(self.model, ResNet),
            f"BatchNorm needs 2 images at once, got {part}: raise batch_size or lower optimizer.accumulate",
        )
        _require(self.flips_every >= 1, f"flips_every must be at least 1 epoch, got {self.flips_every}")
        _require(
            self.allow_unpublished or not (self.ham.active and self.factored),
            "HAM on the factors of m * w is not in the paper: use ham=none, parameterization=plain "
            "and another sparsifier, or allow_unpublished=true",
        )
        _require(
            self.optimizer.clip_norm == 0 or not (self.ham.active and self.decay_apart),
            "optimizer.clip_norm would clip what SGD sees of the factors' (or thresholds') gradients and not "
            "what HAM sees: leave it at 0",
        )
        matched = self.optimizer.matched_decay > 0
        _require(
            not (matched and self.factored),
            "optimizer.matched_decay does not reach the factors of m * w: use parameterization.frobenius",
        )
        _require(
            not (matched and self.ham.beta > 0),
            "optimizer.matched_decay stands in for ham.beta: use ham=none, or ham.beta=0",
        )
        if isinstance(self.sparsifier, STR) and isinstance(self.optimizer, SGDConfig):
            self.sparsifier.check_stability(self.optimizer.lr, self.optimizer.momentum)
        _require(bool(self.runs_dir), "runs_dir must name a folder, such as runs")
        self._check_graph()
        self.model.check(self.data.image_size)

    def _check_graph(self) -> None:
        """A graph is one batch, and the paper's node runs are dense."""
        graph = isinstance(self.data, Graph)
        if not graph and not isinstance(self.model, GNN):
            return
        _require(graph, "model=gnn reads graphs, and scaled-down images are none: use an experiment node/...")
        _require(isinstance(self.model, GNN), "data=graph needs model=gnn: use an experiment node/...")
        dense = isinstance(self.sparsifier, Dense) and not self.factored
        _require(dense, "graphs are trained dense: use sparsifier=dense and parameterization=plain")
        unused = {
            "batch_size": self.batch_size != 1,
            "optimizer.sam_rho": self.optimizer.sam_rho > 0,
            "compute.amp": self.compute.amp,
            "compute.channels_last": self.compute.channels_last,
            "compute.compile": self.compute.compile,
            "compute.sync_bn": self.compute.sync_bn,
        }
        for key, used in unused.items():
            _require(not used, f"{key} has no meaning for a graph, which is one batch: leave it out")

    @property
    def decay_apart(self) -> bool:
        """Does the method add decay to gradients that HAM would read? Factors' is; so is STR's ramp's."""
        ramp = isinstance(self.sparsifier, STR) and self.ham.select is not Rule.not_norm
        return self.factored or ramp

    @property
    def factored(self) -> bool:
        """Are the weights products m * w?"""
        return isinstance(self.parameterization, Product) or isinstance(self.sparsifier, (PILoT, Spred))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
