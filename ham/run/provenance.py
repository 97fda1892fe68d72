"""What produced a result: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ham.distributed import world
from ham.files import commit, has_changes

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


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs by their model names."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _processor(), "cores": os.cpu_count(), "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
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
