"""Graph classification on OGB's sets: each graph has one label, several labels, or a short text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ham import distributed
from ham.data import derived_seed
from ham.data.ogbg import OGBG, GraphSet, score
from ham.models import GCNPlus, build_model
from ham.models.gcn_plus import GraphBatch, Head
from ham.models.graph_encoders import Encoder
from ham.models.sparse import to_device
from pruning.scores import evaluation_mode
from pruning.topk import NotFinite

from .base import Metrics, Progress, RunConfig, describe_sparsity, refuse_options, sparsity_of, task_for
from .best_epoch import BestEpochTask, describe_best
from .graph_batches import GraphTensors, batches_of_similar_size

_ENCODERS = {"ogbg-ppa": Encoder.proteins, "ogbg-code2": Encoder.code}
_METRICS = {"rocauc": "ROC AUC", "ap": "average precision", "acc": "accuracy", "F1": "F1"}
_EVALUATION_NODES = 16384
"""Nodes of a batch of evaluation, about."""


@task_for(OGBG)
@dataclass
class GraphClassification(BestEpochTask):
    """The graphs of cfg.data, the network of cfg.model. Batches are put together on the CPU.

    The reported metric is the best validation metric over the epochs (Table 12), with the test metric of that
    epoch beside it.

    Attributes:
        tensors: tensors of the set, from which batches are taken.
        known: number of known labels of each graph.
        groups: batches of evaluation by part: index of the first graph within the part, and indices of all.
    """

    name = "graphs"
    uses_graph_kernels = True
    stores_history = False
    demos = frozenset({"epochs20"})

    cfg: RunConfig
    device: torch.device
    data: GraphSet
    tensors: GraphTensors
    known: list[int]
    groups: dict[str, list[tuple[int, list[int]]]]
    seed: int
    rank: int
    world_size: int

    @classmethod
    def check(cls, cfg: Any) -> None:
        """Raise ValueError unless a GCN+ is trained, with the encoder and the head of the data set."""
        if not isinstance(cfg.model, GCNPlus):
            raise ValueError("data=ogbg needs model=gcn_plus: use an experiment graph/...")
        unused = {
            "optimizer.label_smoothing": cfg.optimizer.label_smoothing > 0,
            "compute.amp": cfg.compute.amp,
            "compute.channels_last": cfg.compute.channels_last,
            "compute.compile": cfg.compute.compile,
        }
        refuse_options(unused, "graph classification")
        if (cfg.model.walk_channels > 0) != (cfg.data.walk_steps > 0):
            raise ValueError(
                "model.walk_channels and data.walk_steps go together: set both, or both to 0, got "
                f"{cfg.model.walk_channels} and {cfg.data.walk_steps}"
            )
        encoder = _ENCODERS.get(cfg.data.name, Encoder.molecules)
        if cfg.model.encoder is not encoder:
            raise ValueError(
                f"model.encoder={cfg.model.encoder} does not read {cfg.data.name}: set {encoder}"
            )
        if (cfg.model.head is Head.positions) != (cfg.data.facts.kind == "tokens"):
            raise ValueError(f"model.head={cfg.model.head} does not fit the labels of {cfg.data.name}")
        cfg.model.check(cfg.data.image_size)

    @classmethod
    def load(cls, cfg: RunConfig, device: torch.device, seed: int, rank: int, world_size: int) -> Self:
        """Read the data set. Raises DataError."""
        data = cfg.data.load_graphs()
        tensors = GraphTensors(
            *(data.node_starts, data.edge_starts, data.nodes, data.walks),
            *(data.sources, data.targets, data.edges),
        )
        known = data.labels.isnan().logical_not().sum(dim=1).tolist()
        sizes = data.node_starts.diff()
        groups = {
            part: [
                (int(rows[0]), graphs[rows].tolist())
                for rows in batches_of_similar_size(sizes[graphs], _EVALUATION_NODES)
            ]
            for part, graphs in data.parts.items()
        }
        return cls(cfg, device, data, tensors, known, groups, seed, rank, world_size)

    def build_model(self, generator: torch.Generator) -> nn.Module:
        """The network of cfg.model on the device."""
        sizes = dict(num_classes=self.cfg.data.num_classes, walk_steps=self.cfg.data.walk_steps)
        model = build_model(self.cfg.model, generator=generator, **sizes).to(self.device)
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if self.cfg.compute.sync_bn else model

    def data_content(self) -> Any:
        """The graphs and their split."""
        return vars(self.data)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches; the last one may be smaller, with at least two graphs on every rank."""
        full, remainder = divmod(len(self.data.parts["train"]), self.cfg.batch_size)
        parts = self.world_size * self.cfg.optimizer.accumulate
        return full + (remainder >= 2 * parts)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[list[int], float]]:
        """Indices of this rank's graphs, and the weight of their mean loss among the ranks.

        The mean over the ranks of weight times mean loss is the mean over the known labels of the batch.
        """
        train = self.data.parts["train"]
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order {epoch}"))
        order = train[torch.randperm(len(train), generator=generator)]
        for step in range(start, self.steps_per_epoch):
            batch = order[step * self.cfg.batch_size : (step + 1) * self.cfg.batch_size]
            own = batch[self.rank :: self.world_size].tolist()
            yield own, self.world_size * self._label_fraction(own, batch.tolist())

    def microbatches(self, batch: tuple[list[int], float], parts: int) -> Iterator[tuple[list[int], float]]:
        """Indices of the graphs of each part, weighted by their known labels."""
        graphs, weight = batch
        bounds = [len(graphs) * number // parts for number in range(parts + 1)]
        for begin, end in pairwise(bounds):
            yield graphs[begin:end], weight * self._label_fraction(graphs[begin:end], graphs)

    def _label_fraction(self, part: list[int], graphs: list[int]) -> float:
        """Fraction of the known labels of `graphs` that belong to `part`."""
        return sum(self.known[i] for i in part) / max(sum(self.known[i] for i in graphs), 1)

    def loss(self, network: nn.Module, part: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss over the known labels of a part, their logits [N, classes] and labels [N].

        With binary labels the logits are [N, 2]: 0, and that of class 1.
        """
        labels = self.data.labels[part]
        outputs = network(self.batch(part))
        logits, labels = with_labels(outputs, labels)
        loss = mean_loss(logits, labels)
        if logits.shape[1] == 1:  # class 0 has the logit 0
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return loss, logits, labels.long()

    def batch(self, graphs: list[int]) -> GraphBatch:
        """The graphs with these indices on the device."""
        return self.tensors.batch(graphs).to(self.device)

    def initialization_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over the known labels."""
        return mean_loss(*with_labels(outputs, labels))

    def initialization_batches(self) -> Iterable[tuple[GraphBatch, Tensor]]:
        """The first epoch's training batches."""
        for graphs, _ in self.batches(epoch=0):
            yield self.batch(graphs), self.data.labels[graphs]

    @torch.no_grad()
    def metric(self, model: nn.Module, part: str) -> float:
        """OGB's metric over a part's graphs, in percent; each rank computes a share of the predictions."""
        distributed.broadcast_buffers(model)
        graphs, facts = self.data.parts[part], self.cfg.data.facts
        width = facts.outputs if facts.kind == "binary" else facts.positions
        predicted = torch.zeros(len(graphs), width, device=self.device)
        with evaluation_mode(model):
            for begin, indices in self.groups[part][self.rank :: self.world_size]:
                logits = model(self.batch(indices))
                predicted[begin : begin + len(indices)] = predictions(logits, facts.kind)
        predicted = distributed.all_reduce_sum(predicted).cpu()  # others' rows are 0
        if not bool(predicted.isfinite().all()):
            raise NotFinite(f"a logit of the {part} graphs is not finite")
        return score(
            self.data.name,
            predicted if facts.kind == "binary" else predicted.long(),
            self.data.labels[graphs],
            vocabulary=self.data.vocabulary,
            words=[self.data.words[i] for i in graphs.tolist()] if self.data.words else [],
        )

    def summarize(self, run: Progress) -> Metrics:
        """The set, HAM's values, the metrics and the sparsity."""
        return {
            "graphs": {
                "name": self.data.name,
                "metric": self.cfg.data.facts.metric,
                "graphs": {part: len(numbers) for part, numbers in self.data.parts.items()},
            },
            "ham": {"alpha": run.cfg.ham.alpha, "beta": run.cfg.ham.beta},
            "metrics": self.best_metrics(run),
            "sparsity": sparsity_of(run.sparsifier),
        }

    @classmethod
    def describe(cls, summary: Metrics) -> list[str]:
        """The best validation metric, the test metric, and the sparsity."""
        name = _METRICS[summary["graphs"]["metric"]]
        return [*describe_best(summary["metrics"], name), describe_sparsity(summary["sparsity"])]


def with_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits that have a label, one row per label, and these labels.

    Args:
        logits: [graphs, outputs], or [graphs, positions, words].
        labels: labels on the CPU. float [graphs, tasks] of 0, 1 and nan (unknown), one task per output; or
            int64 [graphs, 1], or int64 [graphs, positions].

    Returns:
        logits [N, 1] and float labels [N] of the known ones; or logits [N, classes] and int64 labels [N].
    """
    if not labels.is_floating_point():
        return logits.reshape(labels.numel(), -1), to_device(labels.flatten(), logits.device)
    known = labels.isnan().logical_not().flatten().nonzero().flatten()  # on the CPU: no host sync
    labels = to_device(labels.flatten()[known], logits.device)
    return logits.reshape(-1, 1).index_select(0, to_device(known, logits.device)), labels


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of `with_labels`, its mean over the labels; 0 without labels.

    For words this is the mean over the five positions of each position's mean, as in OGB's example.
    """
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="sum") / max(len(labels), 1)


def predictions(logits: Tensor, kind: str) -> Tensor:
    """What OGB's metric needs: the logits of binary labels, else the index of the most likely class or word.

    Args:
        logits: [graphs, outputs], or [graphs, positions, words].
        kind: kind of the labels, see `ham.data.ogbg`.

    Returns:
        float32 [graphs, tasks], [graphs, 1] or [graphs, positions]; nan where a logit is not finite.
    """
    if kind == "binary":
        return logits
    chosen = logits.argmax(dim=-1, keepdim=kind == "classes").float()
    finite = logits.isfinite().all(dim=-1, keepdim=kind == "classes")
    return chosen.where(finite, torch.nan)
