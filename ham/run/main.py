"""Run one experiment: create or resume its directory, train, summarize."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ham import distributed
from ham.data import derived_seed
from ham.data.base import explain_killed_workers
from ham.errors import one_line
from ham.tasks import Task, TaskFacts, task_of
from pruning import SparsityWarning

from . import calibrate_str, checkpoint, ranks
from .build import build, run_directory, setup_device
from .c_operations import check_same_operations
from .config import Config, ConfigError, config_hash, to_yaml
from .directory import explain_os_errors, read_summary
from .logger import NullLogger, RunLogger
from .loop import DivergedError, train
from .provenance import is_requeued, provenance
from .state import Run
from .summary import finish, summarize_divergence


def run_experiment(cfg: Config) -> dict[str, Any]:
    """Train, or resume, one configured run; returns its summary.

    Raises:
        ConfigError, DataError, StartError: it cannot start.
        DivergedError, Interrupted, CheckpointError, PeerLostError, RanksDisagreeError: it ended early.
    """
    hash_ = config_hash(cfg)
    folder = run_directory(cfg, hash_)
    task = task_of(cfg.data)
    if distributed.world().size > 1 and not task.distributed:
        message = f"task {task.name} trains in one process: start it without torchrun or srun --ntasks"
        raise distributed.shared(ConfigError(message))
    warnings.simplefilter("ignore", SparsityWarning)  # the summary states sparsity and empty layers
    with (
        distributed.translate_collective_errors(lambda: "before the first step"),
        explain_os_errors(folder),
        explain_killed_workers(),
    ):
        distributed.raise_on_all_ranks(lambda: setup_device(cfg))
        if not cfg.resume:
            cfg = replace(cfg, resume=distributed.from_rank_zero(lambda: is_requeued(folder)))
        if cfg.sparsifier.needs_calibration_runs:
            return _calibrate(cfg, folder, hash_)
        return import_module(f"ham.run.{task.trained_by}").train_or_resume(cfg, folder, hash_)


def _calibrate(cfg: Config, folder: Path, config_hash: str) -> dict[str, Any]:
    """Run, or resume, STR's calibration in this directory, which is locked meanwhile; return its summary."""
    calibrate_str.check_optimizer(cfg)
    logger = distributed.on_rank_zero(lambda: RunLogger(folder, cfg)) or NullLogger(folder, cfg)
    try:
        if is_finished(cfg, folder):
            return report_finished(cfg, logger, config_hash)
        summary = calibrate_str.calibrate_str(cfg, logger, config_hash, train_or_resume)
        return print_summary(logger, task_of(cfg.data), summary)
    finally:
        logger.close()


def train_or_resume(cfg: Config, folder: Path, config_hash: str) -> dict[str, Any]:
    """Train, or resume, the run in this directory, which only rank 0 writes; return its summary."""
    device = setup_device(cfg)
    finished = is_finished(cfg, folder)
    task = None if finished else _load_task(cfg, device)  # a finished run needs no data
    logger = distributed.on_rank_zero(lambda: RunLogger(folder, cfg)) or NullLogger(folder, cfg)
    try:
        if not cfg.resume:
            distributed.on_rank_zero(logger.clear)
        elif finished or is_finished(cfg, folder):  # perhaps another process finished it in the meantime
            return report_finished(cfg, logger, config_hash)
        state = ranks.send_state(distributed.on_rank_zero(lambda: _load_checkpoint(logger, config_hash)))
        if state is not None:
            _check_same_data(folder, state, task)
            distributed.raise_on_all_ranks(partial(check_same_operations, folder, state, cfg, device))
            with checkpoint.explain_mismatch(folder):
                torch.set_num_threads(state["threads"])  # sums round as they did before
        run = build(cfg, config_hash, task, logger, device, resumed=state is not None)
        _start_or_restore(run, state)
        _train(run)
        ranks.check_run(run)
        summary = distributed.from_rank_zero(lambda: finish(run))
        return print_summary(logger, type(task), summary)
    finally:
        logger.close()


def _train(run: Run) -> None:
    """Train; a divergence is also written to the run's directory."""
    try:
        train(run)
    except DivergedError as error:
        if distributed.world().is_main_process:
            run.logger.directory.write_divergence(summarize_divergence(run, error.reason))
        raise


def is_finished(cfg: Config, folder: Path) -> bool:
    """Return True if there is a summary that this run keeps."""
    return distributed.from_rank_zero(lambda: cfg.resume and read_summary(folder) is not None)


def _load_task(cfg: Config, device: torch.device) -> Task:
    """Read the data on every rank; an error on one rank is raised on all."""
    me, seed = distributed.world(), derived_seed(cfg.seed, "data")
    task = distributed.raise_on_all_ranks(
        lambda: task_of(cfg.data).load(cfg, device, seed, rank=me.rank, world_size=me.size)
    )
    ranks.check_data(task)
    return task


def report_finished(cfg: Config, logger: RunLogger | NullLogger, config_hash: str) -> dict[str, Any]:
    """Log the result of a finished run; returns its summary. Raises ConfigError."""

    def read() -> dict[str, Any]:
        summary = read_summary(logger.folder)
        check_config_hash(logger.folder, summary["config_hash"], config_hash)
        return summary

    summary = distributed.from_rank_zero(read)
    logger.log("already finished; start again with resume=false")
    try:
        return print_summary(logger, task_of(cfg.data), summary)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{logger.folder / 'summary.json'} is damaged or of another version ({type(error).__name__}: "
            f"{one_line(error)}): delete it, and the same command writes it again from the last checkpoint"
        ) from error


def _load_checkpoint(logger: RunLogger, config_hash: str) -> dict[str, Any] | None:
    """The checkpoint to resume, which rank 0 reads."""
    state = checkpoint.load(logger.folder, logger.log)
    if state is None:
        logger.clear()  # killed before its first checkpoint: nothing to resume
    else:
        with checkpoint.explain_mismatch(logger.folder):
            check_config_hash(logger.folder, state["config_hash"], config_hash)
    return state


def _start_or_restore(run: Run, state: dict[str, Any] | None) -> None:
    """Prune at initialization, or restore a checkpoint; then start the progress bar."""
    logger = run.logger
    if state is not None:
        with checkpoint.explain_mismatch(logger.folder):  # before anything in the directory changes
            run.load_state_dict(state)
        epochs = len(run.history)
        distributed.on_rank_zero(
            lambda: logger.load_state_dict(state["logger"], epochs)
        )  # cuts metrics.jsonl
        logger.log(f"resumed at epoch {run.epoch + 1}, step {run.step}")
    distributed.on_rank_zero(
        lambda: logger.directory.write_metadata(provenance(run.config_hash), to_yaml(run.cfg))
    )
    if state is None:
        try:
            run.sparsifier.initialize(run.task.initialization_batches(), run.task.initialization_loss)
        except ValueError as error:  # such as SNIP's, where the data have too few batches
            raise distributed.shared(ConfigError(str(error))) from error
        run.flips.begin()
    ranks.check_run(run)
    logger.start_progress(run.cfg.epochs * run.task.steps_per_epoch, run.step)


def check_config_hash(folder: Path, saved: str, expected: str) -> None:
    """Raise ConfigError if the directory is of a run of another configuration."""
    if saved != expected:
        raise ConfigError(
            f"{folder} holds a run of another configuration ({saved[:8]}, now {expected[:8]}): "
            "choose another runs_dir, or start again with resume=false"
        )


def _check_same_data(folder: Path, state: dict[str, Any], task: Task) -> None:
    """Raise ConfigError if a checkpoint was saved with other data."""
    if "data" in state and state["data"] != task.data_digest:  # checkpoints of 0.6 lack it
        raise distributed.shared(
            ConfigError(
                f"the checkpoint in {folder} was saved with other data: restore the data set, or start again "
                "with resume=false"
            )
        )


def print_summary(
    logger: RunLogger | NullLogger, task: type[TaskFacts], summary: dict[str, Any]
) -> dict[str, Any]:
    """Log the result for the reader; returns the summary."""
    for line in task.describe(summary):
        logger.log(line)
    logger.log(f"run          {logger.folder}")
    return summary
