"""Renders tables as markdown, CSV and LaTeX. Markdown and LaTeX are made of the same `Text`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .statistics import Sample
from .tables import CellResult, RowResult, TableResult

NOT_RUN = "not run"
NONE = "-"  # the table has no such cell or number
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}"}
_SPECIAL |= {char: f"\\{char}" for char in "&%$#_{}"}
_SPECIAL |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "*": r"$\ast$", '"': "''"}
_NUMBER = re.compile(r"^Table \d+\. ")  # LaTeX numbers tables itself
CSV_COLUMNS = (
    *("table", "group", "row", "column", "exp", "metric", "seeds", "n", "mean", "std"),
    *("paper_mean", "paper_std", "paper_single_run", "difference", "low", "high"),
    *("target_sparsity", "achieved_sparsity", "processes"),
)


@dataclass(frozen=True)
class Text:
    """A table as text: a head and blocks of rows, which rules separate; all cells are plain ASCII."""

    name: str
    title: str
    notes: tuple[str, ...]
    head: tuple[str, ...]
    blocks: tuple[tuple[tuple[str, ...], ...], ...]


def to_text(table: TableResult) -> Text:
    """The table as text: a block per method, with a row for each kind of number."""
    is_grouped = any(row.group for row in table.rows)
    start = ("type", "method", "") if is_grouped else ("", "")
    blocks = []
    for row in table.rows:
        names = [row.group, row.label] if is_grouped else [row.label]
        lines = [
            (*(names if is_first else [""] * len(names)), kind, *cells)
            for is_first, (kind, cells) in zip([True, False, False, False], _kinds(table, row), strict=False)
        ]
        blocks.append(tuple(lines))
    return Text(table.name, table.title, table.notes, (*start, *table.columns), tuple(blocks))


def _kinds(table: TableResult, row: RowResult) -> list[tuple[str, list[str]]]:
    kinds: list[tuple[str, Callable[[CellResult], str]]] = [("ours", lambda cell: ours_text(cell.ours))]
    if table.has_paper:
        kinds += [("paper", paper_text), ("difference", difference_text)]
    if any(cell is not None and cell.target for cell in row.cells):
        kinds.append(("sparsity", sparsity_text))
    return [
        (kind, [NONE if cell is None else to_words(cell) for cell in row.cells]) for kind, to_words in kinds
    ]


def ours_text(sample: Sample | None) -> str:
    """`76.71 +- 0.10 (n = 3)`."""
    return f"{_spread(sample)} (n = {sample.n})" if sample else NOT_RUN


def paper_text(cell: CellResult) -> str:
    """`76.66 +- 0.12`, `52.90 (*)` for a single run."""
    if cell.paper is None:
        return NONE
    return _spread(cell.paper) + (" (*)" if cell.cell.single_run else "")


def difference_text(cell: CellResult) -> str:
    """`+0.05 [-0.18, +0.28]`."""
    return NONE if cell.difference is None else str(cell.difference)


def sparsity_text(cell: CellResult) -> str:
    """`90.00 % (target 90 %)`."""
    if not cell.target:
        return "dense"
    target = f"target {100 * cell.target:g} %"
    return target if cell.achieved is None else f"{100 * cell.achieved:.2f} % ({target})"


def _spread(sample: Sample) -> str:
    return f"{sample.mean:.2f}" + (f" +- {sample.std:.2f}" if sample.std is not None else "")


def markdown(table: Text) -> str:
    """A markdown page: title, notes, table."""
    rows = [table.head, ("---",) * len(table.head), *(row for block in table.blocks for row in block)]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    notes = [part for note in table.notes for part in (note, "")]
    return "\n".join([f"# {table.title}", "", *notes, *lines, ""])


def latex(table: Text) -> str:
    """A LaTeX table; needs booktabs."""
    names = sum(column in ("", "type", "method") for column in table.head) or 1
    blocks = ["".join(f"  {_latex_row(row)}\n" for row in block) for block in table.blocks]
    return (
        "\\begin{table}\n  \\centering\n  \\small\n"
        f"  \\caption{{{escape(_NUMBER.sub('', table.title))}.}}\n  \\label{{tab:{table.name}}}\n"
        f"  \\begin{{tabular}}{{{'l' * names}{'c' * (len(table.head) - names)}}}\n  \\toprule\n"
        f"  {_latex_row(table.head)}\n  \\midrule\n"
        + "  \\addlinespace\n".join(blocks)
        + "  \\bottomrule\n  \\end{tabular}\n"
        + "".join(f"  \\par\\footnotesize {escape(note)}\n" for note in table.notes)
        + "\\end{table}\n"
    )


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def escape(plain: str) -> str:
    """Plain text as LaTeX: special characters escaped, +- and signs in math mode."""
    escaped = "".join(_SPECIAL.get(char, char) for char in plain)
    escaped = escaped.replace("+-", r"$\pm$")
    return re.sub(r"(?<![\w$.])([+-])(?=\d)", r"$\1$", escaped)


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
        " ".join(map(str, cell.world_sizes)),
    ]


def _number(value: float | None) -> str:
    """Ten digits, since later ones differ between machines."""
    return "" if value is None else f"{value:.10g}"
