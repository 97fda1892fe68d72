"""What the paper's tables and figures are made of: cells, the runs behind them, what is known of each run.

Reads configs/tables, configs/figures and configs/lock.json (written by scripts/lock.py); imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Cell:
    """A cell of a table: one experiment over seeds.

    Args:
        exp: the experiment.
        metric: key of a summary's `metrics`.
        paper: mean and, where it is printed, standard deviation, in percent.
        single_run: the paper marks it as one run.
        seeds: of its runs where they are not the table's.
    """

    exp: str
    metric: str
    paper: tuple[float, ...] = ()
    single_run: bool = False
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of a table; None where the paper has no cell."""

    label: str
    cells: tuple[Cell | None, ...]
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper, or a control the paper lacks (name control_*)."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]

    @property
    def cells(self) -> list[Cell]:
        """All of them, row by row."""
        return [cell for row in self.rows for cell in row.cells if cell is not None]

    def has_scale(self, demo: str) -> bool:
        """Can its runs be scaled down so? Graphs cannot."""
        return all(cell.exp in lock()[demo] for cell in self.cells)

    def runs(self, seeds: tuple[int, ...] | None = None, demo: str = "") -> list[Run]:
        """The distinct runs behind the cells, without those whose masks they take."""
        return list(
            dict.fromkeys(
                Run(c.exp, seed, demo=demo)
                for c in self.cells
                for seed in ((c.seeds or self.seeds) if seeds is None else seeds)
            )
        )


@dataclass(frozen=True)
class Panel:
    """One plot of curves over epochs; every `every`th epoch, values times `scale`."""

    metric: str
    label: str
    scale: float = 1.0
    every: int = 1


@dataclass(frozen=True)
class Figure:
    """A figure: `curves` of the series' metrics over epochs, or a `grid` over (alpha, beta).

    `points` of a grid maps (alpha, beta) to what is run there; `chosen` is the paper's choice.
    """

    name: str
    kind: str
    title: str
    seeds: tuple[int, ...]
    panels: tuple[Panel, ...] = ()
    series: dict[str, str] = field(default_factory=dict)
    points: dict[tuple[float, float], Run] = field(default_factory=dict)
    metric: str = "top1_last"
    chosen: tuple[float, float] | None = None

    def runs(self, seeds: tuple[int, ...] | None = None, demo: str = "") -> list[Run]:
        """The distinct runs it shows."""
        chosen = self.seeds if seeds is None else seeds
        return list(dict.fromkeys(run for seed in chosen for run in self._of_seed(seed, demo)))

    def _of_seed(self, seed: int, demo: str) -> Iterator[Run]:
        for exp in self.series.values():
            yield Run(exp, seed, demo=demo)
        for run in self.points.values():
            yield canonical(replace(run, seed=seed, demo=demo))


def tables() -> list[str]:
    """Names of all tables."""
    return sorted(path.stem for path in (CONFIGS / "tables").glob("*.yaml"))


def figures() -> list[str]:
    """Names of all figures."""
    return sorted(path.stem for path in (CONFIGS / "figures").glob("*.yaml"))


def table(name: str) -> Table:
    """Table `4`, `table04` or `control_str`. Raises PlanError."""
    name = _known(f"table{int(name):02}" if name.isdecimal() else name, tables(), "table")
    path = CONFIGS / "tables" / f"{name}.yaml"
    with _reading(path):
        return _table(name, _yaml(path))


def _table(name: str, content: dict[str, Any]) -> Table:
    common = {"metric": content["metric"]}
    columns = [{"seeds": tuple(seeds)} for seeds in content.get("column_seeds", [])]
    columns = columns or [{}] * len(content["columns"])
    rows = tuple(
        Row(
            row["label"],
            tuple(
                None if c is None else _cell(common | column | c)
                for c, column in zip(row["cells"], columns, strict=True)
            ),
            row.get("group", ""),
        )
        for row in content["rows"]
    )
    return Table(name, content["title"], tuple(content["columns"]), rows, tuple(content["seeds"]))


def figure(name: str) -> Figure:
    """Figure `11`, `2a` or `figure11`. Raises PlanError."""
    name = full_name(name)
    path = CONFIGS / "figures" / f"{_known(name, figures(), 'figure')}.yaml"
    with _reading(path):
        return _figure(name, _yaml(path))


def _figure(name: str, content: dict[str, Any]) -> Figure:
    common = dict(name=name, kind=content["kind"], title=content["title"], seeds=tuple(content["seeds"]))
    if content["kind"] == "curves":
        panels = tuple(Panel(**panel) for panel in content["panels"])
        return Figure(**common, panels=panels, series={k: v["exp"] for k, v in content["series"].items()})
    if content["kind"] != "grid":
        raise ValueError(f"kind is curves or grid, not {content['kind']}")
    points = {
        (alpha, beta): Run(content["exp"], 0, (f"ham.alpha={alpha}", f"ham.beta={beta}"))
        for alpha in content["alpha"]
        for beta in content["beta"]
    }
    chosen = tuple(content["chosen"])
    return Figure(**common, points=points, metric=content["metric"], chosen=chosen)


def full_name(figure: str) -> str:
    """`2a` -> `figure02a`; full names stay."""
    digits = figure.rstrip("abc")
    return f"figure{int(digits):02}{figure[len(digits) :]}" if digits.isdecimal() else figure


def every_run() -> list[Run]:
    """The runs of all tables and figures at the paper's scale, one per configuration and seed."""
    runs = [run for name in tables() for run in table(name).runs()]
    return list(dict.fromkeys([*runs, *(run for name in figures() for run in figure(name).runs())]))


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
    with _reading(LOCK):
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
def _reading(path: Path) -> Iterator[None]:
    """What is wrong with a file of configs/, in one line."""
    try:
        yield
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise PlanError(f"{path.relative_to(CONFIGS.parent)} cannot be used: {what}") from None


def _cell(content: dict[str, Any]) -> Cell:
    return Cell(**content | {"paper": tuple(content.get("paper", ()))})


def _known(name: str, names: list[str], kind: str) -> str:
    if name not in names:
        raise PlanError(f"there is no {kind} {name!r}: choose one of {', '.join(names)}")
    return name


@cache
def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())
