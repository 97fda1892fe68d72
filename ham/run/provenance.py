"""What produced a result: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .distributed import world

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "scikit-learn",
    "numpy",
    "torch_geometric",
    "ffcv",
    "wandb",
)
# What decides a run's result; scripts/cluster/launch.py has the same list. Settings of a cluster, notes and
# records that come in while others still train do not count as changes.
_CODE = ("--", "train.py", "ham", "pruning", "configs", "scripts/theory_runs.py")
_ROOT = Path(__file__).resolve().parents[2]


def provenance(config_hash: str) -> dict[str, Any]:
    """Commit and dirty flag, versions, hardware, SLURM id, command line and config hash; no host name.

    Where the code lies without its git history, $HAM_COMMIT says the commit, and dirty is unknown.
    """
    return {
        "commit": _git("rev-parse", "HEAD") or os.environ.get("HAM_COMMIT"),
        "dirty": None if (changes := _git("status", "--porcelain", *_CODE)) is None else bool(changes),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "ranks": world().size,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "argv": sys.argv[1:],
        "config_hash": config_hash,
    }


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs by their model names."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _processor(), "cores": os.cpu_count(), "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine()
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=_ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
