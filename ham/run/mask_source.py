"""The masks that a run takes from another one: read, and compared with the run that it asks for."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from torch import Tensor

from ham.experiments import is_origin
from ham.files import one_line
from pruning import MaskFrom
from pruning.export import MASKS, load_masks

from .checkpoint import CheckpointError
from .config import Config, ConfigError, config_hash, load
from .directory import read_summary
from .load import load_run
from .summary import mask_origin

Masks = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]
"""Masks, margins and origin, as `load_masks` returns them."""


def load_source_masks(cfg: Config, sparsifier: MaskFrom) -> Masks:
    """The masks for a run; those of a named experiment must be of its run with the same scale and seed.

    A finished run that has lost its masks.pt has them in its last checkpoint.

    Args:
        cfg: configuration of the run that takes the masks.
        sparsifier: its sparsifier, whose source is a path.

    Raises:
        ConfigError: they are of another run, or neither masks.pt nor a checkpoint can be read.
        ValueError: the file is missing or damaged.
    """
    path, experiment = Path(sparsifier.source), cfg.sparsifier.depends_on
    file = path / MASKS if path.is_dir() or experiment else path
    wanted = _config_hash(cfg, experiment) if experiment else ""
    cure = f"delete {path} and train that run again"
    if experiment:
        cure = f"{_command(cfg, experiment)} resume=false"
    if path.is_dir() and not file.is_file() and (summary := read_summary(path)) is not None:
        masks = _from_checkpoint(path, summary, cure)
    elif experiment and not file.is_file():
        first = f"finish the run that the masks come from first, by {_command(cfg, experiment)}"
        raise ConfigError(f"{file} does not exist: {first}")
    else:
        masks = load_masks(path)
    if experiment and not is_origin(masks[2], exp=experiment, seed=cfg.seed, config_hash=wanted):
        raise ConfigError(
            f"{file} has masks of {_describe(masks[2])}, not of {experiment} with seed {cfg.seed} and "
            f"configuration {wanted[:8]}: train that by {cure}, or give sparsifier.source=PATH to use any"
        )
    return masks


def _from_checkpoint(folder: Path, summary: dict[str, Any], cure: str) -> Masks:
    """The masks in the last checkpoint of a finished run."""
    try:
        sparsifier = load_run(folder)[2]
    except (ConfigError, CheckpointError) as error:
        reason = one_line(error).partition(": ")[0]
        raise ConfigError(
            f"{folder / MASKS} is missing, and its checkpoint does not replace it ({reason}): {cure}"
        ) from error
    masks, margins = (
        {name: tensor.detach() for name, tensor in tensors.items()}
        for tensors in (sparsifier.kept(), sparsifier.margins())
    )
    return masks, margins, mask_origin(summary)


def _config_hash(cfg: Config, experiment: str) -> str:
    """The configuration hash of the run whose masks are needed."""
    try:
        return config_hash(load(_words(cfg, experiment)))
    except ConfigError as error:
        raise ConfigError(f"sparsifier.source: {error}; a path needs a slash") from error


def _words(cfg: Config, experiment: str) -> list[str]:
    """The run of an experiment with the scale and the seed of `cfg`, as overrides."""
    return [f"+exp={experiment}", *([f"+demo={cfg.demo}"] if cfg.demo else []), f"seed={cfg.seed}"]


def _command(cfg: Config, experiment: str) -> str:
    """The command line that trains the run whose masks are needed."""
    own = [f"runs_dir={cfg.runs_dir}"] if cfg.runs_dir != Config.runs_dir else []
    return f"python train.py {shlex.join([*_words(cfg, experiment), *own])}"


def _describe(origin: dict[str, Any]) -> str:
    """The run that masks come from, for an error."""
    if not origin.get("exp"):
        return "an unknown run"
    hash_ = str(origin.get("config_hash"))[:8]
    return f"{origin['exp']} with seed {origin.get('seed')} and configuration {hash_}"
