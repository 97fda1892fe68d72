"""The overview: coverage as a heat map, the findings with their intervals, and how to reproduce each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ham.report import captions, coverage, hyperparameters, plan, qualitative
from ham.report.coverage import Coverage
from ham.report.node_findings import clear_differences, main_result, outside_paper
from ham.report.node_rows import NodeReport, NodeRow, report_of
from ham.report.scales import SCALES, file_name

from . import commands, pages
from .charts import Chart, Interval, forest
from .sources import SETTINGS, Sources
from .study import StudyPage
from .tables import MARKS, TablePage, mark_of

SIGNS = {  # state -> sign
    **{"complete": "●", "partial": "◐", "scaled down": "◒", "not run": "○", "simulated": "●"},
    **{"settings": "-", "as stated": "-"},
}


@dataclass(frozen=True)
class Part:
    """A table or figure in the heat map.

    Args:
        label: `Table 4`.
        title: subject of the link.
        page: page that shows it, "" for none.
        state: one of `SIGNS`.
        counts: scale -> its coverage; None where it does not exist at this scale.
        pages: scale -> page.
        command: the line that makes it again.
    """

    label: str
    title: str
    page: str
    state: str
    counts: Mapping[str, Coverage | None]
    pages: Mapping[str, str]
    command: str


@dataclass(frozen=True)
class Summary:
    """How many intervals of a table are above 0, contain it, and are below."""

    table: TablePage
    what: str
    marks: Counter[str]


def render(sources: Sources, tables: Sequence[TablePage], studies: Sequence[StudyPage]) -> dict[str, str]:
    """index.html."""
    report = report_of(
        {run: record.content for run, record in sources.records[""].items()}, sources.diverged[""]
    )
    parts = _parts(sources, tables)
    return {
        "index.html": pages.render(
            "overview.html",
            page="index.html",
            title="Hyperbolic Aware Minimization: the state of the reproduction",
            parts=parts,
            settings=SETTINGS,
            names={demo: SCALES[demo].summary if demo else "the paper's setting" for demo in SETTINGS},
            signs=SIGNS,
            counts=Counter(part.state for part in parts),
            runs={demo: len(own) for demo, own in sources.records.items()},
            nodes=_nodes(report),
            studies=studies,
            summaries=_summaries(tables),
            marks=MARKS,
        )
    }


def _parts(sources: Sources, tables: Sequence[TablePage]) -> list[Part]:
    """Tables, controls and figures, in the paper's order."""
    counts = {demo: coverage.of_plan(sources.records[demo], demo) for demo in SETTINGS}
    known = {own.text.name: own for own in tables}
    names = sorted([*known.keys() & {*plan.tables(), *hyperparameters.SHEETS, *qualitative.SHEETS}])
    drawn = sorted([*plan.figures(), *captions.THEORY])
    ordered = [
        *(name for name in names if name.startswith("table")),
        *drawn,
        *(n for n in names if n not in drawn and not n.startswith("table")),
    ]
    return [_part(name, counts, known, sources) for name in ordered]


def _part(
    name: str, counts: Mapping[str, Mapping[str, Coverage]], tables: Mapping[str, TablePage], sources: Sources
) -> Part:
    own = {demo: counts[demo].get(name) for demo in SETTINGS}
    links = {demo: tables[stem].page for demo in SETTINGS if (stem := file_name(name, demo)) in tables}
    label = coverage.label_of(name)
    if name in tables:
        title = tables[name].text.title.removeprefix(f"{label}. ")
    else:
        title = captions.THEORY[name][0] if name in captions.THEORY else plan.figure(name).title
    is_theory = name in captions.THEORY
    page = "theory.html" if is_theory else links.get("", "")
    command = commands.for_figure(name) if name.startswith("figure") else commands.for_table(name)
    return Part(label, title, page, _state(name, own, sources), own, links, command)


def _state(name: str, counts: Mapping[str, Coverage | None], sources: Sources) -> str:
    if name in captions.THEORY:
        return "simulated" if name in sources.simulated else "not run"
    if name in hyperparameters.SHEETS:
        return "settings"
    if name in qualitative.SHEETS:
        return "as stated"
    papers = counts[""]
    assert papers is not None  # every table and figure of the plan has the paper's setting
    is_scaled = any(own.started for demo, own in counts.items() if demo and own)
    return "scaled down" if papers.state == "not run" and is_scaled else papers.state


def _nodes(report: NodeReport) -> dict[str, object] | None:
    """What the rows of node classification sum up to; None without a row."""
    if not report.rows:
        return None
    charts = [
        chart
        for method, is_log in (("HAM", False), ("nHAM", True))
        if (chart := _gains([row for row in report.rows if row.method == method], method, is_log))
    ]
    return {
        "result": main_result(report.rows),
        "intervals": clear_differences(report.rows)[0],
        "paper": outside_paper(report.rows)[0],
        "charts": charts,
    }


def _gains(rows: Sequence[NodeRow], method: str, is_log: bool) -> Chart | None:
    """The gains over the baseline with their intervals, and those that the paper prints."""
    intervals = [
        Interval(
            f"{row.graph}, {row.label.partition('+')[0]}", gain.value, gain.interval, (), row.papers_gain
        )
        for row in rows
        if (gain := row.gain())
    ]
    scale = ", logarithmic beyond 1" if is_log else ""
    title = f"{method} minus its baseline (squares with 95 % intervals) and the paper's difference (diamonds)"
    axis = f"difference in validation points{scale}"
    return forest(f"gains-{method.lower()}", title, axis, intervals, is_log) if intervals else None


def _summaries(tables: Sequence[TablePage]) -> list[Summary]:
    """The intervals of each table: ours minus the paper's, and paired differences."""
    found = []
    for own in tables:
        cells = own.result.cells if own.result else []
        for what, marks in (
            ("ours - paper", [mark_of(cell.difference) for cell in cells]),
            ("paired, to the row above", [mark_of(cell.paired) for cell in cells]),
        ):
            counted = Counter(mark for mark in marks if mark)
            found += [Summary(own, what, counted)] if counted else []
    return found
