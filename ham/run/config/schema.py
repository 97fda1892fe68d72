"""The typed configuration of a run, filled in from configs/ and read by the rest of ham.run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ham.data import Data
from ham.experiments import SEEDS
from ham.models import Model
from ham.tasks import task_of
from pruning import Plain, Sparsifier

from .optimization import HamConfig, OptimizerConfig, SGDConfig, require


class Device(StrEnum):
    """Device of a run; auto is the GPU if one is available."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class WandbMode(StrEnum):
    """Values of wandb's own setting."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


LONGEST_TIMEOUT = 1e6  # seconds; torch cannot express times beyond some years


@dataclass(kw_only=True)
class ComputeConfig:
    """Options of the computation, which do not change what is computed.

    Args:
        device: device of the run.
        amp: True to use bfloat16 autocast.
        channels_last: memory layout of images and convolutions.
        compile: True to compile the network with torch.compile.
        threads: number of CPU threads of this process, 0 for torch's default; a resumed run keeps its first
            number.
        sync_bn: True to compute BatchNorm statistics over the images of all ranks; needs GPUs.
        timeout: number of seconds after which a rank that does not respond counts as hung.
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
        require(
            self.timeout <= LONGEST_TIMEOUT,
            f"compute.timeout must be at most {LONGEST_TIMEOUT:g} seconds, got {self.timeout:g}",
        )


@dataclass(kw_only=True)
class CheckpointConfig:
    """A checkpoint is written after every epoch and, inside an epoch, every `minutes`; 0: after every step.

    After epochs that are shorter than a second, at most one checkpoint is written per second.
    """

    minutes: float = 15.0

    def __post_init__(self) -> None:
        """Raise ValueError on a negative time."""
        require(self.minutes >= 0, f"checkpoint.minutes must not be negative, got {self.minutes:g}")


@dataclass(kw_only=True)
class WandbConfig:
    """Copy of metrics.jsonl on wandb."""

    mode: WandbMode = WandbMode.disabled
    project: str = "ham"


@dataclass(kw_only=True)
class Config:
    """One run.

    Args:
        epochs: number of passes over the training set.
        batch_size: samples per optimizer step, over all ranks and all accumulated parts.
        model: the network.
        data: the data set.
        optimizer: the base optimizer, its schedule and SAM.
        ham: HAM's step.
        sparsifier: the method that decides which weights are kept.
        parameterization: computation of a weight from trained parameters.
        compute: options of the computation.
        checkpoint: interval of checkpoints.
        wandb: copy of the metrics on wandb.
        seed: seed of every random stream of the run.
        runs_dir: folder of the run directories.
        resume: true to continue from the last checkpoint; false: delete an earlier run and start again.
        flips_every: number of epochs of an interval over which sign flips are counted.
        allow_unpublished: true to allow combinations that the paper does not have.
        name: the experiment, set by `load`.
        cell: the cell of the paper that it reproduces.
        demo: name of the scale, "" for the paper's.
        demo_values: key of the values that sections have for this scale, see `Model.demo`.
        overridden: True if values of the experiment were changed on the command line, set by `load`.
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
    demo_values: str = ""
    overridden: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range and on impossible combinations."""
        require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        require(self.seed in SEEDS, f"seed must be from 0 to {SEEDS[-1]}, got {self.seed}")
        require(self.flips_every >= 1, f"flips_every must be at least 1 epoch, got {self.flips_every}")
        require(bool(self.runs_dir), "runs_dir must name a folder, such as runs")
        self._check_batch()
        self._check_ham()
        self._check_matched_decay()
        momentum = self.optimizer.momentum if isinstance(self.optimizer, SGDConfig) else None
        self.sparsifier.check_rates(lr=self.optimizer.lr, momentum=momentum)
        task_of(self.data).check(self)

    def _check_batch(self) -> None:
        accumulate = self.optimizer.accumulate
        require(
            self.batch_size % accumulate == 0,
            f"optimizer.accumulate={accumulate} must divide batch_size={self.batch_size}",
        )
        part = self.batch_size // accumulate
        require(
            part >= self.model.min_batch_size,
            f"BatchNorm needs {self.model.min_batch_size} samples at once, got {part}: "
            "raise batch_size or lower optimizer.accumulate",
        )

    def _check_ham(self) -> None:
        require(
            self.allow_unpublished or not (self.ham.active and self.trains_factors),
            "HAM on the factors of m * w is not in the paper: use ham=none, parameterization=plain "
            "and another sparsifier, or allow_unpublished=true",
        )
        require(
            self.optimizer.clip_norm == 0 or not (self.ham.active and self.decouples_decay),
            "optimizer.clip_norm would clip the gradients of the factors (or thresholds) for SGD, but not "
            "for HAM: set it to 0",
        )

    def _check_matched_decay(self) -> None:
        matched = self.optimizer.matched_decay > 0
        require(
            not (matched and self.trains_factors),
            "optimizer.matched_decay does not reach the factors of m * w: use parameterization.frobenius",
        )
        require(
            not (matched and self.ham.beta > 0),
            "optimizer.matched_decay replaces ham.beta: use ham=none, or ham.beta=0",
        )

    @property
    def trains_factors(self) -> bool:
        """True if the weights are products m * w."""
        return self.parameterization.trains_factors or self.sparsifier.trains_factors

    @property
    def decouples_decay(self) -> bool:
        """True if decay is added to gradients that HAM reads, so that HAM needs them without it."""
        return self.trains_factors
