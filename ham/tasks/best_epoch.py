"""Tasks that report the best validation metric over the epochs, and the test metric of that epoch."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import nn

from .base import Metrics, Progress, Task


class BestEpochTask(Task):
    """Evaluates the validation part after each epoch, and the test part where it can matter."""

    reported = ("valid_last", "valid_best")

    @abstractmethod
    def metric(self, model: nn.Module, part: str) -> float:
        """The data set's metric over a part, valid or test, in percent; a collective."""

    def evaluate(self, run: Progress) -> Metrics:
        """The validation metric; the test metric only at a new best epoch and at the last."""
        metrics = {"valid": self.metric(run.model, "valid")}
        best = max((line["valid"] for line in run.history), default=-math.inf)
        if metrics["valid"] > best or run.epoch + 1 == run.cfg.epochs:
            metrics["test"] = self.metric(run.model, "test")
        return metrics

    def best_metrics(self, run: Progress) -> Metrics:
        """`valid_best` is what the paper's tables print, `test_at_best` the test metric of that epoch."""
        best, last = max(run.history, key=lambda line: line["valid"]), run.history[-1]
        return {
            "valid_best": best["valid"],
            "test_at_best": best["test"],
            "best_epoch": best["epoch"],
            "valid_last": last["valid"],
            "test_last": last["test"],
            "train_loss": last["train_loss"],
        }


def describe_best(metrics: Metrics, name: str) -> list[str]:
    """The best validation metric and the test metrics, for the reader; `name` is that of the metric."""
    return [
        f"valid        {metrics['valid_best']:.2f} % {name}, the best, in epoch {metrics['best_epoch'] + 1}",
        f"test         {metrics['test_at_best']:.2f} % in that epoch, "
        f"{metrics['test_last']:.2f} % in the last",
    ]
