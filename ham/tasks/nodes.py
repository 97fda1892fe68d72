"""Node classification: one graph is one batch, and an epoch is one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ham.data import Graph, NodeData
from ham.models import GNN, build_model
from ham.models.gnn import Norm
from ham.models.receptive import Subgraph, edge_weights, inputs
from pruning import Dense
from pruning.scores import evaluation_mode

from .base import Metrics, Progress, RunConfig, refuse_options, task_for
from .best_epoch import BestEpochTask, describe_best


@task_for(Graph)
@dataclass
class NodeClassification(BestEpochTask):
    """The graph of cfg.data; the network computes logits of one part's nodes: train, valid or test.

    The reported metric is the best validation metric over the epochs (App. G.6.2), with the test metric of
    that epoch beside it.
    """

    name = "nodes"
    uses_graph_kernels = True
    stores_history = False
    logs_statistics = False
    distributed = False

    cfg: RunConfig
    device: torch.device
    data: NodeData
    subgraphs: dict[str, Subgraph]

    @classmethod
    def check(cls, cfg: Any) -> None:
        """Raise ValueError unless a dense GNN is trained on one batch: the paper's node runs are dense."""
        if not isinstance(cfg.model, GNN):
            raise ValueError("data=graph needs model=gnn: use an experiment node/...")
        if not isinstance(cfg.sparsifier, Dense) or cfg.trains_factors:
            raise ValueError("graphs are trained dense: use sparsifier=dense and parameterization=plain")
        if cfg.optimizer.label_smoothing > 0:
            raise ValueError("optimizer.label_smoothing applies only to images: omit it")
        unused = {
            "batch_size": cfg.batch_size != 1,
            "optimizer.sam_rho": cfg.optimizer.sam_rho > 0,
            "compute.amp": cfg.compute.amp,
            "compute.channels_last": cfg.compute.channels_last,
            "compute.compile": cfg.compute.compile,
            "compute.sync_bn": cfg.compute.sync_bn,
        }
        refuse_options(unused, "a graph, which is one batch")
        cfg.model.check(cfg.data.image_size)

    @classmethod
    def load(cls, cfg: RunConfig, device: torch.device, seed: int, rank: int, world_size: int) -> Self:
        """Read the graph and the split of the run's seed. Raises DataError."""
        data = cfg.data.load_graph(cfg.seed, device)
        return cls(cfg, device, data, build_subgraphs(cfg.model, data))

    def build_model(self, generator: torch.Generator) -> nn.Module:
        """The network of cfg.model on the device."""
        sizes = dict(num_classes=self.cfg.data.num_classes, num_features=self.data.features.shape[1])
        return build_model(self.cfg.model, generator=generator, **sizes).to(self.device)

    def data_content(self) -> Any:
        """The graph and its split."""
        return vars(self.data)

    @property
    def steps_per_epoch(self) -> int:
        """One: the graph is the batch."""
        return 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[str]:
        """The name of the training nodes' part."""
        return iter(["train"][start:])

    def microbatches(self, batch: str, parts: int) -> Iterator[tuple[str, float]]:
        """The entire graph: it is not split."""
        yield batch, 1.0

    def loss(self, network: nn.Module, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy over a part's nodes, their logits and labels."""
        logits, labels = network(self.subgraphs[part]), self.labels(part)
        return F.cross_entropy(logits, labels), logits, labels

    def labels(self, part: str) -> Tensor:
        """Labels of a part's nodes, int64 [N]."""
        return self.data.labels[self.data.nodes[part]]

    def evaluate(self, run: Progress) -> Metrics:
        """As the base class, with `negative_metric_share` where the test nodes are evaluated."""
        metrics = super().evaluate(run)
        return metrics | negative_metric_share(run) if "test" in metrics else metrics

    @torch.no_grad()
    def metric(self, model: nn.Module, part: str) -> float:
        """The data set's metric over a part's nodes, in percent."""
        with evaluation_mode(model):
            logits, labels = model(self.subgraphs[part]), self.labels(part)
        if self.data.metric == "roc_auc":
            return 100 * roc_auc(logits[:, 1] - logits[:, 0], labels)
        return 100 * int((logits.argmax(dim=1) == labels).sum()) / len(labels)

    def summarize(self, run: Progress) -> Metrics:
        """The graph, HAM's values, the metrics and the fraction of zeros in all parameters."""
        best, last = max(run.history, key=lambda line: line["valid"]), run.history[-1]
        params = list(run.model.parameters())
        total, kept = sum(p.numel() for p in params), sum(int(p.count_nonzero()) for p in params)
        fractions = {
            f"negative_metric_{when}": line["negative_metric"]
            for when, line in (("best", best), ("last", last))
            if "negative_metric" in line
        }
        nodes = {part: len(numbers) for part, numbers in self.data.nodes.items()}
        return {
            "graph": {"name": self.data.name, "metric": self.data.metric, "nodes": nodes},
            "ham": {"alpha": run.cfg.ham.alpha, "beta": run.cfg.ham.beta},
            "metrics": self.best_metrics(run) | fractions,
            "sparsity": {
                "target": 0.0,
                "overall": 1 - kept / total,
                "kept": kept,
                "total": total,
                "layers": {},
            },
        }

    @classmethod
    def describe(cls, summary: Metrics) -> list[str]:
        """The best validation metric and the test metric."""
        metric = {"accuracy": "accuracy", "roc_auc": "ROC AUC"}[summary["graph"]["metric"]]
        return describe_best(summary["metrics"], metric)


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Probability that a node of class 1 scores above one of class 0; ties count half.

    Args:
        scores: float [N].
        labels: int64 [N], 0 or 1.
    """
    _, position, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[position]  # from 1; ties share their mean
    positive = labels == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    return float(ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)


@torch.no_grad()
def negative_metric_share(run: Progress) -> dict[str, float]:
    """Fraction of the weights under HAM where nHAM's inverse metric 1 + alpha |theta| is negative."""
    if run.cfg.ham.alpha >= 0:
        return {}
    groups = [group for group in run.optimizer.param_groups if group.get("ham_alpha")]
    params = [p for group in groups for p in group["params"]]
    negative = sum(int((p.abs() > -1 / run.cfg.ham.alpha).sum()) for p in params)
    return {"negative_metric": negative / sum(p.numel() for p in params)}


def build_subgraphs(spec: GNN, data: NodeData) -> dict[str, Subgraph]:
    """What each part's nodes depend on. In training BatchNorm's statistics are over the entire graph."""
    edges, weights = edge_weights(str(spec.conv), data.edges, len(data.labels), data.features.dtype)
    features = inputs(data.features)
    return {
        part: Subgraph(
            *(features, edges, weights, nodes, spec.layers),
            full_graph=part == "train" and spec.norm is Norm.batch,
        )
        for part, nodes in data.nodes.items()
    }
