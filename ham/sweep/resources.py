"""The resource classes of slurm/resources.yaml."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

import yaml

from ham.files import ROOT, read_text
from ham.report.spec import RunSpec

from .manifests import SweepError

SLURM = ROOT / "slurm"


@dataclass(frozen=True)
class Resources:
    """An entry of slurm/resources.yaml; the head of that file describes the fields."""

    sbatch: dict[str, Any]
    images_per_epoch: int
    images_per_second: float
    disk_gb: float
    short: bool = False

    def gpu_hours(self, run: RunSpec) -> float:
        """Estimated from the assumed images per second of one GPU."""
        if not self.images_per_second:
            return 0.0
        images = run.info.epochs * run.info.passes * self.images_per_epoch
        return images / self.images_per_second / 3600


@cache
def resources() -> dict[str, Resources]:
    """Name of a resource class -> its resources. Raises SweepError if the file has an error."""
    try:
        content = yaml.safe_load(read_text(SLURM / "resources.yaml"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise SweepError(f"slurm/resources.yaml{where}: {problem}: correct it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"slurm/resources.yaml cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise SweepError("slurm/resources.yaml has no entries: restore it from git")
    return {name: _entry(name, entry) for name, entry in content.items()}


def _entry(name: str, entry: Any) -> Resources:
    prefix = f"slurm/resources.yaml: {name}"
    if not isinstance(entry, dict):
        raise SweepError(f"{prefix} must be a mapping")
    known = {field.name: field.default is MISSING for field in fields(Resources)}
    if unknown := [key for key in entry if key not in known]:
        raise SweepError(f"{prefix} has an unknown key {unknown[0]!r}: choose from {', '.join(known)}")
    if missing := [key for key, required in known.items() if required and key not in entry]:
        raise SweepError(f"{prefix} has no {missing[0]}")
    for key, value in entry.items():
        kind, name = {"sbatch": (dict, "a mapping"), "short": (bool, "true or false")}.get(
            key, (int | float, "a number")
        )
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise SweepError(f"{prefix}: {key} must be {name}")
    return Resources(**entry)


def resource_class(run: RunSpec) -> str:
    """Name of a run's resource class. Raises SweepError if slurm/resources.yaml lacks it."""
    family, _, name = run.info.base.partition("/")  # node/cora_gcn has class node, graph/ogbg_ppa its own
    name = name if name in resources() else family
    if run.demo:
        name = run.demo if run.demo in resources() else "demo"
    if name not in resources():
        raise SweepError(f"slurm/resources.yaml has no entry {name}: add one")
    return name


def is_short(run: RunSpec) -> bool:
    """Return True if importing torch takes a relevant part of the run's time. Such runs share a process."""
    return resources()[resource_class(run)].short
