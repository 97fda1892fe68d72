"""Provenance of a result: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ham.distributed import world
from ham.files import read_json, read_text
from ham.processes import age_of_process
from ham.repository import commit, has_changes

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "scikit-learn",
    "numpy",
    "torch_geometric",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "gguf",
    "ffcv",
    "wandb",
)


def provenance(config_hash: str) -> dict[str, Any]:
    """Commit and dirty flag, versions, hardware, SLURM job, command line and config hash; no host name.

    Without the git history, the commit is $HAM_COMMIT and dirty is unknown.
    """
    return {
        "commit": commit(),
        "dirty": has_changes(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "ranks": world().size,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "argv": sys.argv[1:],
        "config_hash": config_hash,
    }


def is_requeued(folder: Path) -> bool:
    """Return True if an earlier start of this SLURM job, or of this torchrun, began the run in `folder`.

    A requeued job repeats its command line, whose `resume=false` is meant for the runs before its first
    start. Ranks that `torchrun --max-restarts` restarts repeat theirs, too.
    """
    paths = [part / "provenance.json" for part in (folder, *folder.glob("trial*"))]
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        age = age_of_process(os.getppid())  # of torchrun
        return age is not None and any(_is_younger(path, age) for path in paths)
    job = os.environ.get("SLURM_JOB_ID")
    if not job or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return False
    known = map(read_json, paths)
    return any(facts is not None and facts.get("slurm_job") == job for facts in known)


def _is_younger(path: Path, seconds: float) -> bool:
    """Return True if the file was written in the last `seconds`."""
    return path.exists() and time.time() - path.stat().st_mtime <= seconds


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs by their model names."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _processor(), "cores": os.cpu_count(), "gpus": gpus}


def _processor() -> str:
    try:
        lines = read_text("/proc/cpuinfo", errors="replace").splitlines()
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
