"""summary.json: identity, result, timing, provenance of a finished run. diverged.json: of a diverged one."""

from __future__ import annotations

from typing import Any

from pruning.export import MASKS, save_masks

from .state import Run


def summarize(run: Run) -> dict[str, Any]:
    """The content of summary.json; the task adds metrics and sparsity."""
    seconds = run.logger.seconds()
    return {
        **_identity(run),
        "status": "done",
        "epochs": run.cfg.epochs,
        **run.task.summarize(run),
        "timing": {
            "seconds": round(seconds, 1),
            "steps": run.step,
            "steps_per_second": round(run.step / seconds, 2),
        },
        "provenance": run.logger.directory.provenance(),
    }


def summarize_divergence(run: Run, reason: str) -> dict[str, Any]:
    """The content of diverged.json.

    Args:
        run: its `epoch` is the number of finished epochs.
        reason: what is not finite, and at which step.
    """
    return {
        **_identity(run),
        "status": "diverged",
        "reason": reason,
        "epochs": run.epoch,
        "provenance": run.logger.directory.provenance(),
    }


def _identity(run: Run) -> dict[str, Any]:
    return {
        "exp": run.cfg.name,
        "cell": run.cfg.cell,
        "demo": run.cfg.demo or None,
        "overridden": run.cfg.overridden,
        "seed": run.cfg.seed,
        "config_hash": run.config_hash,
        "task": run.task.name,
    }


def finish(run: Run) -> dict[str, Any]:
    """Write the masks and the summary, which marks the run as finished; rank 0 calls it."""
    summary = summarize(run)
    if run.sparsifier.masks.active or run.sparsifier.achieved_sparsity() > 0:
        origin = {key: summary[key] for key in ("exp", "demo", "seed", "config_hash")}
        save_masks(run.logger.folder / MASKS, run.sparsifier, origin)
    run.logger.write_summary(summary)
    return summary
