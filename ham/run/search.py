"""STR's search: whole runs with one threshold decay after another, until one reaches the target sparsity."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pruning.str import Calibrate, stable_decay

from . import distributed
from .build import build_schedule
from .optimization import SGDConfig
from .record import read_summary, write_json
from .reopen import reopen
from .schema import Config, ConfigError

TOLERANCE = 0.004  # of the sparsity
TRIALS = 6
_BELOW = 0.95  # of the stability bound


def search(
    cfg: Config, folder: Path, identity: str, carry_out: Callable[[Config, Path, str], dict[str, Any]]
) -> dict[str, Any]:
    """Train trials in `folder`/trial<k>; the first within the tolerance, else the closest, becomes the run.

    Each trial is a run of its own that can be stopped and resumed; those that are done are not repeated.

    Returns:
        The chosen run's summary, with a list "search" of every trial's threshold decay and sparsity.

    Raises:
        ConfigError: the optimizer is not SGD, for which alone the decay's effect can be foretold.
    """
    if not isinstance(cfg.optimizer, SGDConfig):
        raise ConfigError("sparsifier.calibrate=search needs SGD: use calibrate=ramp with other optimizers")
    if distributed.told(cfg.resume and read_summary(folder) is not None):
        return read_summary(folder)
    if not cfg.resume:
        distributed.led(lambda: shutil.rmtree(folder, ignore_errors=True))
    momentum = cfg.optimizer.momentum
    lr_sum = _lr_sum(cfg)
    low, high = 0.0, _BELOW * stable_decay(cfg.optimizer.lr, momentum)
    decay = min(cfg.sparsifier.first_decay(lr_sum, momentum), high)
    trials: list[dict[str, Any]] = []
    for number in range(TRIALS):
        place = folder / f"trial{number}"
        sparsifier = replace(cfg.sparsifier, calibrate=Calibrate.none, threshold_decay=decay)
        trial = replace(cfg, sparsifier=sparsifier, resume=True)
        summary = carry_out(trial, place, identity)
        miss = summary["sparsity"]["overall"] - cfg.sparsifier.sparsity
        trials.append({"threshold_decay": decay, "sparsity": summary["sparsity"]["overall"], "miss": miss})
        if abs(miss) <= TOLERANCE:
            break
        low, high = (decay, high) if miss < 0 else (low, decay)
        if high - low < 1e-3 * high:
            break  # no decay is left to try
        decay = reopen(place)[2].next_decay(lr_sum, momentum)
        if not low < decay < high:
            decay = (low + high) / 2
    best = min(range(len(trials)), key=lambda k: abs(trials[k]["miss"]))
    distributed.led(lambda: _adopt(folder, best, trials))
    return read_summary(folder)


def _lr_sum(cfg: Config) -> float:
    loaders = cfg.data.load(batch_size=cfg.batch_size, seed=0, device=torch.device("cpu"))
    steps = cfg.epochs * len(loaders.train)
    factor = build_schedule(cfg, steps)
    return cfg.optimizer.lr * sum(factor(step) for step in range(steps))


def _adopt(folder: Path, best: int, trials: list[dict[str, Any]]) -> None:
    """The best trial's files become those of the run; the summary comes last: it says that all is there."""
    chosen = folder / f"trial{best}"
    for path in chosen.iterdir():
        if path.is_file() and path.name not in ("lock", "summary.json"):
            shutil.copy2(path, folder / path.name)
    write_json(folder / "summary.json", read_summary(chosen) | {"search": trials})
