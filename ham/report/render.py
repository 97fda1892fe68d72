"""Renders a report as markdown, CSV and LaTeX. Markdown and LaTeX share their text, so they say the same."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .statistics import Sample
from .tables import CellResult, RowResult, TableResult

NOT_RUN = "not run"
NONE = "-"  # there is no such cell or number
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}"}
_SPECIAL |= {char: f"\\{char}" for char in "&%$#_{}"}
_SPECIAL |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "*": r"$\ast$", '"': "''"}
_NUMBER = re.compile(r"^Table \d+\. ")  # LaTeX counts itself
CSV_COLUMNS = (
    *("table", "group", "row", "column", "exp", "metric", "seeds", "n", "mean", "std"),
    *("paper_mean", "paper_std", "paper_single_run", "difference", "low", "high"),
    *("target_sparsity", "achieved_sparsity", "processes"),
)


@dataclass(frozen=True)
class Text:
    """A table as text: a head and, between rules, blocks of rows; all cells are plain ASCII."""

    name: str
    title: str
    notes: tuple[str, ...]
    head: tuple[str, ...]
    blocks: tuple[tuple[tuple[str, ...], ...], ...]


def text(report: TableResult) -> Text:
    """The report in words: a block per method, with a row for each kind of number."""
    grouped = any(line.group for line in report.lines)
    start = ("type", "method", "") if grouped else ("", "")
    blocks = []
    for line in report.lines:
        names = [line.group, line.label] if grouped else [line.label]
        rows = [
            (*(names if first else [""] * len(names)), kind, *cells)
            for first, (kind, cells) in zip([True, False, False, False], _kinds(report, line), strict=False)
        ]
        blocks.append(tuple(rows))
    return Text(report.name, report.title, report.notes, (*start, *report.columns), tuple(blocks))


def _kinds(report: TableResult, line: RowResult) -> list[tuple[str, list[str]]]:
    kinds: list[tuple[str, Callable[[CellResult], str]]] = [("ours", lambda e: ours(e.ours))]
    if report.has_paper:
        kinds += [("paper", paper), ("difference", difference_text)]
    if any(entry is not None and entry.target for entry in line.entries):
        kinds.append(("sparsity", sparsity))
    return [(kind, [NONE if e is None else said(e) for e in line.entries]) for kind, said in kinds]


def ours(sample: Sample | None) -> str:
    """`76.71 +- 0.10 (n = 3)`."""
    return f"{_spread(sample)} (n = {sample.n})" if sample else NOT_RUN


def paper(entry: CellResult) -> str:
    """`76.66 +- 0.12`, `52.90 (*)` for a single run."""
    if entry.paper is None:
        return NONE
    return _spread(entry.paper) + (" (*)" if entry.cell.single_run else "")


def difference_text(entry: CellResult) -> str:
    """`+0.05 [-0.18, +0.28]`."""
    return NONE if entry.difference is None else str(entry.difference)


def sparsity(entry: CellResult) -> str:
    """`90.00 % (target 90 %)`."""
    if not entry.target:
        return "dense"
    target = f"target {100 * entry.target:g} %"
    return target if entry.achieved is None else f"{100 * entry.achieved:.2f} % ({target})"


def _spread(sample: Sample) -> str:
    return f"{sample.mean:.2f}" + (f" +- {sample.std:.2f}" if sample.std is not None else "")


def markdown(table: Text) -> str:
    """As a markdown table below its notes."""
    rows = [table.head, ("---",) * len(table.head), *(row for block in table.blocks for row in block)]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    notes = [part for note in table.notes for part in (note, "")]
    return "\n".join([f"# {table.title}", "", *notes, *lines, ""])


def latex(table: Text) -> str:
    """As a LaTeX table that needs booktabs."""
    names = sum(column in ("", "type", "method") for column in table.head) or 1
    blocks = ["".join(f"  {_row(row)}\n" for row in block) for block in table.blocks]
    return (
        "\\begin{table}\n  \\centering\n  \\small\n"
        f"  \\caption{{{escape(_NUMBER.sub('', table.title))}.}}\n  \\label{{tab:{table.name}}}\n"
        f"  \\begin{{tabular}}{{{'l' * names}{'c' * (len(table.head) - names)}}}\n  \\toprule\n"
        f"  {_row(table.head)}\n  \\midrule\n"
        + "  \\addlinespace\n".join(blocks)
        + "  \\bottomrule\n  \\end{tabular}\n"
        + "".join(f"  \\par\\footnotesize {escape(note)}\n" for note in table.notes)
        + "\\end{table}\n"
    )


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def escape(plain: str) -> str:
    """Plain text as LaTeX: special characters escaped, +- and signs as mathematics."""
    escaped = "".join(_SPECIAL.get(char, char) for char in plain)
    escaped = escaped.replace("+-", r"$\pm$")
    return re.sub(r"(?<![\w$.])([+-])(?=\d)", r"$\1$", escaped)


def comma_separated(report: TableResult) -> str:
    """Tidy: a line per cell with all its numbers, unrounded; sparsities are shares."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(CSV_COLUMNS)
    for line in report.lines:
        for column, entry in zip(report.columns, line.entries, strict=True):
            if entry is not None:
                lines.writerow([report.name, line.group, line.label, column, *_numbers(entry)])
    return out.getvalue()


def _numbers(entry: CellResult) -> list[str | int]:
    mine, theirs, gap = entry.ours, entry.paper, entry.difference
    low, high = gap.interval if gap and gap.interval else (None, None)
    return [
        *(entry.cell.exp, entry.cell.metric, " ".join(map(str, entry.seeds)), len(entry.seeds)),
        *map(_number, (mine and mine.mean, mine and mine.std, theirs and theirs.mean, theirs and theirs.std)),
        "" if theirs is None else str(entry.cell.single_run).lower(),
        *map(_number, (gap and gap.value, low, high, entry.target, entry.achieved)),
        " ".join(map(str, entry.ranks)),
    ]


def _number(value: float | None) -> str:
    """With ten digits: the last ones differ between machines."""
    return "" if value is None else f"{value:.10g}"
