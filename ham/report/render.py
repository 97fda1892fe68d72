"""Renders tables as markdown and CSV; latex.py renders LaTeX, of the same `Text` as markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .statistics import Sample
from .tables import CellResult, RowResult, TableResult

NOT_RUN, DIVERGED = "not run", "diverged"
PLUS_MINUS = "\u00b1"  # in markdown and figures; "+-" in a `Text`, $\\pm$ in LaTeX
NAMES = ("", "type", "method")  # heads of columns that name a row
NONE = "-"  # the table has no such cell or number
CSV_COLUMNS = (
    *("table", "group", "row", "column", "exp", "metric", "seeds", "n", "mean", "std"),
    *("paper_mean", "paper_std", "paper_single_run", "difference", "low", "high"),
    *("target_sparsity", "achieved_sparsity", "processes", "planned_seeds"),
)


@dataclass(frozen=True)
class Text:
    """A table as text, in plain ASCII; the renderers choose the sign for +-.

    Args:
        name: name of its file.
        title: one line, with the paper's number if it has one.
        notes: sentences under the caption, the most important one first.
        head: a name for each column.
        blocks: rows that belong together; space separates the blocks.
        caption: description of the table for a reader who has only this table.
        formulas: cells that are formulas, as LaTeX in math mode.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    head: tuple[str, ...]
    blocks: tuple[tuple[tuple[str, ...], ...], ...]
    caption: str = ""
    formulas: Mapping[str, str] = field(default_factory=dict)

    @property
    def name_columns(self) -> int:
        """How many columns name a row; numbers follow them."""
        return sum(column in NAMES for column in self.head) or 1


def to_text(table: TableResult) -> Text:
    """The table as text: a block per method, with a row for each kind of number."""
    is_grouped = any(row.group for row in table.rows)
    start = ("type", "method", "") if is_grouped else ("", "")
    names = len(start) - 1
    facts = [(label, *[""] * names, *map(str, values)) for label, values in table.facts.items()]
    blocks = [tuple(facts)] if facts else []
    for row in table.rows:
        names = [row.group, row.label] if is_grouped else [row.label]
        lines = [
            (*([""] * len(names) if i else names), kind, *cells)
            for i, (kind, cells) in enumerate(_kinds(table, row))
        ]
        blocks.append(tuple(lines))
    head = (*start, *table.columns)
    return Text(table.name, table.title, table.notes, head, tuple(blocks), table.caption)


def _kinds(table: TableResult, row: RowResult) -> list[tuple[str, list[str]]]:
    kinds: list[tuple[str, Callable[[CellResult], str]]] = [("ours", ours_text)]
    if table.has_paper:
        kinds += [("paper", paper_text), ("difference", difference_text)]
    if any(cell is not None and cell.target for cell in row.cells):
        kinds.append(("sparsity", sparsity_text))
    if any(cell is not None and cell.paired for cell in row.cells):
        kinds.append(("paired", paired_text))
    return [
        (kind, [NONE if cell is None else to_words(cell) for cell in row.cells]) for kind, to_words in kinds
    ]


def ours_text(cell: CellResult) -> str:
    """`76.71 +- 0.10 (n = 3)`, `76.71 +- 0.10 (n = 2 of 3)` if runs are missing, `diverged (3 of 3)`."""
    if cell.ours is None:
        return f"{DIVERGED} ({cell.diverged} of {cell.planned})" if cell.diverged else NOT_RUN
    of = f" of {cell.planned}" if cell.ours.n < cell.planned else ""
    return f"{_spread(cell.ours)} (n = {cell.ours.n}{of})"


def paper_text(cell: CellResult) -> str:
    """`76.66 +- 0.12`, `52.90 (*)` for a single run."""
    if cell.paper is None:
        return NONE
    return _spread(cell.paper) + (" (*)" if cell.cell.single_run else "")


def difference_text(cell: CellResult) -> str:
    """`+0.05 [-0.18, +0.28]`."""
    return NONE if cell.difference is None else str(cell.difference)


def paired_text(cell: CellResult) -> str:
    """`+0.05 [-0.18, +0.28]`."""
    return NONE if cell.paired is None else str(cell.paired)


def sparsity_text(cell: CellResult) -> str:
    """`90.00 % (target 90 %)`."""
    if not cell.target:
        return "dense"
    target = f"target {100 * cell.target:g} %"
    return target if cell.achieved is None else f"{100 * cell.achieved:.2f} % ({target})"


def _spread(sample: Sample) -> str:
    return f"{sample.mean:.2f}" + (f" +- {sample.std:.2f}" if sample.std is not None else "")


def markdown(table: Text) -> str:
    """A markdown page: title, caption, notes, table."""
    rows = [table.head, ("---",) * len(table.head), *(row for block in table.blocks for row in block)]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    paragraphs = [table.caption, *table.notes] if table.caption else table.notes
    notes = [part for paragraph in paragraphs for part in (paragraph, "")]
    return "\n".join([f"# {table.title}", "", *notes, *lines, ""]).replace("+-", PLUS_MINUS)


def comma_separated(table: TableResult) -> str:
    """Tidy CSV: one line per cell with all its numbers, unrounded; sparsities are fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell is not None:
                writer.writerow([table.name, row.group, row.label, column, *_numbers(cell)])
    return out.getvalue()


def _numbers(cell: CellResult) -> list[str | int]:
    ours, paper, difference = cell.ours, cell.paper, cell.difference
    low, high = difference.interval if difference and difference.interval else (None, None)
    return [
        *(cell.cell.exp, cell.cell.metric, " ".join(map(str, cell.seeds)), len(cell.seeds)),
        *map(_number, (ours and ours.mean, ours and ours.std, paper and paper.mean, paper and paper.std)),
        "" if paper is None else str(cell.cell.single_run).lower(),
        *map(_number, (difference and difference.value, low, high, cell.target, cell.achieved)),
        *(" ".join(map(str, cell.world_sizes)), cell.planned),
    ]


def _number(value: float | None) -> str:
    """Ten digits, since later ones differ between machines."""
    return "" if value is None else f"{value:.10g}"
