"""The page node_reading.md: Tables 14, 15, 17 and 18 as paired differences, test metrics, node counts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ham.files import RESULTS

from . import plan
from .records import read_runs
from .spec import RunSpec
from .statistics import mean_of

PAGE = RESULTS / "tables" / "node_reading.md"
_TABLES = ("17", "18")  # with the methods of Tables 14 and 15, and nHAM
_HEAD = """\
# Reading the node classification tables

Written by `python scripts/node_report.py` from {source}; do not edit.

The paper's tables print the best validation metric over the epochs, under the best of 12 (alpha, beta)
that was chosen on the same validation nodes; ours are runs of the pair that the paper chose. Runs of one
seed share split, initial weights and dropout, so their differences are paired. **valid**: mean and sample
standard deviation over our seeds; **paper**: as printed; **paper's difference**: method minus base there.
**difference**: method minus base, mean over the seeds that have both, with a 95 % interval (Student's t)
where they differ. **nodes**: that difference as a number of validation nodes of one run. **+ / = / -**: seeds
in which the method is above, equal, below. **test**: the test metric at the epoch of the best validation
metric. **inverted**: fraction of the convolutions' weights with abs(theta) > 1/abs(alpha), where nHAM's
inverse metric 1 + alpha abs(theta) is negative, at that epoch and at the last; there nHAM can no longer be
interpreted as mirror descent.

An interval that contains 0 is compatible with no effect, and its width tells which effects could have been
missed; of {count} comparisons about one in twenty excludes 0 by chance. On cora, citeseer, pubmed, the
Amazon and the Coauthor sets all seeds share one split: an interval there covers only initial weights and
dropout. On the others the seeds' splits are of one graph and overlap: intervals are too narrow there rather
than too wide.

"""
_COLUMNS = (
    *("set", "method", "seeds", "valid", "paper", "difference", "nodes", "+ / = / -"),
    "paper's difference",
    *("test", "test difference", "inverted"),
)
Summaries = Mapping[int, dict[str, Any]]  # by seed


@dataclass
class NodeReport:
    """The rows of the page and what they sum up to.

    Args:
        rows: lines of the markdown table.
        compared: number of differences with an interval.
        clear: the methods and sets whose interval excludes 0.
        missing: set -> labels of the rows that have no run.
        problems: one line for each summary or record that was left out.
    """

    rows: list[str] = field(default_factory=list)
    compared: int = 0
    clear: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def build_report(runs: Path | None = None) -> NodeReport:
    """The report of the committed records, or of the run directories in `runs`. Raises PlanError."""
    report = NodeReport()
    tables = [plan.table(name) for name in _TABLES]
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
                    _add_row(report, (name, row.label), cell, own, base_cell, base)
                else:
                    report.missing.setdefault(name, []).append(row.label)
    return report


def _add_row(
    report: NodeReport,
    names: tuple[str, str],
    cell: plan.Cell,
    own: Summaries,
    base_cell: plan.Cell,
    base: Summaries,
) -> None:
    """Add the row of one set and method, and count its interval."""
    is_base = cell == base_cell
    seeds = [] if is_base else sorted(own.keys() & base.keys())
    differences = paired(own, base, seeds, "valid_best")
    of = f" of {len(cell.seeds)}" if len(own) < len(cell.seeds) else ""
    texts = [
        *names,
        f"{len(own)}{of}",
        spread(values(own, "valid_best")),
        f"{cell.paper[0]:.2f} ± {cell.paper[1]:.2f}",
        interval(differences),
        in_nodes(own, base, seeds),
        signs(differences),
        "" if is_base else f"{cell.paper[0] - base_cell.paper[0]:+.2f}",
        spread(values(own, "test_at_best")),
        interval(paired(own, base, seeds, "test_at_best")),
        inverted(own),
    ]
    report.rows.append(f"| {' | '.join(texts)} |")
    if differences and mean_of(differences).interval:
        report.compared += 1
        if mean_of(differences).is_clear:
            report.clear.append(f"{names[1]} on {names[0]}")


def page(report: NodeReport, source: str) -> str:
    """The page as markdown; `source` names what the report was made of."""
    clear = f" ({', '.join(report.clear)})" if report.clear else ""
    tail = [f"{len(report.clear)} of {report.compared} differences with an interval exclude 0{clear}."]
    if report.missing:
        every = {row.label for row in plan.table(_TABLES[0]).rows}
        names = [
            name if {*labels} == every else f"{name} ({', '.join(labels)})"
            for name, labels in report.missing.items()
        ]
        tail.append(f"Without a run: {', '.join(names)}.")
    table = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|", *report.rows]
    return _HEAD.format(count=report.compared, source=source) + "\n".join([*table, "", *tail, ""])


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


def values(own: Summaries, metric: str) -> list[float]:
    """A metric over the seeds."""
    return [summary["metrics"][metric] for summary in own.values()]


def paired(own: Summaries, base: Summaries, seeds: list[int], metric: str) -> list[float]:
    """Method minus base, seed by seed."""
    return [own[s]["metrics"][metric] - base[s]["metrics"][metric] for s in seeds]


def interval(differences: list[float]) -> str:
    """Mean and 95 % interval."""
    return str(mean_of(differences)) if differences else ""


def in_nodes(own: Summaries, base: Summaries, seeds: list[int]) -> str:
    """The mean difference of an accuracy as a number of validation nodes, and their mean number."""
    graphs = [own[seed]["graph"] for seed in seeds]
    if not seeds or graphs[0]["metric"] != "accuracy":
        return ""
    counts = [graph["nodes"]["valid"] for graph in graphs]
    differences = paired(own, base, seeds, "valid_best")
    nodes = statistics.mean(d * count / 100 for d, count in zip(differences, counts, strict=True))
    return f"{round(nodes, 9) + 0.0:+.1f} of {statistics.mean(counts):.0f}"


def signs(differences: list[float]) -> str:
    """The numbers of seeds in which the method is above, equal, below."""
    if not differences:
        return ""
    above, below = (sum(sign * d > 1e-9 for d in differences) for sign in (1, -1))
    return f"{above} / {len(differences) - above - below} / {below}"


def inverted(own: Summaries) -> str:
    """Fraction of nHAM's weights whose inverse metric is negative, at the best epoch and at the last."""
    if not all("negative_metric_last" in summary["metrics"] for summary in own.values()):
        return ""
    shares = (statistics.mean(values(own, f"negative_metric_{when}")) for when in ("best", "last"))
    return " / ".join(f"{100 * share:.1f} %" for share in shares)


def spread(numbers: list[float]) -> str:
    """Mean and sample standard deviation."""
    mean = statistics.mean(numbers)
    return f"{mean:.2f} ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else f"{mean:.2f}"
