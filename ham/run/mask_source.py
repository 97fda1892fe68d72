"""The masks that a run takes from another one: read, and compared with the run that it asks for."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from torch import Tensor

from ham.errors import one_line
from ham.experiments import is_origin
from pruning import MaskFrom
from pruning.export import MASKS, load_masks

from . import checkpoint
from .checkpoint import CheckpointError
from .config import Config, ConfigError, config_hash, load
from .directory import read_summary
from .load import load_run
from .summary import mask_origin

Masks = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]
"""Masks, margins and origin, as `load_masks` returns them."""


def load_source_masks(cfg: Config, sparsifier: MaskFrom) -> Masks:
    """The masks for a run; those of a named experiment must be of its run with the same scale and seed.

    Where a finished run has lost its masks.pt, or it is damaged, its last checkpoint is used instead.

    Args:
        cfg: configuration of the run that takes the masks.
        sparsifier: its sparsifier, whose source is a path.

    Raises:
        ConfigError: they are of another run, or neither masks.pt nor the last checkpoint can be read.
        ValueError: the file is missing or damaged.
    """
    path, experiment = Path(sparsifier.source), cfg.sparsifier.depends_on
    file = path / MASKS if path.is_dir() or experiment else path
    summary = read_summary(path) if path.is_dir() else None
    source = _load_source(cfg, experiment) if experiment else None
    cure = f"delete {path} and train that run again"
    if source is not None:
        command = _command(cfg, source)
        cure = f"train it again by {command} resume=false"
        if summary is None and not file.is_file():
            first = f"finish the run that the masks come from first, by {command}"
            raise ConfigError(f"{file} does not exist: {first}")
    try:
        masks = load_masks(path)
    except ValueError:
        if summary is None:
            raise
        masks = _from_checkpoint(path, summary, cure)
    if source is not None:
        expected = config_hash(source)
        if not is_origin(masks[2], exp=experiment, seed=cfg.seed, config_hash=expected):
            raise ConfigError(
                f"{file} has masks of {_describe(masks[2])}, not of {experiment} with seed {cfg.seed} and "
                f"configuration {expected[:8]}: {cure}, or give sparsifier.source=PATH to use any"
            )
    return masks


def _from_checkpoint(folder: Path, summary: dict[str, Any], cure: str) -> Masks:
    """The masks in the last checkpoint of a finished run."""
    try:
        sparsifier = load_run(folder, checkpoint.load_last(folder))[2]
    except (ConfigError, CheckpointError) as error:
        reason = one_line(error).partition(": ")[0]
        raise ConfigError(
            f"{folder / MASKS} is missing or damaged, and the last checkpoint cannot replace it ({reason}): "
            f"{cure}"
        ) from error
    masks, margins = (
        {name: tensor.detach() for name, tensor in tensors.items()}
        for tensors in (sparsifier.kept(), sparsifier.margins())
    )
    return masks, margins, mask_origin(summary)


def _load_source(cfg: Config, experiment: str) -> Config:
    """The run whose masks are needed: an experiment with the scale and the seed of `cfg`."""
    demo = [f"+demo={cfg.demo}"] if cfg.demo else []
    try:
        return load([f"+exp={experiment}", *demo, f"seed={cfg.seed}"])
    except ConfigError as error:
        raise ConfigError(f"sparsifier.source: {error}; a path needs a slash") from error


def _command(cfg: Config, source: Config) -> str:
    """The command line that trains the run whose masks are needed, with the paths of `cfg`."""
    overrides = [f"+exp={source.name}", *([f"+demo={cfg.demo}"] if cfg.demo else []), f"seed={cfg.seed}"]
    if cfg.runs_dir != source.runs_dir:
        overrides.append(f"runs_dir={cfg.runs_dir}")
    for name in ("root", "train", "val"):
        own, default = getattr(cfg.data, name, None), getattr(source.data, name, None)
        if own != default:
            overrides.append(f"data.{name}={own}")
    return f"python train.py {shlex.join(overrides)}"


def _describe(origin: dict[str, Any]) -> str:
    """The run that masks come from, for an error."""
    if not origin.get("exp"):
        return "an unknown run"
    hash_ = str(origin.get("config_hash"))[:8]
    return f"{origin['exp']} with seed {origin.get('seed')} and configuration {hash_}"
