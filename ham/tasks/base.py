"""What a run learns: data, network, loss and metrics. How it trains is the loop's part, in ham.run.loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ham.data import Data
from ham.data.checksums import digest
from ham.models import Model

Metrics = dict[str, Any]
T = TypeVar("T", bound="type[TaskFacts]")


class RunConfig(Protocol):
    """The parts of a run's configuration that a task reads."""

    epochs: int
    batch_size: int
    seed: int
    demo: str
    model: Model
    data: Data
    optimizer: Any
    compute: Any


class Progress(Protocol):
    """The parts of a run that a task reads to evaluate and to summarize."""

    cfg: Any
    epoch: int
    model: nn.Module
    network: nn.Module
    sparsifier: Any
    optimizer: torch.optim.Optimizer
    history: list[Metrics]


class TaskFacts(ABC):
    """What the configuration, reports and the end of a run need of a learning problem.

    Attributes:
        name: name of the kind of task; part of summary.json and configs/lock.json.
        reported: keys of the summary's metrics for the last and for the best epoch.
        trained_by: module of ham.run whose `train_or_resume` trains it.
        stores_history: records keep the metrics of every epoch, because figures show them.
        distributed: several processes can train it together.
        demos: names of the scales that `+demo=` can reduce it to.
        uses_graph_kernels: its networks use `ham.models.graph_kernels` on a CPU.
    """

    name: ClassVar[str]
    reported: ClassVar[tuple[str, str]]
    trained_by: ClassVar[str]
    stores_history: ClassVar[bool] = True
    distributed: ClassVar[bool] = True
    demos: ClassVar[frozenset[str]] = frozenset()
    uses_graph_kernels: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def check(cls, cfg: RunConfig) -> None:
        """Raise ValueError, in one line with the cure, where this configuration cannot be trained."""

    @classmethod
    @abstractmethod
    def describe(cls, summary: Metrics) -> list[str]:
        """Lines for the reader at the end of a run."""


class Task(TaskFacts):
    """A learning problem of the loop in ham.run. It owns the data's tensors; `load` creates it once per run.

    Attributes:
        logs_statistics: every epoch's line has the learning rate and statistics of the weights; without it an
            epoch may take milliseconds.
        smooths_labels: True if the loss follows `optimizer.label_smoothing`; other tasks reject that option.
    """

    trained_by = "main"
    logs_statistics: ClassVar[bool] = True
    smooths_labels: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def load(cls, cfg: RunConfig, device: torch.device, seed: int, rank: int, world_size: int) -> Self:
        """Read the data set.

        Args:
            cfg: configuration of the run.
            device: device of tensors.
            seed: seed of the order of the samples and of the augmentation; the same on every rank.
            rank: rank of this process.
            world_size: number of processes that train together.

        Raises:
            DataError: the data set is missing or damaged.
        """

    @abstractmethod
    def build_model(self, generator: torch.Generator) -> nn.Module:
        """The network on the device; only `generator` decides its initial weights."""

    @cached_property
    def data_digest(self) -> str:
        """Digest of the data; equal on all ranks, and before and after a resume."""
        return digest(self.data_content())

    def data_content(self) -> Any:
        """The data that the task reads, for `checksums.digest`; None: ranks do not compare it."""
        return None

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch on this rank."""

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of `epoch` from number `start` on; the same whatever was drawn before."""

    @abstractmethod
    def microbatches(self, batch: Any, parts: int) -> Iterator[tuple[Any, float]]:
        """Split a batch into `parts`, each with its weight in the batch's mean loss."""

    @abstractmethod
    def loss(self, network: nn.Module, part: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss over a part, its logits [N, classes] and its labels [N]."""

    @abstractmethod
    def evaluate(self, run: Progress) -> Metrics:
        """Metrics on held-out data after an epoch; a collective. The model's mode is not changed."""

    def initialization_batches(self) -> Iterable[tuple[Any, Tensor]]:
        """Batches of (inputs, labels) for methods that prune at initialization."""
        return ()

    def initialization_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of the network's outputs over such a batch."""
        return F.cross_entropy(outputs, labels)

    @abstractmethod
    def summarize(self, run: Progress) -> Metrics:
        """The task's part of summary.json: `metrics`, `sparsity` and what else describes the result."""


def refuse_options(options: Mapping[str, bool], what: str) -> None:
    """Raise ValueError for the first option that is used and does not apply to `what`.

    Args:
        options: dotted key -> whether the configuration uses it.
        what: the kind of learning problem, for the message.
    """
    for key, is_used in options.items():
        if is_used:
            raise ValueError(f"{key} does not apply to {what}: omit it")


def sparsity_of(sparsifier: Any) -> Metrics:
    """The `sparsity` of summary.json: target, fraction of zeros, kept and all weights, fraction by layer."""
    counts = list(sparsifier.counts())
    return {
        "target": getattr(sparsifier, "sparsity", 0.0),
        "overall": sparsifier.achieved_sparsity(),
        "kept": sum(kept for _, kept, _ in counts),
        "total": sum(total for _, _, total in counts),
        "layers": {name: 1 - kept / total for name, kept, total in counts},
    }


def describe_sparsity(sparsity: Metrics) -> str:
    """A line for the reader about `sparsity_of`."""
    return (
        f"sparsity     {100 * sparsity['overall']:.2f} %   "
        f"({sparsity['kept']:,} of {sparsity['total']:,} weights kept; "
        f"target {100 * sparsity['target']:g} %)"
    )


TASKS: dict[type[Data], type[TaskFacts]] = {}
"""Schema class of a data set -> the task that is trained on it and on its subclasses."""


def task_for(data: type[Data]) -> Callable[[T], T]:
    """Decorator: train this task on data sets of this schema class."""

    def decorate(task: T) -> T:
        TASKS[data] = task
        return task

    return decorate


def task_of(data: Data) -> type[TaskFacts]:
    """The task that is trained on a data set. Raises ValueError without one."""
    task = next((TASKS[kind] for kind in type(data).__mro__ if kind in TASKS), None)
    if task is None:
        name = type(data).__name__
        raise ValueError(
            f"no task trains on {name}: derive it from ImageData, or register a task with task_for"
        )
    return task
