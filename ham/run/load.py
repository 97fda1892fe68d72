"""Load the model and the sparsifier of a finished or interrupted run from its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ham.data import derived_seed
from ham.models import build_model
from ham.tasks import task_of
from pruning import Sparsifier

from . import checkpoint
from .config import Config, ConfigError, from_yaml


def load_run(folder: Path, state: dict[str, Any] | None = None) -> tuple[Config, nn.Module, Sparsifier]:
    """Config, model and sparsifier of the run in `folder`, from its last undamaged checkpoint, on the CPU.

    Args:
        folder: the run directory.
        state: state of a checkpoint, read before.

    Raises:
        ConfigError: the folder has no run, or no checkpoint.
        CheckpointError: its checkpoints are damaged, or of another version.
    """
    cfg = from_yaml(folder / "config.yaml")
    if not cfg.data.image_size:
        raise ConfigError(f"{folder} is a run on {task_of(cfg.data).name}: only image runs can be loaded")
    state = state or checkpoint.load(folder, warn=print)
    if state is None:
        raise ConfigError(f"{folder} has no checkpoint yet: let it train for an epoch")
    sizes = dict(num_classes=cfg.data.num_classes, image_size=cfg.data.image_size)
    model = build_model(cfg.model, **sizes, generator=torch.Generator().manual_seed(0))
    sparsifier = cfg.sparsifier.resolve(str, resumed=True)  # its masks are in the checkpoint
    sparsifier.attach(
        model,
        total_epochs=cfg.epochs,
        steps_per_epoch=1,
        seed=derived_seed(cfg.seed, "sparsifier"),
        parameterization=cfg.parameterization,
    )
    with checkpoint.explain_mismatch(folder):
        model.load_state_dict(state["model"])
        sparsifier.load_state_dict(state["sparsifier"])
    return cfg, model.eval(), sparsifier
