"""The numbers of a table: for each cell our runs, the paper's number, and their difference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from . import plan
from .plan import Cell
from .records import Record
from .scales import SCALES, file_name
from .spec import RunSpec
from .statistics import Difference, Sample, difference, mean_of

OURS = (
    "Ours: mean +- sample standard deviation (ddof 1) over the n runs of {seeds} that have a record; a "
    "single run has no +-."
)
PAPER = (
    "Paper: as printed, with the same number of seeds; (*) marks a single run. The convention of its +- is "
    "unknown; it is treated as a sample standard deviation. Difference: ours - paper, with Welch's 95 % "
    "interval where both have a +-."
)
CONTROL = "A control that the paper lacks."
SPARSITY = "Sparsity: achieved, mean over the runs, then the target."
PAIRED = (
    "Paired: mean over the seeds of the difference to the row above, with Student's 95 % interval where "
    "there are two seeds or more."
)
MISSING = "n = k of m: m - k seeds have no record; the csv lists those that have one."
WORLD_SIZES = (
    "The runs used different numbers of processes ({world_sizes}; the csv has them per cell), so the batches "
    "of their BatchNorm layers differ."
)
DEMO = (
    "Scaled-down runs, not the paper's setting: {models} on {data}, {epochs} epochs, on a CPU. {caveat}{same}"
)
SAME_NETWORK = " Rows that differ only in the paper's network are the same runs here."
SAME = " Cells that differ only in their epochs are the same runs here."


@dataclass(frozen=True)
class CellResult:
    """A cell with its numbers.

    Args:
        cell: the cell of the plan.
        ours: over the seeds that have a record, None without any.
        seeds: those seeds.
        paper: the paper's, None for a control or a scaled-down run.
        target: sparsity, 0 for dense.
        achieved: sparsity, mean over the runs, None without any.
        world_sizes: numbers of processes of the runs.
        planned: number of seeds that it needs.
        paired: mean over the seeds of the difference to `cell.against`, None without.
        diverged: number of seeds that have no record because they diverged.
    """

    cell: Cell
    ours: Sample | None
    seeds: tuple[int, ...]
    paper: Sample | None
    target: float
    achieved: float | None
    world_sizes: tuple[int, ...] = ()
    planned: int = 0
    paired: Difference | None = None
    diverged: int = 0

    @cached_property
    def difference(self) -> Difference | None:
        """Ours minus the paper's, None if one is missing."""
        return difference(self.ours, self.paper) if self.ours and self.paper else None


@dataclass(frozen=True)
class RowResult:
    """A row of the table; None where it has no cell."""

    group: str
    label: str
    cells: tuple[CellResult | None, ...]


@dataclass(frozen=True)
class TableResult:
    """A table with its numbers; `notes` are sentences, the most important one first.

    `caption` says what the table shows, to a reader who has only this table. `facts` are rows of numbers
    about the columns.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[RowResult, ...]
    notes: tuple[str, ...]
    caption: str = ""
    facts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def cells(self) -> list[CellResult]:
        """All cells, row by row."""
        return [cell for row in self.rows for cell in row.cells if cell is not None]

    @property
    def has_paper(self) -> bool:
        """Return True if it shows numbers of the paper."""
        return any(cell.paper for cell in self.cells)


def build_table(
    name: str, records: Mapping[RunSpec, Record], demo: str = "", diverged: Collection[RunSpec] = ()
) -> TableResult:
    """Table `name` from the records of one scale and the runs that diverged. Raises PlanError."""
    table = plan.table(name)
    rows = tuple(
        RowResult(
            row.group,
            row.label,
            tuple(
                cell and _cell_result(cell, cell.seeds or table.seeds, records, demo, diverged)
                for cell in (_at_scale(cell, records, demo) for cell in row.cells)
            ),
        )
        for row in table.rows
    )
    number = _number(table.name)
    title = f"{number}. {table.title}" if number else table.title
    if demo:
        title = f"Scaled down, not the paper's setting: {f'the runs of {number}' if number else table.title}"
    result = TableResult(file_name(table.name, demo), title, table.columns, rows, (), facts=table.facts)
    notes = _notes(table, result, demo)
    caption, notes = (notes[0], notes[1:]) if demo else (table.caption, notes)
    return replace(result, notes=notes, caption=caption)


def _notes(table: plan.Table, result: TableResult, demo: str) -> tuple[str, ...]:
    ours = OURS.format(seeds=_seeds(table))
    sparsity = [SPARSITY] if any(cell.target for cell in result.cells) else []
    sparsity += [PAIRED] if any(cell.paired for cell in result.cells) else []
    if any(cell.ours and cell.ours.n < cell.planned for cell in result.cells):
        ours += f" {MISSING}"
    if demo:
        return (_demo_note(table, demo), ours, *sparsity)
    source_note = PAPER if result.has_paper else CONTROL
    sizes = sorted({size for cell in result.cells for size in cell.world_sizes})
    mixed = [WORLD_SIZES.format(world_sizes=", ".join(map(str, sizes)))] if len(sizes) > 1 else []
    return (ours, source_note, *sparsity, *mixed, *([table.note] if table.note else []))


def _at_scale(cell: Cell | None, records: Mapping[RunSpec, Record], demo: str) -> Cell | None:
    """None for a cell whose metric the runs of a demo do not have, such as a task without data."""
    own = [record for run, record in records.items() if cell and (run.exp, run.demo) == (cell.exp, demo)]
    lacks = demo and own and not any(record.has(cell.metric) for record in own)
    return None if lacks else cell


def _mean_difference(
    cell: Cell, seeds: tuple[int, ...], records: Mapping[RunSpec, Record], demo: str
) -> Difference | None:
    """Mean difference to the experiment `cell.against` over the seeds for which both have a record."""
    pairs = [(RunSpec(cell.exp, seed, demo=demo), RunSpec(cell.against, seed, demo=demo)) for seed in seeds]
    both = [
        [records[run].metric(cell.metric) for run in pair]
        for pair in pairs
        if all(run in records and records[run].has(cell.metric) for run in pair)
    ]
    return mean_of([own - other for own, other in both]) if cell.against and both else None


def _cell_result(
    cell: Cell,
    seeds: tuple[int, ...],
    records: Mapping[RunSpec, Record],
    demo: str,
    diverged: Collection[RunSpec],
) -> CellResult:
    runs = [RunSpec(cell.exp, seed, demo=demo) for seed in seeds]
    recorded = [records[run] for run in runs if run in records and records[run].has(cell.metric)]
    achieved = [record.content["sparsity"]["overall"] for record in recorded]
    has_paper = cell.paper and not demo
    return CellResult(
        cell,
        Sample.of([record.metric(cell.metric) for record in recorded]) if recorded else None,
        tuple(record.run.seed for record in recorded),
        Sample.of_paper(cell.paper, 1 if cell.single_run else len(seeds)) if has_paper else None,
        RunSpec(cell.exp, 0, demo=demo).info.sparsity,
        Sample.of(achieved).mean if recorded else None,
        tuple(sorted({size for record in recorded for size in _world_sizes(record)})),
        len(seeds),
        _mean_difference(cell, seeds, records, demo),
        sum(run in diverged and run not in records for run in runs),
    )


def _world_sizes(record: Record) -> list[int]:
    """The number of processes of each part of a run that was resumed."""
    provenance = record.content["provenance"]
    return [part["ranks"] for part in (provenance, *provenance.get("resumed_from", [])) if part.get("ranks")]


def _seeds(table: plan.Table) -> str:
    """`seeds 0, 1, 2`, or the numbers of seeds if columns have their own."""
    if not any(cell.seeds for cell in table.cells):
        return f"seeds {', '.join(map(str, table.seeds))}"
    counts = sorted({len(cell.seeds or table.seeds) for cell in table.cells})
    return f"the {' or '.join(map(str, counts))} seeds of each column"


def _number(name: str) -> str:
    digits = name.removeprefix("table")
    return f"Table {int(digits)}" if digits.isdecimal() else ""


def _demo_note(table: plan.Table, demo: str) -> str:
    infos = {run.exp: run.info for run in table.runs(demo=demo)}
    scale = SCALES[demo]
    models = " and ".join(dict.fromkeys(scale.models[info.base] for info in infos.values()))
    epochs = " or ".join(map(str, sorted({info.epochs for info in infos.values()})))
    distinct = {(info.base, info.config_hash) for info in infos.values()}  # one network of the paper each
    same = SAME if len(distinct) < len(infos) else ""
    same += SAME_NETWORK if len({own for _, own in distinct}) < len(distinct) else ""
    facts = dict(data=scale.data, caveat=scale.caveat, same=same)
    return DEMO.format(models=models, epochs=epochs, **facts)
