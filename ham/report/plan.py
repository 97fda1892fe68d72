"""The paper's tables and figures: their cells and curves, and the runs that these need.

Reads configs/tables and configs/figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ham.files import read_text

from .spec import CONFIGS, PlanError, RunSpec, canonical, lock, reading


@dataclass(frozen=True)
class Cell:
    """A cell of a table: one experiment over seeds.

    Args:
        exp: the experiment.
        metric: key of a summary's `metrics`.
        paper: mean and, if printed, standard deviation, in percent.
        single_run: the paper marks it as one run.
        seeds: seeds of its runs if they differ from the table's.
        against: the experiment that it is compared with, seed by seed; "" for none.
    """

    exp: str
    metric: str
    paper: tuple[float, ...] = ()
    single_run: bool = False
    seeds: tuple[int, ...] = ()
    against: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table; None where the paper has no cell."""

    label: str
    cells: tuple[Cell | None, ...]
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper, or a control that the paper lacks (name control_*).

    `note` is printed, `caption` says what the table shows to a reader who has only this table. `facts` are
    rows of numbers about the columns, such as the sizes of graphs. `search` has the methods whose (alpha,
    beta) the paper searched for, see `ham.report.search_grid`.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    note: str = ""
    caption: str = ""
    facts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    search: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """All cells, row by row."""
        return [cell for row in self.rows for cell in row.cells if cell is not None]

    def has_scale(self, demo: str) -> bool:
        """Return True if this scale exists for all runs. Graphs have no demo; images and text differ."""
        return all(cell.exp in lock()[demo] for cell in self.cells)

    def runs(self, seeds: tuple[int, ...] | None = None, demo: str = "") -> list[RunSpec]:
        """The distinct runs of the cells, without those whose masks they take."""
        return list(
            dict.fromkeys(
                RunSpec(c.exp, seed, demo=demo)
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

    `points` of a grid maps (alpha, beta) to its run; `chosen` is the paper's choice.
    """

    name: str
    kind: str
    title: str
    seeds: tuple[int, ...]
    panels: tuple[Panel, ...] = ()
    series: dict[str, str] = field(default_factory=dict)
    points: dict[tuple[float, float], RunSpec] = field(default_factory=dict)
    metric: str = "top1_last"
    chosen: tuple[float, float] | None = None

    def has_scale(self, demo: str) -> bool:
        """Return True if this scale exists for all of its runs."""
        return all(run.spec in lock()[demo] for run in self._specs())

    def _specs(self) -> list[RunSpec]:
        return [*(RunSpec(exp, 0) for exp in self.series.values()), *self.points.values()]

    def runs(self, seeds: tuple[int, ...] | None = None, demo: str = "") -> list[RunSpec]:
        """The distinct runs it shows."""
        chosen = self.seeds if seeds is None else seeds
        return list(dict.fromkeys(run for seed in chosen for run in self._of_seed(seed, demo)))

    def _of_seed(self, seed: int, demo: str) -> Iterator[RunSpec]:
        for exp in self.series.values():
            yield RunSpec(exp, seed, demo=demo)
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
    name = _check_name(table_name(name), tables(), "table")
    path = CONFIGS / "tables" / f"{name}.yaml"
    with reading(path):
        return _table(name, read_yaml(path))


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
    columns, seeds = tuple(content["columns"]), tuple(content["seeds"])
    texts = content.get("note", ""), content.get("caption", "")
    facts = {label: tuple(values) for label, values in content.get("facts", {}).items()}
    if any(len(values) != len(columns) for values in facts.values()):
        raise ValueError(f"facts need a value for each of the {len(columns)} columns")
    search = content.get("search", [])
    if not isinstance(search, list):
        raise ValueError(f"search must be a list of methods, got {search!r}")
    return Table(name, content["title"], columns, rows, seeds, *texts, facts, tuple(search))


def figure(name: str) -> Figure:
    """Figure `11`, `2a` or `figure11`. Raises PlanError."""
    name = figure_name(name)
    path = CONFIGS / "figures" / f"{_check_name(name, figures(), 'figure')}.yaml"
    with reading(path):
        return _figure(name, read_yaml(path))


def _figure(name: str, content: dict[str, Any]) -> Figure:
    common = dict(name=name, kind=content["kind"], title=content["title"], seeds=tuple(content["seeds"]))
    if content["kind"] == "curves":
        panels = tuple(Panel(**panel) for panel in content["panels"])
        return Figure(**common, panels=panels, series={k: v["exp"] for k, v in content["series"].items()})
    if content["kind"] != "grid":
        raise ValueError(f"kind must be curves or grid, not {content['kind']}")
    points = {
        (alpha, beta): RunSpec(content["exp"], 0, (f"ham.alpha={alpha}", f"ham.beta={beta}"))
        for alpha in content["alpha"]
        for beta in content["beta"]
    }
    chosen = tuple(content["chosen"])
    return Figure(**common, points=points, metric=content["metric"], chosen=chosen)


def table_name(name: str) -> str:
    """The full name: `4` -> `table04`; full names and names of controls stay."""
    digits = name.removeprefix("table")
    return f"table{int(digits):02}" if digits.isdecimal() else name


def figure_name(name: str) -> str:
    """The full name: `2a` -> `figure02a`; full names stay."""
    number = name.removeprefix("figure")
    digits = number.rstrip("abc")
    return f"figure{int(digits):02}{number[len(digits) :]}" if digits.isdecimal() else name


def every_run() -> list[RunSpec]:
    """The runs of all tables and figures at the paper's scale, one per configuration and seed."""
    runs = [run for name in tables() for run in table(name).runs()]
    return list(dict.fromkeys([*runs, *(run for name in figures() for run in figure(name).runs())]))


def _cell(content: dict[str, Any]) -> Cell:
    return Cell(**content | {"paper": tuple(content.get("paper", ()))})


def _check_name(name: str, names: list[str], kind: str) -> str:
    """The name, if it is one of `names`; raises PlanError otherwise."""
    if name not in names:
        theory = "; scripts/figures.py --theory draws the others" if kind == "figure" else ""
        raise PlanError(f"unknown {kind} {name!r}: choose one of {', '.join(names)}{theory}")
    return name


@cache
def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a file of configs/; do not change it."""
    return yaml.safe_load(read_text(path))
