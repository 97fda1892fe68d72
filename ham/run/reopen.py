"""A finished or stopped run as it stands: its model and sparsifier, out of its directory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ham.data import derived_seed
from ham.models import build_model
from pruning import Sparsifier

from . import checkpoint
from .build import locate_masks
from .config import from_yaml
from .schema import Config, ConfigError


def reopen(folder: Path) -> tuple[Config, nn.Module, Sparsifier]:
    """Config, model and sparsifier of the run in `folder`, from its last whole checkpoint, on the CPU.

    Raises:
        ConfigError: there is no run, or none that has a checkpoint of this version.
        CheckpointError: its checkpoints are damaged.
    """
    cfg = from_yaml(folder / "config.yaml")
    state = checkpoint.load(folder, warn=print)
    if state is None:
        raise ConfigError(f"{folder} has no checkpoint yet: let it train for an epoch")
    sizes = dict(num_classes=cfg.data.num_classes, image_size=cfg.data.image_size)
    model = build_model(cfg.model, **sizes, generator=torch.Generator().manual_seed(0))
    sparsifier = locate_masks(cfg, resumed=True)
    sparsifier.attach(
        model,
        total_epochs=cfg.epochs,
        steps_per_epoch=1,
        seed=derived_seed(cfg.seed, "sparsifier"),
        parameterization=cfg.parameterization,
    )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ConfigError(f"{folder} does not fit this version: train it again") from error
    sparsifier.load_state_dict(state["sparsifier"])
    return cfg, model.eval(), sparsifier
