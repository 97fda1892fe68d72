"""Writes tables as files: those of runs (tables.py), of settings (hyperparameters.py), Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ham.files import atomic_write_text

from . import hyperparameters, plan, qualitative, render
from .answers import answers_note
from .diverged import diverged_note
from .latex import latex
from .records import RESULTS, Record, read_all, read_runs
from .spec import PlanError, RunSpec
from .tables import TableResult, build_table

FORMATS = ("md", "csv", "tex")
SHEETS = hyperparameters.SHEETS | qualitative.SHEETS  # tables without runs


@dataclass(frozen=True)
class RenderedTable:
    """A table as text in each of `FORMATS`; `name` is its file's without the ending."""

    name: str
    text: dict[str, str]


def full_names(names: Iterable[str] | None) -> list[str]:
    """Full names of the given tables, of all if None. Raises PlanError."""
    known = sorted([*plan.tables(), *SHEETS])
    if names is None:
        return known
    full = list(dict.fromkeys(map(plan.table_name, names)))
    if unknown := [name for name in full if name not in known]:
        raise PlanError(f"unknown table {unknown[0]!r}: choose one of {', '.join(known)}")
    return full


def read_records(
    names: Iterable[str] | None, demo: str = "", results: Path = RESULTS
) -> tuple[dict[RunSpec, Record], list[str]]:
    """The records of the named tables, of a scale if None, and one line for each file that cannot be used."""
    if names is None:
        return read_all(demo, results)
    tables = [plan.table(name) for name in full_names(names) if name not in SHEETS]
    return read_runs((run for table in tables for run in table.runs(demo=demo)), demo, results)


def render_table(
    name: str,
    records: Mapping[RunSpec, Record],
    demo: str = "",
    diverged: Mapping[RunSpec, str] | None = None,
) -> RenderedTable | None:
    """Table `name`; None at a scale at which none of its runs has a record or diverged.

    `diverged` maps runs to reasons; the table's last note names those of its runs.
    """
    if name in SHEETS:
        sheet = SHEETS[name]()
        return None if demo else _render(sheet.to_text(), sheet.comma_separated)
    table = table_result(name, records, demo, diverged)
    return table and _render(render.to_text(table), lambda: render.comma_separated(table))


def table_result(
    name: str,
    records: Mapping[RunSpec, Record],
    demo: str = "",
    diverged: Mapping[RunSpec, str] | None = None,
) -> TableResult | None:
    """The numbers and notes of a table of runs, as `render_table` shows them."""
    if not plan.table(name).has_scale(demo):
        return None
    table = build_table(name, records, demo, diverged or {})
    if demo and not any(cell.ours or cell.diverged for cell in table.cells):
        return None
    own = plan.table(name)
    notes = (diverged_note(own, diverged or {}, records, demo), answers_note(own, records, demo))
    return replace(table, notes=(*table.notes, *filter(None, notes)))


def _render(text: render.Text, csv: Callable[[], str]) -> RenderedTable:
    return RenderedTable(text.name, {"md": render.markdown(text), "csv": csv(), "tex": latex(text)})


def write_table(table: RenderedTable, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the table into folder/<name>.<format>; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending in formats:
        paths.append(folder / f"{table.name}.{ending}")
        atomic_write_text(paths[-1], table.text[ending])
    return paths
