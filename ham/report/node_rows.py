"""Rows of the node classification tables: the runs of a set and method beside those of its baseline."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ham.errors import printable

from . import plan
from .odd_files import InvalidRecord, read_json
from .records import read_diverged, read_runs
from .render import DIVERGED
from .spec import RunSpec
from .statistics import Difference, Sample, difference, mean_of
from .validation import check_divergence, check_result

TABLES = ("17", "18")  # with the methods of Tables 14 and 15, and nHAM
VALID, TEST = "valid_best", "test_at_best"
Summaries = Mapping[int, dict[str, Any]]  # by seed


@dataclass(frozen=True)
class NodeRow:
    """A row: one method on one graph.

    Args:
        graph: the set's name in the paper.
        label: label of the row, such as `GCN+HAM`; that of a baseline has no +.
        cell: cell of the table.
        own: summaries of its runs, at least one.
        base_cell: cell of the same recipe without HAM; `cell` itself in a baseline's row.
        base: summaries of that recipe.
    """

    graph: str
    label: str
    cell: plan.Cell
    own: Summaries
    base_cell: plan.Cell
    base: Summaries

    @property
    def method(self) -> str:
        """`base`, `HAM` or `nHAM`."""
        return self.label.partition("+")[2] or "base"

    @property
    def seeds(self) -> list[int]:
        """The seeds of both the row and its baseline; none in a baseline's row."""
        return [] if self.method == "base" else sorted(self.own.keys() & self.base.keys())

    @property
    def sample(self) -> Sample:
        """Our validation metric."""
        return Sample.of(self.values(VALID))

    @property
    def paper(self) -> Sample:
        """The paper's validation metric, of as many runs as the row has seeds."""
        return Sample.of_paper(self.cell.paper, len(self.cell.seeds))

    @property
    def against_paper(self) -> Difference:
        """Our mean minus the paper's."""
        return difference(self.sample, self.paper)

    @property
    def papers_gain(self) -> float:
        """Method minus baseline as the paper prints them."""
        return self.cell.paper[0] - self.base_cell.paper[0]

    def values(self, metric: str) -> list[float]:
        """A metric over the seeds of the row."""
        return [summary["metrics"][metric] for summary in self.own.values()]

    def differences(self, metric: str) -> list[float]:
        """Method minus baseline, seed by seed."""
        return [self.own[s]["metrics"][metric] - self.base[s]["metrics"][metric] for s in self.seeds]

    def gain(self, metric: str = VALID) -> Difference | None:
        """The mean of the differences; None in a baseline's row and if no seed has both."""
        return mean_of(self.differences(metric)) if self.seeds else None


@dataclass
class NodeReport:
    """All rows with runs.

    Args:
        rows: set by set.
        missing: set -> labels of the rows that have no run, with a mark where the runs diverged.
        problems: one line for each summary or record that was left out.
    """

    rows: list[NodeRow] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def build_report(runs: Path | None = None) -> NodeReport:
    """The report of the committed records, or of the run directories in `runs`. Raises PlanError."""
    problems: list[str] = []
    specs = [run for name in TABLES for run in plan.table(name).runs()]
    summaries, diverged = _read_summaries(specs, runs, problems)
    return replace(report_of(summaries, diverged), problems=problems)


def report_of(summaries: Mapping[RunSpec, dict[str, Any]], diverged: Collection[RunSpec]) -> NodeReport:
    """The report of these summaries, and of runs that diverged. Raises PlanError."""
    report = NodeReport()
    for table in map(plan.table, TABLES):
        for column, name in enumerate(table.columns):
            base_cell, base = None, {}
            for row in table.rows:
                cell = row.cells[column]
                own = {seed: s for seed in cell.seeds if (s := summaries.get(RunSpec(cell.exp, seed)))}
                if "+" not in row.label:
                    base_cell, base = cell, own
                if own:
                    report.rows.append(NodeRow(name, row.label, cell, own, base_cell, base))
                else:
                    is_diverged = any(RunSpec(cell.exp, seed) in diverged for seed in cell.seeds)
                    label = f"{row.label}: {DIVERGED}" if is_diverged else row.label
                    report.missing.setdefault(name, []).append(label)
    return report


def _read_summaries(
    specs: list[RunSpec], runs: Path | None, problems: list[str]
) -> tuple[dict[RunSpec, dict[str, Any]], set[RunSpec]]:
    """Summaries of finished runs, and the runs that diverged: the committed ones, or those in `runs`."""
    if runs is None:
        records, invalid = read_runs(specs)
        diverged, damaged = read_diverged()
        problems += dict.fromkeys([*invalid, *damaged])
        return {run: record.content for run, record in records.items()}, set(diverged)
    summaries, diverged_runs = {}, set()
    for run in specs:
        path = run.folder(runs) / "summary.json"
        with _report_invalid(path, problems):
            if os.path.lexists(path):
                summaries[run] = _of_run(run, content := read_json(path), check_result(content))
        path = path.with_name("diverged.json")
        with _report_invalid(path, problems):
            if run not in summaries and os.path.lexists(path):
                _of_run(run, content := read_json(path), check_divergence(content))
                diverged_runs.add(run)
    return summaries, diverged_runs


def _of_run(run: RunSpec, content: dict[str, Any], recorded: RunSpec) -> dict[str, Any]:
    """The content, if it is of this run. Raises InvalidRecord."""
    if recorded != run:
        raise InvalidRecord(f"it is the record of {recorded}: move it to {recorded.name}/seed{recorded.seed}")
    return content


@contextmanager
def _report_invalid(path: Path, problems: list[str]) -> Iterator[None]:
    """Add a line to the problems where a file is invalid."""
    try:
        yield
    except InvalidRecord as error:
        problems.append(printable(f"{path}: {error}"))
