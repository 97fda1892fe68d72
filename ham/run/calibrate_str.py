"""STR's calibration: complete runs with different threshold decays, until one reaches the target sparsity."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ham import distributed
from pruning.str import Calibrate, stable_decay

from .checkpoint import check_owner
from .config import Config, ConfigError
from .config.optimization import SGDConfig
from .directory import FILES, RunDirectory, read_summary
from .load import load_run
from .logger import NullLogger, RunLogger

TOLERANCE = 0.004  # of the sparsity
TRIALS = 6
_STABLE_FRACTION = 0.95  # of the stability bound, for the largest decay that is tried


def calibrate_str(
    cfg: Config,
    logger: RunLogger | NullLogger,
    config_hash: str,
    train_or_resume: Callable[[Config, Path, str], dict[str, Any]],
) -> dict[str, Any]:
    """Train trials in `folder`/trial<k>; the first within the tolerance, else the closest, becomes the run.

    Each trial is a run of its own that can be stopped and resumed; finished trials are not repeated.

    Args:
        cfg: the configuration, see `check_optimizer`.
        logger: logger of the run, which holds the lock of `folder`.
        config_hash: hash of the configuration.
        train_or_resume: function that trains, or resumes, the run in a directory.

    Returns:
        The chosen run's summary, with a list "search" of every trial's threshold decay and sparsity.
    """
    folder = logger.folder
    if not cfg.resume:
        distributed.on_rank_zero(lambda: _clear(logger.directory))
    momentum = cfg.optimizer.momentum
    lr_sum = _lr_sum(cfg)
    low, high = 0.0, _STABLE_FRACTION * stable_decay(cfg.optimizer.lr, momentum)
    decay = min(cfg.sparsifier.first_decay(lr_sum, momentum), high)
    trials: list[dict[str, Any]] = []
    for number in range(TRIALS):
        trial_folder = folder / f"trial{number}"
        sparsifier = replace(cfg.sparsifier, calibrate=Calibrate.none, threshold_decay=decay)
        trial = replace(cfg, sparsifier=sparsifier, resume=True)
        summary = train_or_resume(trial, trial_folder, config_hash)
        miss = summary["sparsity"]["overall"] - cfg.sparsifier.sparsity
        trials.append({"threshold_decay": decay, "sparsity": summary["sparsity"]["overall"], "miss": miss})
        if abs(miss) <= TOLERANCE:
            break
        low, high = (decay, high) if miss < 0 else (low, decay)
        if high - low < 1e-3 * high:
            break  # the bracket is too narrow for another trial
        decay = distributed.from_rank_zero(partial(_next_decay, trial_folder, lr_sum, momentum))
        if not low < decay < high:
            decay = (low + high) / 2
    best = min(range(len(trials)), key=lambda k: abs(trials[k]["miss"]))
    return distributed.from_rank_zero(lambda: _promote_trial(logger.directory, best, trials))


def check_optimizer(cfg: Config) -> None:
    """Raise ConfigError unless the optimizer is SGD, for which the effect of the decay can be predicted."""
    if not isinstance(cfg.optimizer, SGDConfig):
        raise ConfigError("sparsifier.calibrate=search needs SGD: use calibrate=ramp with other optimizers")


def _next_decay(trial: Path, lr_sum: float, momentum: float) -> float:
    return load_run(trial)[2].next_decay(lr_sum, momentum)


def _clear(directory: RunDirectory) -> None:
    """Delete an earlier calibration. Raises ConfigError, before that, if another process works on a trial."""
    folders = [
        path for path in directory.folder.glob("trial[0-9]") if path.is_dir() and not path.is_symlink()
    ]
    with ExitStack() as locks:
        trials = []
        for path in folders:
            trials.append(RunDirectory(path))
            locks.callback(trials[-1].unlock)
        for part in (directory, *trials):
            part.clear()


def _lr_sum(cfg: Config) -> float:
    loaders = cfg.data.load(batch_size=cfg.batch_size, seed=0, device=torch.device("cpu"))
    steps = cfg.epochs * len(loaders.train)
    factor = cfg.optimizer.schedule.factor(cfg.epochs, len(loaders.train))
    return cfg.optimizer.lr * sum(factor(step) for step in range(steps))


def _promote_trial(directory: RunDirectory, best: int, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Copy the best trial's files to the run, the summary last, since it marks the end; returns it."""
    chosen = directory.folder / f"trial{best}"
    check_owner(directory.folder)
    for path in chosen.iterdir():
        if path.is_file() and path.name in FILES and path.name != "summary.json":
            shutil.copy2(path, directory.folder / path.name)
    summary = read_summary(chosen) | {"search": trials}
    directory.write_summary(summary)
    return summary
