"""The tables: the paper beside ours, with links to the runs and marks for the differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ham.report import coverage, hyperparameters, qualitative
from ham.report.render import Text, to_text
from ham.report.scales import SCALES
from ham.report.spec import RunSpec
from ham.report.statistics import Difference
from ham.report.table_files import SHEETS, full_names, table_result
from ham.report.tables import CellResult, TableResult

from . import commands, pages
from .pages import signs
from .sources import SETTINGS, Sources, page_of

MARKS = {  # of a difference: sign and word
    "above": ("▲", "above"),
    "below": ("▼", "below"),
    "within": ("≈", "interval contains 0"),
    "open": ("", "no interval"),
}
SORTED_BY = ("ours", "paper", "difference", "paired")
"""The kinds of rows whose numbers a table can be sorted by."""


@dataclass(frozen=True)
class Cell:
    """A cell of a page's table.

    Args:
        text: text in the rendered table.
        value: the number it is sorted by, as in the csv; "" without, and where the text is the number.
        page: page of the cell's runs.
        mark: one of `MARKS`, for a difference.
        is_number: numbers are aligned at the right; what has not run stands for a number.
    """

    text: str
    value: str = ""
    page: str = ""
    mark: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class Block:
    """Rows that stay together: those of a method. `names` name it, `kinds` name the rows."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_fixed: bool = False


@dataclass(frozen=True)
class TablePage:
    """A table as its page shows it; `result` is None for a table without runs, `demo` is its scale."""

    text: Text
    blocks: tuple[Block, ...]
    kinds: tuple[str, ...] = ()
    demo: str = ""
    result: TableResult | None = None
    marks: Counter[str] = field(default_factory=Counter)

    @property
    def page(self) -> str:
        """Its page in the site."""
        return f"tables/{self.text.name}.html"

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Name and kind, `number` or `text`, of each column that has values."""
        names = self.text.head[self.text.name_columns :]
        rows = [row for block in self.blocks for row in block.rows]
        return [
            (name, "number" if all(row[place].is_number for row in rows) else "text")
            for place, name in enumerate(names)
        ]

    @property
    def plan_name(self) -> str:
        """Name in the plan: that of the page without the scale's prefix."""
        return self.text.name.removeprefix(SCALES[self.demo].prefix) if self.demo else self.text.name


def build(sources: Sources) -> list[TablePage]:
    """All tables that scripts/tables.py renders, the paper's setting first."""
    shown = []
    for demo in SETTINGS:
        for name in full_names(None):
            if name in SHEETS:
                shown += [] if demo else [_page_without_runs(SHEETS[name]().to_text())]
                continue
            result = table_result(name, sources.records[demo], demo, sources.diverged[demo])
            shown += [_table_page(result, demo, sources)] if result else []
    return shown


def render(tables: Sequence[TablePage], sources: Sources) -> dict[str, str]:
    """The list of the tables and a page for each."""
    states = _states(tables, sources)
    sections = {
        "The paper's tables": [own for own in tables if not own.demo and own.text.name.startswith("table")],
        "Controls that the paper lacks": [own for own in tables if _is_control(own)],
        **{f"Scaled down to {SCALES[demo].summary}": _of_scale(tables, demo) for demo in SETTINGS if demo},
    }
    shared = {"states": states, "marks": MARKS}
    result = {
        "tables.html": pages.render(
            "tables.html",
            page="tables.html",
            title="Tables",
            sections={title: own for title, own in sections.items() if own},
            **shared,
        )
    }
    for own in tables:
        result[own.page] = pages.render(
            "table.html",
            page=own.page,
            title=own.text.title,
            table=own,
            names=own.text.head[: own.text.name_columns - bool(own.kinds)],
            command=commands.for_table(own.plan_name, own.demo),
            **shared,
        )
    return result


def mark_of(difference: Difference | None) -> str:
    """The key in `MARKS` of a difference; "" without one."""
    if difference is None:
        return ""
    if difference.interval is None:
        return "open"
    return "within" if not difference.is_clear else "above" if difference.value > 0 else "below"


def _is_control(own: TablePage) -> bool:
    return not own.demo and not own.text.name.startswith("table")


def _of_scale(tables: Sequence[TablePage], demo: str) -> list[TablePage]:
    return [own for own in tables if own.demo == demo]


def _states(tables: Sequence[TablePage], sources: Sources) -> dict[str, str]:
    """Name of a page's table -> how much of it has run."""
    fixed = dict.fromkeys(qualitative.SHEETS, "as stated") | dict.fromkeys(hyperparameters.SHEETS, "settings")
    states = dict(fixed)
    for own in (own for own in tables if own.result):
        count = coverage.of_table(own.plan_name, sources.records[own.demo], own.demo)
        states[own.text.name] = f"{count.state} ({count.complete} of {count.parts})"
    return states


def _page_without_runs(text: Text) -> TablePage:
    """A table without runs: every row is a block."""
    rows = [row for block in text.blocks for row in block]
    names = text.name_columns
    blocks = [Block(row[:names], (), (tuple(map(_plain_cell, row[names:])),)) for row in rows]
    return TablePage(text, tuple(blocks))


def _plain_cell(text: str) -> Cell:
    """A cell of settings: text, a number, or several numbers, of which the first counts."""
    first = text.split(" / ")[0]
    try:
        float(first)
    except ValueError:
        return Cell(signs(text), is_number=False)
    return Cell(text, "" if first == text else first)


def _table_page(table: TableResult, demo: str, sources: Sources) -> TablePage:
    text = to_text(table)
    facts = text.blocks[: len(text.blocks) - len(table.rows)]
    names = text.name_columns - 1
    blocks = [
        Block((row[0],), ("",), (tuple(map(_plain_cell, row[names + 1 :])),), is_fixed=True)
        for block in facts
        for row in block
    ]
    for lines, row in zip(text.blocks[len(facts) :], table.rows, strict=True):
        kinds = tuple(line[names] for line in lines)
        cells = tuple(
            tuple(
                _cell(shown, line[names], cell, demo, sources)
                for shown, cell in zip(line[names + 1 :], row.cells, strict=True)
            )
            for line in lines
        )
        blocks.append(Block(lines[0][:names], kinds, cells))
    used = {kind for block in blocks for kind in block.kinds}
    marks = Counter(mark for cell in table.cells if (mark := mark_of(cell.difference)))
    return TablePage(
        text, tuple(blocks), tuple(kind for kind in SORTED_BY if kind in used), demo, table, marks
    )


def _cell(text: str, kind: str, cell: CellResult | None, demo: str, sources: Sources) -> Cell:
    if cell is None:
        return Cell(signs(text))
    run = RunSpec(cell.cell.exp, 0, demo=demo)
    numbers: Mapping[str, float | None] = {
        "ours": cell.ours and cell.ours.mean,
        "paper": cell.paper and cell.paper.mean,
        "difference": cell.difference and cell.difference.value,
        "sparsity": cell.achieved,
        "paired": cell.paired and cell.paired.value,
    }
    value = numbers[kind]
    marks = {"difference": mark_of(cell.difference), "paired": mark_of(cell.paired)}
    page = page_of(run) if kind == "ours" and run in sources.groups else ""
    return Cell(signs(text), "" if value is None else f"{value:.10g}", page, marks.get(kind, ""))
