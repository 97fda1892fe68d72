"""The typed configuration of a run: what `configs/` fills in and the rest of `ham.run` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ham.data import Data, Graph
from ham.models import GNN, Model, ResNet
from pruning import STR, Dense, PILoT, Plain, Product, Sparsifier, Spred

from .optimization import HamConfig, OptimizerConfig, Rule, SGDConfig, require


class ConfigError(Exception):
    """A configuration that cannot run; the message is one line and names the cure."""


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
        require(self.threads >= 0, f"compute.threads must not be negative, got {self.threads}")
        require(self.timeout > 0, f"compute.timeout must be positive seconds, got {self.timeout:g}")


@dataclass(kw_only=True)
class CheckpointConfig:
    """A checkpoint is written after every epoch and inside one every `minutes`; 0: after every step.

    A graph's epochs are short: there after a minute, or `minutes` if that is less.
    """

    minutes: float = 15.0

    def __post_init__(self) -> None:
        """Raise ValueError on a negative time."""
        require(self.minutes >= 0, f"checkpoint.minutes must not be negative, got {self.minutes:g}")


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
        require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        accumulate = self.optimizer.accumulate
        require(
            self.batch_size % accumulate == 0,
            f"optimizer.accumulate={accumulate} must divide batch_size={self.batch_size}",
        )
        part = self.batch_size // accumulate
        require(
            part > 1 or not isinstance(self.model, ResNet),
            f"BatchNorm needs 2 images at once, got {part}: raise batch_size or lower optimizer.accumulate",
        )
        require(self.flips_every >= 1, f"flips_every must be at least 1 epoch, got {self.flips_every}")
        require(
            self.allow_unpublished or not (self.ham.active and self.factored),
            "HAM on the factors of m * w is not in the paper: use ham=none, parameterization=plain "
            "and another sparsifier, or allow_unpublished=true",
        )
        require(
            self.optimizer.clip_norm == 0 or not (self.ham.active and self.decay_apart),
            "optimizer.clip_norm would clip what SGD sees of the factors' (or thresholds') gradients and not "
            "what HAM sees: leave it at 0",
        )
        matched = self.optimizer.matched_decay > 0
        require(
            not (matched and self.factored),
            "optimizer.matched_decay does not reach the factors of m * w: use parameterization.frobenius",
        )
        require(
            not (matched and self.ham.beta > 0),
            "optimizer.matched_decay stands in for ham.beta: use ham=none, or ham.beta=0",
        )
        if isinstance(self.sparsifier, STR) and isinstance(self.optimizer, SGDConfig):
            self.sparsifier.check_stability(self.optimizer.lr, self.optimizer.momentum)
        require(bool(self.runs_dir), "runs_dir must name a folder, such as runs")
        self._check_graph()
        self.model.check(self.data.image_size)

    def _check_graph(self) -> None:
        """A graph is one batch, and the paper's node runs are dense."""
        graph = isinstance(self.data, Graph)
        if not graph and not isinstance(self.model, GNN):
            return
        require(graph, "model=gnn reads graphs, and scaled-down images are none: use an experiment node/...")
        require(isinstance(self.model, GNN), "data=graph needs model=gnn: use an experiment node/...")
        dense = isinstance(self.sparsifier, Dense) and not self.factored
        require(dense, "graphs are trained dense: use sparsifier=dense and parameterization=plain")
        unused = {
            "batch_size": self.batch_size != 1,
            "optimizer.sam_rho": self.optimizer.sam_rho > 0,
            "compute.amp": self.compute.amp,
            "compute.channels_last": self.compute.channels_last,
            "compute.compile": self.compute.compile,
            "compute.sync_bn": self.compute.sync_bn,
        }
        for key, used in unused.items():
            require(not used, f"{key} has no meaning for a graph, which is one batch: leave it out")

    @property
    def decay_apart(self) -> bool:
        """Does the method add decay to gradients that HAM would read? Factors' is; so is STR's ramp's."""
        ramp = isinstance(self.sparsifier, STR) and self.ham.select is not Rule.not_norm
        return self.factored or ramp

    @property
    def factored(self) -> bool:
        """Are the weights products m * w?"""
        return isinstance(self.parameterization, Product) or isinstance(self.sparsifier, (PILoT, Spred))
