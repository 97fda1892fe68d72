"""Which operations of a run on a CPU are C code: torch's operations in their place round differently."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from ham.models import graph_kernels
from ham.optim import implementations
from ham.tasks import task_of

from .config import Config, ConfigError


def operations_in_c(cfg: Config, device: torch.device) -> dict[str, bool]:
    """Operation of this run that has C code -> True if that works here; empty on other devices than a CPU."""
    if device.type != "cpu":
        return {}
    operations = {}
    if cfg.ham.active:
        operations["HAM's step"] = implementations.has_c_code(torch.float32)
    if task_of(cfg.data).uses_graph_kernels:
        operations["graph networks"] = graph_kernels.has_c_code(torch.float32)
    return operations


def check_same_operations(folder: Path, state: dict[str, Any], cfg: Config, device: torch.device) -> None:
    """Raise ConfigError if the operations of a checkpoint's run were C code and now are not, or vice versa.

    Args:
        folder: the run directory.
        state: state of the checkpoint; those of earlier versions do not have the operations.
        cfg: configuration of the run.
        device: device of this rank.
    """
    before = state.get("c_operations")
    if not before:
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        now = operations_in_c(cfg, device)
    for name, is_in_c in now.items():
        if before.get(name, is_in_c) != is_in_c:
            raise ConfigError(_explain(folder, name, is_in_c))
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _explain(folder: Path, name: str, is_in_c: bool) -> str:
    codes, cure = ["C code", "torch's operations"], "install the C compiler again, or name it in CC"
    if is_in_c:
        codes, cure = codes[::-1], "set CC=false to use torch's operations"
    return (
        f"the checkpoint in {folder} was saved with {codes[0]} for {name}, and {codes[1]} here would change "
        f"the results: {cure}, or start again with resume=false"
    )
