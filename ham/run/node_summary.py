"""The numbers of a node classification run: metrics of a part of the nodes, and summary.json."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .node_build import NodeRun
from .record import Record


@torch.no_grad()
def evaluate(run: NodeRun, part: str) -> float:
    """The set's metric over the nodes of a part, in percent."""
    run.model.eval()
    logits = run.model(run.views[part])
    labels = run.task.labels[run.task.nodes[part]]
    if run.task.metric == "roc_auc":
        return 100 * roc_auc(logits[:, 1] - logits[:, 0], labels)
    return 100 * int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Chance that a node of class 1 scores above one of class 0, ties counting half."""
    _, place, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]  # from 1, ties share their mean
    positive = labels == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    return float(ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)


@torch.no_grad()
def negative_share(run: NodeRun) -> dict[str, float]:
    """Share of the weights under HAM where nHAM's 1 + alpha abs(theta) is negative."""
    if run.cfg.ham.alpha >= 0:
        return {}
    groups = [group for group in run.optimizer.param_groups if group.get("ham_alpha")]
    params = [p for group in groups for p in group["params"]]
    beyond = sum(int((p.abs() > -1 / run.cfg.ham.alpha).sum()) for p in params)
    return {"negative_metric": beyond / sum(p.numel() for p in params)}


def summarize(run: NodeRun) -> dict[str, Any]:
    """summary.json. `valid_best` is what the paper's tables print, `test_at_best` the test metric then."""
    best, last = run.best, run.lines[-1]
    params = [p for p in run.model.parameters()]
    total = sum(p.numel() for p in params)
    kept = sum(int(p.count_nonzero()) for p in params)
    seconds = run.record.seconds()
    shares = {
        f"negative_metric_{when}": line["negative_metric"]
        for when, line in (("best", best), ("last", last))
        if "negative_metric" in line
    }
    return {
        "exp": run.cfg.name,
        "cell": run.cfg.cell,
        "demo": None,
        "overridden": run.cfg.overridden,
        "seed": run.cfg.seed,
        "config_hash": run.identity,
        "status": "done",
        "epochs": run.cfg.epochs,
        "graph": {
            "name": run.task.name,
            "metric": run.task.metric,
            "nodes": {part: len(nodes) for part, nodes in run.task.nodes.items()},
        },
        "ham": {"alpha": run.cfg.ham.alpha, "beta": run.cfg.ham.beta},
        "metrics": {
            "valid_best": best["valid"],
            "test_at_best": best["test"],
            "best_epoch": best["epoch"],
            "valid_last": last["valid"],
            "test_last": last["test"],
            "train_loss": last["train_loss"],
            **shares,
        },
        "sparsity": {"target": 0.0, "overall": 1 - kept / total, "kept": kept, "total": total, "layers": {}},
        "timing": {
            "seconds": round(seconds, 1),
            "steps": run.epoch,
            "steps_per_second": round(run.epoch / seconds, 2),
        },
        "provenance": run.record.provenance(),
    }


def tell(record: Record, summary: dict[str, Any]) -> dict[str, Any]:
    """The last lines for the reader."""
    m, graph = summary["metrics"], summary["graph"]
    metric = {"accuracy": "accuracy", "roc_auc": "ROC AUC"}[graph["metric"]]
    record.say(f"valid        {m['valid_best']:.2f} % {metric}, the best, in epoch {m['best_epoch'] + 1}")
    record.say(f"test         {m['test_at_best']:.2f} % then, {m['test_last']:.2f} % after the last epoch")
    record.say(f"run          {record.folder}")
    return summary
