"""How much of each table and figure has been run: the page results/tables/coverage.md.

Counts the cells of the plan (configs/) that have records; needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from . import captions, plan
from .spec import RunSpec, canonical

_HEAD = """\
# Coverage of the paper's tables and figures

How many cells of each table, and curves or points of each figure, have runs, and how many runs are missing.

Written by `python scripts/index.py` from configs/ and the records; do not edit. **parts**: cells of a table,
curves of a figure, points of a grid. **started**: parts with at least one run; **complete**: with all seeds.
**runs**: distinct runs that have a record, of those needed; tables share runs, so the sums count each run
once. **state**: complete if all parts are complete, partial if at least one is started, otherwise not run.
"""
_COLUMNS = ("", "content", "started", "complete", "parts", "runs", "state")


@dataclass(frozen=True)
class Coverage:
    """Counts of one table or figure.

    Args:
        label: `Table 4`, `Figure 2a`, or the name of a control.
        title: what it shows.
        parts: cells, curves or points.
        started: parts with a record.
        complete: parts with a record for each seed.
        needed: the distinct runs.
        done: those that have a record.
    """

    label: str
    title: str
    parts: int
    started: int
    complete: int
    needed: frozenset[RunSpec] = frozenset()
    done: frozenset[RunSpec] = frozenset()

    @property
    def state(self) -> str:
        """`complete`, `partial` or `not run`."""
        if self.parts and self.complete == self.parts:
            return "complete"
        return "partial" if self.started else "not run"


def label_of(name: str) -> str:
    """`table04` -> `Table 4`, `figure02a` -> `Figure 2a`; controls keep their name."""
    for kind in ("table", "figure"):
        if name.startswith(kind):
            return f"{kind.capitalize()} {name.removeprefix(kind).lstrip('0')}"
    return name


def of_table(name: str, records: Collection[RunSpec], demo: str = "") -> Coverage:
    """Coverage of a table of the plan; parts are its cells."""
    table = plan.table(name)
    parts = [[RunSpec(c.exp, seed, demo=demo) for seed in c.seeds or table.seeds] for c in table.cells]
    return _count(name, table.title, parts, records)


def of_figure(name: str, records: Collection[RunSpec], demo: str = "") -> Coverage:
    """Coverage of a figure of the plan; parts are its curves, or the points of its grid."""
    figure = plan.figure(name)
    curves = [[RunSpec(exp, seed, demo=demo) for seed in figure.seeds] for exp in figure.series.values()]
    points = [[replace(run, seed=seed, demo=demo) for seed in figure.seeds] for run in figure.points.values()]
    return _count(name, figure.title, curves + points, records)


def _count(name: str, title: str, parts: list[list[RunSpec]], records: Collection[RunSpec]) -> Coverage:
    """A point of a grid has a record if it has one itself, or the experiment of its configuration has."""
    named = {run: canonical(run) for part in parts for run in part}
    done = {run for run, other in named.items() if run in records or other in records}
    return Coverage(
        label_of(name),
        title,
        len(parts),
        sum(any(run in done for run in part) for part in parts),
        sum(all(run in done for run in part) for part in parts),
        frozenset(named.values()),
        frozenset(named[run] for run in done),
    )


def of_plan(records: Collection[RunSpec], demo: str = "") -> dict[str, Coverage]:
    """Name -> coverage of every table and figure that exists at a scale."""
    counts = {
        name: of_table(name, records, demo) for name in plan.tables() if plan.table(name).has_scale(demo)
    }
    return counts | {
        name: of_figure(name, records, demo) for name in plan.figures() if plan.figure(name).has_scale(demo)
    }


def page(records: Mapping[str, Collection[RunSpec]], simulated: Collection[str]) -> str:
    """The page as markdown.

    Args:
        records: scale ("" is the paper's) -> its runs that have a record.
        simulated: names of the theory's figures that have data.
    """
    lines = [_HEAD]
    for demo, runs in records.items():
        counts = of_plan(runs, demo)
        lines.append(f"## Scaled down: {demo}\n" if demo else "## The paper's setting\n")
        rows = _rows(counts, None if demo else simulated)
        lines += [_row(_COLUMNS), "|---" * len(_COLUMNS) + "|", *map(_row, rows), ""]
    return "\n".join(lines)


def _rows(counts: Mapping[str, Coverage], simulated: Collection[str] | None) -> list[tuple[str, ...]]:
    """Tables, their sum, controls, figures and their sum; the theory's figures unless `simulated` is None."""
    tables = {name: count for name, count in counts.items() if name.startswith("table")}
    figures = {name: count for name, count in counts.items() if name.startswith("figure")}
    controls = [count for name, count in counts.items() if name not in tables | figures]
    rows = {name: _texts(count) for name, count in tables.items()}
    shown = {name: _texts(count) for name, count in figures.items()}
    if simulated is not None:
        shown |= {
            name: (label_of(name), title, *("-",) * 4, "simulated" if name in simulated else "not run")
            for name, (title, _) in captions.THEORY.items()
        }
    ordered = [row for _, row in sorted(rows.items())]
    drawn = [row for _, row in sorted(shown.items())]
    sums = [_texts(total("all tables", tables.values())), _texts(total("everything", counts.values()))]
    return [*ordered, sums[0], *map(_texts, controls), *drawn, sums[1]]


def total(label: str, counts: Iterable[Coverage]) -> Coverage:
    """The sum; a run that several need counts once."""
    every = list(counts)
    return Coverage(
        label,
        "",
        sum(count.parts for count in every),
        sum(count.started for count in every),
        sum(count.complete for count in every),
        frozenset().union(*(count.needed for count in every)),
        frozenset().union(*(count.done for count in every)),
    )


def _texts(count: Coverage) -> tuple[str, ...]:
    runs = f"{len(count.done)} of {len(count.needed)}"
    numbers = map(str, (count.started, count.complete, count.parts))
    return (count.label, count.title, *numbers, runs, count.state)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
