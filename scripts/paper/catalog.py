"""What is known of each training run: its configuration's hash, length, sparsity, and whose masks it takes.

Reads configs/lock.json, which scripts/lock.py writes; imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
LOCK = CONFIGS / "lock.json"


class PlanError(Exception):
    """There is no such table, figure or run; the message is one line and names what there is."""


@dataclass(frozen=True)
class Facts:
    """What configs/lock.json says of a run, the seed apart.

    Args:
        config_hash: identity of its configuration, `ham.run.config.config_hash`.
        base: its row of the paper's Table 5, a file of configs/base.
        epochs: how many.
        passes: forward and backward passes per step; SAM takes two.
        sparsity: the target, 0 for dense.
        needs: the experiment whose masks it takes, from the run of the same seed; "" for none.
    """

    config_hash: str
    base: str
    epochs: int
    passes: int
    sparsity: float
    needs: str


@dataclass(frozen=True, order=True)
class Run:
    """One training run: an experiment, altered values if any, a scale ("" is the paper's), a seed."""

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
    def facts(self) -> Facts:
        """What the lock file says. Raises PlanError where it knows no such run."""
        try:
            return lock()[self.demo][self.spec]
        except KeyError:
            if self.demo and self.spec in lock()[""]:
                raise PlanError(f"{self.exp} has no demo={self.demo}: leave --demo out") from None
            scale = f" at demo={self.demo}" if self.demo else ""
            raise PlanError(
                f"{LOCK.name} knows no {self.spec!r}{scale}: run python scripts/lock.py"
            ) from None

    @property
    def name(self) -> str:
        """The run directory's first part, as `ham.run.main.run_directory` names it."""
        altered = self.facts.config_hash[:8] if self.overrides else ""
        return "-".join(filter(None, [self.exp, self.demo, altered]))

    def folder(self, runs: Path) -> Path:
        """Its run directory."""
        return runs / self.name / f"seed{self.seed}"

    def source(self) -> Run | None:
        """The run whose masks it takes, which must be done before."""
        return Run(self.facts.needs, self.seed, demo=self.demo) if self.facts.needs else None

    def __str__(self) -> str:
        return f"{self.spec} seed {self.seed}" + (f" ({self.demo})" if self.demo else "")


def canonical(run: Run) -> Run:
    """The named experiment of the same configuration where there is one: (200, 0.016) is cifar100_ham."""
    if not run.overrides:
        return run
    mine = run.facts.config_hash
    named = (
        spec for spec, facts in lock()[run.demo].items() if facts.config_hash == mine and " " not in spec
    )
    return next((replace(run, exp=spec, overrides=()) for spec in named), run)


def with_sources(runs: list[Run]) -> list[Run]:
    """The runs and those whose masks they take, each once and none before its source."""
    ordered: dict[Run, None] = {}
    for run in runs:
        if (source := run.source()) is not None:
            ordered.update(dict.fromkeys(with_sources([source])))
        ordered[run] = None
    return list(ordered)


@cache
def lock() -> dict[str, dict[str, Facts]]:
    """Scale ("" is the paper's) -> spec -> facts. Raises PlanError where configs/ is not what it was."""
    with reading(LOCK):
        content = json.loads(LOCK.read_text())
        if content.pop("configs") != configs_digest():
            raise PlanError(f"configs/ has changed since {LOCK.name} was written: run python scripts/lock.py")
        return {
            demo: {spec: Facts(**facts) for spec, facts in runs.items()} for demo, runs in content.items()
        }


def configs_digest() -> str:
    """SHA-256 of the configurations; tables/ only says where their runs are shown."""
    digest = sha256()
    for path in sorted(CONFIGS.rglob("*.yaml")):
        if path.parent.name != "tables":
            digest.update(f"{path.relative_to(CONFIGS)}\0{path.read_text()}\0".encode())
    return digest.hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What is wrong with a file of configs/, in one line."""
    try:
        yield
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise PlanError(f"{path.relative_to(CONFIGS.parent)} cannot be used: {what}") from None
