"""What runs leave behind, made up; and stand-ins for commands of SLURM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ham.report.records import metrics_path, path_of
from ham.report.spec import RunSpec
from ham.report.validation import required_metrics
from ham.sweep import status
from ham.sweep.status import Sweeps

SOURCE, DEPENDENT = RunSpec("acdc_s90", 0, demo="tiny"), RunSpec("mask_acdc_s90", 0, demo="tiny")


def summary(run: RunSpec, dirty: bool | None = False, **altered: Any) -> dict[str, Any]:
    """A summary that the rules of records accept."""
    source = run.depends_on
    masks = source and {"exp": source.exp, "seed": source.seed, "config_hash": source.info.config_hash}
    made = {
        "exp": run.exp,
        "seed": run.seed,
        "config_hash": run.info.config_hash,
        "demo": run.demo or None,
        "overridden": bool(run.overrides),
        "status": "done",
        "epochs": run.info.epochs,
        "metrics": dict.fromkeys(required_metrics(run), 50.0),
        "sparsity": {"target": run.info.sparsity, "overall": run.info.sparsity, "masks_from": masks},
        "timing": {"seconds": 1.0},
        "provenance": {"commit": "c0ffee0", "dirty": dirty, "argv": [], "hardware": {"cpu": "x"}},
    }
    if run.info.task == "nodes":
        made["graph"] = {"name": "cora", "metric": "accuracy", "nodes": {"valid": 500}}
    return made | altered


def metrics(run: RunSpec, value: float = 50.0) -> str:
    """The content of its metrics.jsonl."""
    metric = run.info.reported[0].removesuffix("_last")
    return "".join(f"{json.dumps({'epoch': epoch, metric: value})}\n" for epoch in range(run.info.epochs))


def finish(run: RunSpec, sweeps: Sweeps, masks: bool = True, **altered: Any) -> Path:
    """Write what a finished run leaves; returns its directory."""
    folder = run.folder(sweeps.runs)
    folder.mkdir(parents=True)
    content = summary(run, **altered)
    (folder / "summary.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text(metrics(run, content["metrics"][run.info.reported[0]]))
    if masks:
        (folder / "masks.pt").touch()
    return folder


def commit(run: RunSpec, **altered: Any) -> Path:
    """Write the record of a run, with the epochs that it stores; returns the record's path."""
    record = path_of(run, status.RESULTS)
    record.parent.mkdir(parents=True, exist_ok=True)
    content = summary(run, **altered)
    record.write_text(json.dumps(content))
    if run.info.stores_history:
        metrics_path(record).write_text(metrics(run, content["metrics"][run.info.reported[0]]))
    return record


def stand_in(binaries: Path, name: str, script: str) -> None:
    """Write a command of that name."""
    (binaries / name).write_text(f"#!/bin/bash\n{script}\n")
    (binaries / name).chmod(0o755)
