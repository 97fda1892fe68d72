"""summary.json: identity, result, timing, provenance of a finished run. diverged.json: of a diverged one."""

from __future__ import annotations

from typing import Any

from ham import distributed
from ham.tasks import task_of
from pruning.export import MASKS, save_masks

from .checkpoint import write_owned
from .config import Config
from .state import Run


def summarize(run: Run) -> dict[str, Any]:
    """The content of summary.json; the task adds metrics and sparsity."""
    seconds = run.logger.seconds()
    return {
        **identity(run.cfg, run.config_hash),
        "status": "done",
        "epochs": run.cfg.epochs,
        **run.task.summarize(run),
        "timing": timing(seconds, run.step),
        "ranks": agreed_ranks(),
        "provenance": run.logger.directory.provenance(),
    }


def summarize_divergence(run: Run, reason: str) -> dict[str, Any]:
    """The content of diverged.json.

    Args:
        run: the run; its `epoch` is the number of finished epochs.
        reason: the value that is not finite, and its step.
    """
    return {
        **identity(run.cfg, run.config_hash),
        "status": "diverged",
        "reason": reason,
        "epochs": run.epoch,
        "provenance": run.logger.directory.provenance(),
    }


def identity(cfg: Config, config_hash: str) -> dict[str, Any]:
    """Identity of the run: experiment, seed and configuration hash."""
    return {
        "exp": cfg.name,
        "cell": cfg.cell,
        "demo": cfg.demo or None,
        "overridden": cfg.overridden,
        "seed": cfg.seed,
        "config_hash": config_hash,
        "task": task_of(cfg.data).name,
    }


def agreed_ranks() -> dict[str, Any]:
    """The number of ranks, whose states were compared before the summary is written."""
    return {"world_size": distributed.world().size, "agreed": True}


def timing(seconds: float, steps: int) -> dict[str, Any]:
    """Time spent on a run, over all its processes."""
    return {
        "seconds": round(seconds, 1),
        "steps": steps,
        "steps_per_second": round(steps / seconds, 2),
    }


def finish(run: Run) -> dict[str, Any]:
    """Write the masks and the summary, which marks the run as finished; rank 0 calls it."""
    summary = summarize(run)
    if run.sparsifier.masks.active or run.sparsifier.achieved_sparsity() > 0:
        origin = mask_origin(summary)
        folder = run.logger.folder
        write_owned(folder, folder / MASKS, lambda file: save_masks(file, run.sparsifier, origin))
    run.logger.write_summary(summary)
    return summary


def mask_origin(summary: dict[str, Any]) -> dict[str, Any]:
    """What masks.pt states about the run with this summary."""
    return {key: summary[key] for key in ("exp", "demo", "seed", "config_hash")}
