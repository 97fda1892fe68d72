"""Rows of the node classification tables: the finished runs of a set and method beside those of its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import plan
from .records import read_runs
from .spec import RunSpec
from .statistics import Difference, Sample, difference, mean_of

TABLES = ("17", "18")  # with the methods of Tables 14 and 15, and nHAM
VALID, TEST = "valid_best", "test_at_best"
Summaries = Mapping[int, dict[str, Any]]  # by seed


@dataclass(frozen=True)
class NodeRow:
    """A row: one method on one graph.

    Args:
        graph: the set's name in the paper.
        label: as `GCN+HAM`; a base has no +.
        cell: of the table.
        own: summaries of its runs, at least one.
        base_cell: the same recipe without HAM; `cell` itself in a base's row.
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
        """The seeds of both the row and its base; none in a base's row."""
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
        """Method minus base as the paper prints them."""
        return self.cell.paper[0] - self.base_cell.paper[0]

    def values(self, metric: str) -> list[float]:
        """A metric over the seeds of the row."""
        return [summary["metrics"][metric] for summary in self.own.values()]

    def differences(self, metric: str) -> list[float]:
        """Method minus base, seed by seed."""
        return [self.own[s]["metrics"][metric] - self.base[s]["metrics"][metric] for s in self.seeds]

    def gain(self, metric: str = VALID) -> Difference | None:
        """The mean of the differences; None in a base's row and if no seed has both."""
        return mean_of(self.differences(metric)) if self.seeds else None


@dataclass
class NodeReport:
    """All rows with runs.

    Args:
        rows: set by set.
        missing: set -> labels of the rows that have no run.
        problems: one line for each summary or record that was left out.
    """

    rows: list[NodeRow] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def build_report(runs: Path | None = None) -> NodeReport:
    """The report of the committed records, or of the run directories in `runs`. Raises PlanError."""
    report = NodeReport()
    tables = [plan.table(name) for name in TABLES]
    summaries = _read_summaries([run for table in tables for run in table.runs()], runs, report.problems)
    for table in tables:
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
                    report.missing.setdefault(name, []).append(row.label)
    return report


def _read_summaries(
    specs: list[RunSpec], runs: Path | None, problems: list[str]
) -> dict[RunSpec, dict[str, Any]]:
    """The committed records, or the summaries in `runs` that are of today's configuration."""
    if runs is None:
        records, invalid = read_runs(specs)
        problems += invalid
        return {run: record.content for run, record in records.items()}
    summaries = {}
    for run in specs:
        path = run.folder(runs) / "summary.json"
        try:
            summary = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        except ValueError:
            problems.append(f"{path}: it is incomplete: run it again")
            continue
        if missing := [key for key in ("config_hash", "graph", "metrics") if key not in summary]:
            problems.append(f"{path}: it has no {missing[0]}: run it again")
        elif summary["config_hash"] == run.info.config_hash:
            summaries[run] = summary
    return summaries
