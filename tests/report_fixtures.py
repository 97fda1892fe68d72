"""Fixtures: synthetic finished runs and records. A conftest.py imports those that its tests need."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ham.files import ROOT
from ham.report import records
from ham.report.spec import RunSpec
from ham.report.validation import required_metrics

GRAPH = {"name": "cora", "metric": "accuracy", "nodes": {"train": 140, "valid": 500, "test": 1000}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _summary(run: RunSpec, top1: float = 75.0, **altered: Any) -> dict[str, Any]:
    """The summary of a run of the plan, as its task writes it."""
    info = run.info
    provenance = {
        "commit": COMMIT,
        "dirty": False,
        "python": "3.11.7",
        "versions": {"torch": "2.15.0"},
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "gpus": []},
        "threads": 1,
        "ranks": 1,
        "slurm_job": None,
        "argv": [*run.argv, "runs_dir=/home/me/runs", "data.root=/data"],
        "config_hash": info.config_hash,
        "resumed_from": [],
    }
    source, (last, best) = run.depends_on, info.reported
    metrics = dict.fromkeys(required_metrics(run), top1)
    metrics |= {"train_loss": 0.5, last: top1, best: min(100.0, top1 + 0.5)}
    masks = source and {"exp": source.exp, "seed": source.seed, "config_hash": source.info.config_hash}
    task = {"graph": GRAPH} if info.task == "nodes" else {}
    summary = {
        "exp": run.exp,
        "cell": "Table 4, AC/DC + HAM, s = 0.9",
        "demo": run.demo or None,
        "overridden": bool(run.overrides),
        "seed": run.seed,
        "config_hash": info.config_hash,
        "status": "done",
        "epochs": info.epochs,
        "metrics": metrics,
        "sparsity": {
            "target": info.sparsity,
            "overall": info.sparsity,
            "layers": {"conv1": info.sparsity},
            "masks_from": masks,
        },
        "timing": {"seconds": 60.0, "steps": 100, "steps_per_second": 1.7},
        "provenance": provenance,
    }
    return summary | task | altered


def _epochs(run: RunSpec, top1: float = 75.0) -> list[dict[str, Any]]:
    """Plausible epochs, the layers included."""
    total = run.info.epochs
    strength = (sum(map(ord, run.exp)) % 7 + 1) / 7
    lines = []
    for epoch in range(total):
        done = (epoch + 1) / total
        line = {
            "epoch": epoch,
            "step": 10 * (epoch + 1),
            "train_loss": 6 * math.exp(-3 * done) + strength + 0.05 * run.seed,
            "top1": top1 if epoch + 1 == total else top1 * done,
            "l1_mean": 0.02 * (1 + strength * math.sin(3 * done)) + 1e-4 * run.seed,
            "l1_sum": 4e5 * (1 + strength * math.sin(3 * done)) + 2e3 * run.seed,
            "inverse_metric_at_zero": 1.0 if "ham" in run.exp else math.exp(-done * strength),
            "layers": {"conv1": 0.9},
        }
        if (epoch + 1) % 10 == 0:
            line["sign_flips"] = 0.02 * strength * (1.2 - done) + 1e-4 * run.seed
        lines.append(line)
    return lines


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., dict[str, Any]]:
    """`make_summary(run, top1, **altered)`: the summary of a run of the plan."""
    return _summary


@pytest.fixture(scope="session")
def make_epochs() -> Callable[..., list[dict[str, Any]]]:
    """`make_epochs(run, top1)`: its epochs."""
    return _epochs


@pytest.fixture(scope="session")
def write_record() -> Callable[..., Path]:
    """`write_record(results, run, top1, **altered)`: its record with epochs; returns the record's path."""

    def make(results: Path, run: RunSpec, top1: float = 75.0, **altered: Any) -> Path:
        lines = [{k: v for k, v in line.items() if k != "layers"} for line in _epochs(run, top1)]
        return records.write(run, _summary(run, top1, **altered), lines, results)

    return make


@pytest.fixture
def finish_run(tmp_path: Path) -> Callable[..., Path]:
    """`finish_run(run, top1, **altered)`: a finished run directory in tmp_path/runs; returns it."""

    def make(run: RunSpec, top1: float = 75.0, **altered: Any) -> Path:
        folder = run.folder(tmp_path / "runs")
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(_summary(run, top1, **altered)))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(e)}\n" for e in _epochs(run, top1)))
        return folder

    return make


@pytest.fixture(scope="session")
def same_picture() -> Callable[[Path, Path], bool]:
    """`same_picture(a, b)`: do two png files look alike? Other versions of matplotlib draw differently."""
    pinned = re.search(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)

    def compare(one: Path, other: Path) -> bool:
        import matplotlib
        from matplotlib.image import imread

        if one.suffix != ".png" or matplotlib.__version__ != pinned[1]:
            return other.exists()
        first, second = imread(one), imread(other)
        return first.shape == second.shape and abs(first - second).mean() < 1e-4

    return compare


@pytest.fixture(scope="session")
def paper() -> dict[str, Any]:
    """The paper's numeric tables, transcribed."""
    path = Path(os.environ.get("HAM_PAPER", ROOT.parent / "shared" / "paper" / "tables.yaml"))
    if not path.is_file():
        pytest.skip(f"no transcription of the paper's tables at {path}: set HAM_PAPER to it")
    return yaml.safe_load(path.read_text())
