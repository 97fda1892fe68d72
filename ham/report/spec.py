"""The identity of a training run, `RunSpec`, and its facts from configs/lock.json, `RunInfo`.

scripts/lock.py writes that file; this module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from ham.files import ROOT, read_text

CONFIGS = ROOT / "configs"
LOCK = CONFIGS / "lock.json"


class PlanError(Exception):
    """An unknown table, figure or run, or an unusable file of configs/; one line with the cure."""


@dataclass(frozen=True)
class TaskInfo:
    """What reports need of a task.

    Args:
        reported: keys of a summary's `metrics` for the last and the best epoch.
        stores_history: records keep the epochs of a run, which figures show.
    """

    reported: tuple[str, str]
    stores_history: bool


@dataclass(frozen=True)
class RunInfo:
    """Facts of a run, equal for every seed.

    Args:
        task: name of what it learns, such as "images" or "nodes".
        config_hash: identity of its configuration, `ham.run.config.config_hash`.
        base: the row of the paper's Table 5, a file of configs/base.
        epochs: number of epochs.
        passes: forward and backward passes per step; SAM takes two.
        sparsity: the target, 0 for dense.
        depends_on: the experiment whose masks it takes, from the run of the same seed; "" for none.
    """

    task: str
    config_hash: str
    base: str
    epochs: int
    passes: int
    sparsity: float
    depends_on: str

    @property
    def reported(self) -> tuple[str, str]:
        """Keys of a summary's `metrics` for the last and the best epoch."""
        return tasks()[self.task].reported

    @property
    def stores_history(self) -> bool:
        """True if records keep its epochs."""
        return tasks()[self.task].stores_history


@dataclass(frozen=True, order=True)
class RunSpec:
    """One training run: an experiment, overrides if any, a scale ("" is the paper's), a seed."""

    exp: str
    seed: int
    overrides: tuple[str, ...] = ()
    demo: str = ""

    @property
    def spec(self) -> str:
        """The run without seed and scale, its key in configs/lock.json."""
        return " ".join([self.exp, *self.overrides])

    @property
    def argv(self) -> list[str]:
        """Arguments of train.py."""
        demo = [f"+demo={self.demo}"] if self.demo else []
        return [f"+exp={self.exp}", *demo, *self.overrides, f"seed={self.seed}"]

    @property
    def info(self) -> RunInfo:
        """The run's facts in the lock file. Raises PlanError if it does not contain the run."""
        try:
            return lock()[self.demo][self.spec]
        except KeyError:
            if self.demo and self.spec in lock()[""]:
                raise PlanError(f"{self.exp} has no demo={self.demo}: omit --demo") from None
            scale = f" at demo={self.demo}" if self.demo else ""
            raise PlanError(
                f"{LOCK.name} does not contain {self.spec!r}{scale}: run python scripts/lock.py"
            ) from None

    @property
    def name(self) -> str:
        """The run directory's first part, as `ham.run.build.run_directory` names it."""
        altered = self.info.config_hash[:8] if self.overrides else ""
        return "-".join(filter(None, [self.exp, self.demo, altered]))

    def folder(self, runs: Path) -> Path:
        """Its run directory."""
        return runs / self.name / f"seed{self.seed}"

    @property
    def depends_on(self) -> RunSpec | None:
        """The run whose masks it takes, which must be done before."""
        return RunSpec(self.info.depends_on, self.seed, demo=self.demo) if self.info.depends_on else None

    def __str__(self) -> str:
        return f"{self.spec} seed {self.seed}" + (f" ({self.demo})" if self.demo else "")


def canonical(run: RunSpec) -> RunSpec:
    """The named experiment of the same configuration where there is one: (200, 0.016) is cifar100_ham."""
    if not run.overrides:
        return run
    own_hash = run.info.config_hash
    named = (
        spec for spec, info in lock()[run.demo].items() if info.config_hash == own_hash and " " not in spec
    )
    return next((replace(run, exp=spec, overrides=()) for spec in named), run)


def with_sources(runs: list[RunSpec]) -> list[RunSpec]:
    """The runs and those whose masks they take, each once and none before its source."""
    ordered: dict[RunSpec, None] = {}
    for run in runs:
        if (source := run.depends_on) is not None:
            ordered.update(dict.fromkeys(with_sources([source])))
        ordered[run] = None
    return list(ordered)


@cache
def lock() -> dict[str, dict[str, RunInfo]]:
    """Scale ("" is the paper's) -> spec -> facts. Raises PlanError if configs/ has changed since."""
    with reading(LOCK):
        scales = {key: value for key, value in _lock_content().items() if key not in ("configs", "tasks")}
        return {demo: {spec: RunInfo(**info) for spec, info in runs.items()} for demo, runs in scales.items()}


@cache
def tasks() -> dict[str, TaskInfo]:
    """Name of a task -> what reports need of it. Raises PlanError if configs/ has changed since."""
    with reading(LOCK):
        known = _lock_content()["tasks"]
        return {
            name: TaskInfo(tuple(task["reported"]), task["stores_history"]) for name, task in known.items()
        }


def _lock_content() -> dict[str, Any]:
    content = json.loads(read_text(LOCK))
    if content["configs"] != configs_digest():
        raise PlanError(f"configs/ has changed since {LOCK.name} was written: run python scripts/lock.py")
    return content


def configs_digest() -> str:
    """SHA-256 of the configurations, without tables/, whose missing runs `RunSpec.info` reports."""
    digest = sha256()
    for path in sorted(CONFIGS.rglob("*.yaml")):
        if path.parent.name != "tables":
            digest.update(f"{path.relative_to(CONFIGS)}\0{read_text(path)}\0".encode())
    return digest.hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise PlanError, in one line, for an error in a file of configs/."""
    try:
        yield
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise PlanError(f"{path.relative_to(CONFIGS.parent)} cannot be used: {problem}") from None
