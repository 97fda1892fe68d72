"""A table with its numbers: for each cell our runs, the paper's number, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from . import plan
from .plan import Cell
from .records import Record
from .spec import RunSpec
from .statistics import Difference, Sample, difference

SCALED_DOWN = {  # row of Table 5 -> what +demo=digits makes of its model
    "imagenet_rn50": "a narrow ResNet50 with one bottleneck per stage",
    "cifar100_rn18": "a narrow ResNet18 with one block per stage",
    "imagenet_deit": "a DeiT of 4 blocks of width 64",
}
SPREAD = (
    "Ours: mean +- sample standard deviation (ddof 1) over the {seeds} that have a record, n of them; "
    "a single run has no +-."
)
PAPER = (
    "Paper: as printed, as many seeds, (*) a single run; by which convention its +- was computed is unknown, "
    "it is taken for a sample standard deviation. Difference: ours - paper, with Welch's 95 % interval where "
    "both have a +-."
)
CONTROL = "A control that the paper lacks."
SPARSITY = "Sparsity: achieved, mean over the runs, then the target."
MIXED = "Runs were made by {ranks} processes (the csv says which): BatchNorm's batches differ between them."
DEMO = (
    "Scaled-down runs, not the paper's setting: {models} on scikit-learn's 8x8 digits (1,437 training and "
    "360 test images), {epochs} epochs, on a CPU. Differences of a few tenths are single images: this ranks "
    "nothing, and the paper's numbers are no measure for it.{same}"
)


@dataclass(frozen=True)
class CellResult:
    """A cell with its numbers.

    Args:
        cell: what it is.
        ours: over the seeds that have a record, None if none has.
        seeds: those seeds.
        paper: the paper's, None for a control or a scaled-down run.
        target: sparsity, 0 for dense.
        achieved: mean over the runs, None without any.
        ranks: numbers of processes that the runs were made by.
    """

    cell: Cell
    ours: Sample | None
    seeds: tuple[int, ...]
    paper: Sample | None
    target: float
    achieved: float | None
    ranks: tuple[int, ...] = ()

    @cached_property
    def difference(self) -> Difference | None:
        """From the paper's number, where both are there."""
        return difference(self.ours, self.paper) if self.ours and self.paper else None


@dataclass(frozen=True)
class RowResult:
    """A row of the table; None where it has no such cell."""

    group: str
    label: str
    entries: tuple[CellResult | None, ...]


@dataclass(frozen=True)
class TableResult:
    """A table to be rendered; `notes` are its sentences, the first the most important."""

    name: str
    title: str
    columns: tuple[str, ...]
    lines: tuple[RowResult, ...]
    notes: tuple[str, ...]

    @property
    def entries(self) -> list[CellResult]:
        """All of them, row by row."""
        return [entry for line in self.lines for entry in line.entries if entry is not None]

    @property
    def has_paper(self) -> bool:
        """Are the paper's numbers beside ours?"""
        return any(entry.paper for entry in self.entries)


def report(name: str, records: Mapping[RunSpec, Record], demo: str = "") -> TableResult:
    """Table `name` from the records of one scale. Raises PlanError, Unfit."""
    table = plan.table(name)
    lines = tuple(
        RowResult(
            row.group,
            row.label,
            tuple(c and _entry(c, c.seeds or table.seeds, records, demo) for c in row.cells),
        )
        for row in table.rows
    )
    number = _number(table.name)
    heading = f"{number}. {table.title}" if number else table.title
    made = TableResult(table.name, heading, table.columns, lines, ())
    spread = SPREAD.format(seeds=_seeds(table))
    sparse = (SPARSITY,) if any(entry.target for entry in made.entries) else ()
    if demo:
        notes = (_scaled_down(table, demo), spread, *sparse)
        heading = (
            f"Scaled down, not the paper's setting: {f'the runs of {number}' if number else table.title}"
        )
        return TableResult(f"demo_{made.name}", heading, made.columns, lines, notes)
    about = PAPER if made.has_paper else CONTROL
    ranks = sorted({ranks for entry in made.entries for ranks in entry.ranks})
    mixed = (MIXED.format(ranks=", ".join(map(str, ranks))),) if len(ranks) > 1 else ()
    note = (table.note,) if table.note else ()
    return TableResult(made.name, heading, made.columns, lines, (spread, about, *sparse, *mixed, *note))


def _entry(cell: Cell, seeds: tuple[int, ...], records: Mapping[RunSpec, Record], demo: str) -> CellResult:
    found = [records[run] for seed in seeds if (run := RunSpec(cell.exp, seed, demo=demo)) in records]
    achieved = [record.content["sparsity"]["overall"] for record in found]
    return CellResult(
        cell,
        Sample.of([record.metric(cell.metric) for record in found]) if found else None,
        tuple(record.run.seed for record in found),
        Sample.of_paper(cell.paper, 1 if cell.single_run else len(seeds))
        if cell.paper and not demo
        else None,
        RunSpec(cell.exp, 0, demo=demo).info.sparsity,
        Sample.of(achieved).mean if found else None,
        tuple(sorted({ranks for record in found for ranks in _ranks(record)})),
    )


def _ranks(record: Record) -> list[int]:
    """Processes of each stretch of a run: BatchNorm's batches are those of one process."""
    info = record.content["provenance"]
    return [part["ranks"] for part in (info, *info["resumed_from"]) if part.get("ranks")]


def _seeds(table: plan.Table) -> str:
    """`seeds 0, 1, 2`, or how many of each column."""
    counts = sorted({len(cell.seeds or table.seeds) for cell in table.cells})
    if len(counts) == 1 and not table.cells[0].seeds:
        return f"seeds {', '.join(map(str, table.seeds))}"
    return f"{' or '.join(map(str, counts))} seeds of each column"


def _number(name: str) -> str:
    digits = name.removeprefix("table")
    return f"Table {int(digits)}" if digits.isdecimal() else ""


def _scaled_down(table: plan.Table, demo: str) -> str:
    info = [run.info for run in table.runs(demo=demo)]
    models = " and ".join(dict.fromkeys(SCALED_DOWN[fact.base] for fact in info))
    epochs = " or ".join(map(str, sorted({fact.epochs for fact in info})))
    hashes = {name: RunSpec(name, 0, demo=demo).info.config_hash for name in {c.exp for c in table.cells}}
    alike = len({*hashes.values()}) < len(hashes)
    same = " Cells that differ in epochs alone are the same runs here." if alike else ""
    return DEMO.format(models=models, epochs=epochs, same=same)
