"""Curves over epochs: mean and sample standard deviation over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Panel
from .schema import is_number


@dataclass(frozen=True)
class Curve:
    """Mean over seeds at each epoch, with the sample standard deviation (0 for a single run)."""

    epochs: tuple[int, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]


def curve(runs: Sequence[list[dict]], panel: Panel) -> Curve:
    """One series of a panel.

    Args:
        runs: the epochs of each seed, as in metrics.jsonl.
        panel: the metric; every `every`th epoch, counted from 1, is a point.

    Returns:
        The points at which every run has a finite value.
    """
    name = panel.metric
    by_run = [
        {line["epoch"] + 1: panel.scale * line[name] for line in lines if is_number(line.get(name))}
        for lines in runs
    ]
    common = set.intersection(*map(set, by_run)) if by_run else set()
    chosen = tuple(epoch for epoch in sorted(common) if epoch % panel.every == 0)
    values = [[points[epoch] for points in by_run] for epoch in chosen]
    stds = tuple(statistics.stdev(v) if len(v) > 1 else 0.0 for v in values)
    return Curve(chosen, tuple(map(statistics.mean, values)), stds)
