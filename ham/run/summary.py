"""summary.json: identity, result, timing and provenance of a finished run."""

from __future__ import annotations

from typing import Any

from pruning.export import MASKS, save_masks

from .state import Run


def summarize(run: Run) -> dict[str, Any]:
    """The content of summary.json; the task adds metrics and sparsity."""
    seconds = run.logger.seconds()
    return {
        "exp": run.cfg.name,
        "cell": run.cfg.cell,
        "demo": run.cfg.demo or None,
        "overridden": run.cfg.overridden,
        "seed": run.cfg.seed,
        "config_hash": run.config_hash,
        "status": "done",
        "epochs": run.cfg.epochs,
        "task": run.task.name,
        **run.task.summarize(run),
        "timing": {
            "seconds": round(seconds, 1),
            "steps": run.step,
            "steps_per_second": round(run.step / seconds, 2),
        },
        "provenance": run.logger.directory.provenance(),
    }


def finish(run: Run) -> dict[str, Any]:
    """Write the masks and the summary, which marks the run as finished; rank 0 calls it."""
    summary = summarize(run)
    if run.sparsifier.masks.active or run.sparsifier.achieved_sparsity() > 0:
        origin = {key: summary[key] for key in ("exp", "demo", "seed", "config_hash")}
        save_masks(run.logger.folder / MASKS, run.sparsifier, origin)
    run.logger.write_summary(summary)
    return summary
