"""The files of configs/ that an experiment and a demo are composed of."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from ham.experiments import CONFIGS, choices_of
from ham.files import open_text


def base_of(experiment: str) -> str:
    """The file of configs/base that an experiment is composed over."""
    leaf = _read(CONFIGS / "exp" / f"{experiment}.yaml")
    return next(entry["/base"] for entry in leaf.defaults if "/base" in entry)


def demos() -> list[str]:
    """Names of all scales below the paper's."""
    return [name for name in choices_of("demo") if "/" not in name]


def demo_file(demo: str, experiment: str) -> str:
    """The file of configs/demo that scales an experiment: <data>/<demo> for its kind of data, else <demo>."""
    base = _read(CONFIGS / "base" / f"{base_of(experiment)}.yaml")
    data = next((entry["override /data"] for entry in base.defaults if "override /data" in entry), "")
    file = "/".join(filter(None, [data, demo]))
    return file if (CONFIGS / "demo" / f"{file}.yaml").exists() else demo


def _read(path: Path) -> DictConfig | ListConfig:
    with open_text(path) as file:
        return OmegaConf.load(file)
