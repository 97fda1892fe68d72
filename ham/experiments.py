"""The experiments of configs/exp and the seeds that runs have; read without Hydra and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .files import ROOT, read_text

CONFIGS = ROOT / "configs"
SEEDS = range(2**32)
"""The seeds that a run and its record can have."""


def choices_of(group: str) -> list[str]:
    """Names of a group's choices; those in subfolders as folder/name."""
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def experiments() -> dict[str, str]:
    """Name -> cell of the paper, for every experiment in configs/exp."""
    return {name: _cell(CONFIGS / "exp" / f"{name}.yaml") for name in choices_of("exp")}


def is_origin(origin: Any, *, exp: str, seed: int, config_hash: str) -> bool:
    """Return True if masks come from the run with this experiment, seed and configuration hash.

    Args:
        origin: `origin` of a masks.pt, or `masks_from` of a summary; any other value gives False.
        exp: name of the experiment.
        seed: seed of the run.
        config_hash: hash of its configuration, scale included.
    """
    identity = {"exp": exp, "seed": seed, "config_hash": config_hash}
    return isinstance(origin, dict) and all(origin.get(key) == value for key, value in identity.items())


def _cell(path: Path) -> str:
    """The value of the line `cell: "..."`: parsing all of each file would take a second."""
    lines = read_text(path, encoding="utf-8-sig").splitlines()
    return next((yaml.safe_load(line)["cell"] or "" for line in lines if line.startswith("cell:")), "")
