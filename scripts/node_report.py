"""How much of Tables 14, 15, 17, 18 is effect: paired differences, test beside validation, numbers of nodes.

    python scripts/node_report.py [--runs DIR]

Reads results/runs/node/<exp>/seed<k>.json and writes results/tables/node_reading.md, or reads the run
directories of --runs and writes node_reading.md among them. Imports no torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

from ham.report import plan
from ham.report.records import RESULTS, Record, read_all
from ham.report.spec import PlanError, lock
from ham.report.statistics import mean_of

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "results" / "tables" / "node_reading.md"
PAGE_HEAD = """\
# Reading the node classification tables

Written by `python scripts/node_report.py` from {source}; not edited by hand.

The paper's tables print the best validation metric over the epochs, under the best of 12 (alpha, beta)
that was chosen on the same validation nodes; ours are runs of the pair that the paper chose. Runs of one
seed share split, initial weights and dropout, so their differences are paired. **valid**: mean and sample
standard deviation over our seeds; **paper**: as printed; **paper's difference**: method minus base there.
**difference**: method minus base, mean over the seeds that have both, with a 95 % interval (Student's t)
where they differ. **nodes**: that as a number of validation nodes of one run. **+ / = / -**: seeds in
which the method is above, equal, below. **test**: the test metric at the epoch of the best validation
metric. **inverted**: share of the convolutions' weights with abs(theta) > 1/abs(alpha), where nHAM's
inverse metric 1 + alpha abs(theta) is negative, at that epoch and at the last: there the method's reading
as mirror descent ends.

An interval that holds 0 is compatible with no effect, and its width tells which effects could have been
missed; with {count} comparisons about one in twenty that leaves 0 out is chance. On cora, citeseer,
pubmed, the Amazon and the Coauthor sets all seeds share one split: an interval there is over initial
weights and dropout alone. On the others the seeds' splits are of one graph and overlap: intervals are too
narrow there rather than too wide.

"""
COLUMNS = (
    *("set", "method", "seeds", "valid", "paper", "difference", "nodes", "+ / = / -"),
    "paper's difference",
    *("test", "test difference", "inverted"),
)


def main(argv: list[str] | None = None) -> int:
    """Write the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="run directories in place of the committed records")
    parser.add_argument("--to", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.runs and not args.runs.is_dir():
        parser.error(f"--runs {args.runs} is no folder")
    target = args.to or (args.runs / TARGET.name if args.runs else TARGET)
    try:
        lock()
        lines, compared, clear, absent = rows(args.runs)
    except PlanError as error:
        print(f"node_report.py: {error}", file=sys.stderr)
        return 2
    if not lines:
        place = args.runs or RESULTS
        print(f"node_report.py: no node run in {place}: python scripts/nodes.py makes them", file=sys.stderr)
        return 2
    about = "run directories" if args.runs else "the committed records"
    tail = [f"{len(clear)} of {compared} differences with an interval leave 0 out{_named(clear)}."]
    if absent:
        tail.append(f"Without a run: {', '.join(absent)}.")
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            PAGE_HEAD.format(count=compared, source=about) + "\n".join([*head, *lines, "", *tail, ""])
        )
    except OSError as error:
        print(f"node_report.py: {error}", file=sys.stderr)
        return 2
    print(target)
    return 0


def _named(rows: list[str]) -> str:
    return f" ({', '.join(rows)})" if rows else ""


def rows(runs: Path | None) -> tuple[list[str], int, list[str], list[str]]:
    """Lines of the table, how many differences have an interval, which leave 0 out, what has no run."""
    lines, compared = [], 0
    clear: list[str] = []
    absent: dict[str, list[str]] = {}
    for number in ("17", "18"):
        table = plan.table(number)
        for column, name in enumerate(table.columns):
            base: dict[int, dict[str, Any]] = {}
            paper_base = 0.0
            for row in table.rows:
                cell = row.cells[column]
                found = summaries(cell, runs)
                if "+" not in row.label:
                    base, paper_base = found, cell.paper[0]
                if not found:
                    absent.setdefault(name, []).append(row.label)
                    continue
                of = f" of {len(cell.seeds)}" if len(found) < len(cell.seeds) else ""
                told = [name, row.label, f"{len(found)}{of}", spread(values(found, "valid_best"))]
                told.append(f"{cell.paper[0]:.2f} ± {cell.paper[1]:.2f}")
                both = sorted(found.keys() & base.keys()) if "+" in row.label else []
                differences = paired(found, base, both, "valid_best")
                told += [interval(differences), in_nodes(found, base, both), signs(differences)]
                told.append(f"{cell.paper[0] - paper_base:+.2f}" if "+" in row.label else "")
                told.append(spread(values(found, "test_at_best")))
                told.append(interval(paired(found, base, both, "test_at_best")))
                told.append(inverted(found))
                lines.append("| " + " | ".join(told) + " |")
                if differences and mean_of(differences).interval:
                    compared += 1
                    if mean_of(differences).is_clear:
                        clear.append(f"{row.label} on {name}")
    every = {row.label for row in plan.table("17").rows}
    told = [
        name if {*labels} == every else f"{name} ({', '.join(labels)})" for name, labels in absent.items()
    ]
    return lines, compared, clear, told


def summaries(cell: plan.Cell, runs: Path | None) -> dict[int, dict[str, Any]]:
    """Seed -> committed record, or summary in `runs`, of a cell's runs in the configuration of today."""
    cell_runs = [plan.RunSpec(cell.exp, seed) for seed in cell.seeds]
    if runs is None:
        return {run.seed: committed()[run].content for run in cell_runs if run in committed()}
    found = {}
    for run in cell_runs:
        path = run.folder(runs) / "summary.json"
        try:
            summary = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        except ValueError:
            print(f"node_report.py: left out {path}: it is not whole, run it again", file=sys.stderr)
            continue
        if missing := [key for key in ("config_hash", "graph", "metrics") if key not in summary]:
            print(f"node_report.py: left out {path}: it has no {missing[0]}, run it again", file=sys.stderr)
        elif summary["config_hash"] == run.info.config_hash:
            found[run.seed] = summary
    return found


@cache
def committed() -> dict[plan.RunSpec, Record]:
    """The records that the tables are made of; what is left out of them is named."""
    records, problems = read_all()
    for problem in problems:
        print(f"node_report.py: left out {problem}", file=sys.stderr)
    return records


def values(found: dict[int, dict[str, Any]], metric: str) -> list[float]:
    """A metric over the seeds."""
    return [summary["metrics"][metric] for summary in found.values()]


def paired(found: dict, base: dict, seeds: list[int], metric: str) -> list[float]:
    """Method minus base, seed by seed."""
    return [found[s]["metrics"][metric] - base[s]["metrics"][metric] for s in seeds]


def interval(differences: list[float]) -> str:
    """Mean and 95 % interval."""
    return str(mean_of(differences)) if differences else ""


def in_nodes(found: dict, base: dict, seeds: list[int]) -> str:
    """The mean difference of an accuracy as a number of validation nodes, of how many in the mean."""
    graphs = [found[seed]["graph"] for seed in seeds]
    if not seeds or graphs[0]["metric"] != "accuracy":
        return ""
    counts = [graph["nodes"]["valid"] for graph in graphs]
    differences = paired(found, base, seeds, "valid_best")
    nodes = statistics.mean(d * count / 100 for d, count in zip(differences, counts, strict=True))
    return f"{round(nodes, 9) + 0.0:+.1f} of {statistics.mean(counts):.0f}"


def signs(differences: list[float]) -> str:
    """In how many seeds the method is above, equal, below."""
    if not differences:
        return ""
    above, below = (sum(sign * d > 1e-9 for d in differences) for sign in (1, -1))
    return f"{above} / {len(differences) - above - below} / {below}"


def inverted(found: dict[int, dict[str, Any]]) -> str:
    """Share of nHAM's weights whose inverse metric is negative, at the best epoch and at the last."""
    if not all("negative_metric_last" in summary["metrics"] for summary in found.values()):
        return ""
    shares = (statistics.mean(values(found, f"negative_metric_{when}")) for when in ("best", "last"))
    return " / ".join(f"{100 * share:.1f} %" for share in shares)


def spread(numbers: list[float]) -> str:
    """Mean and sample standard deviation."""
    mean = statistics.mean(numbers)
    return f"{mean:.2f} ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else f"{mean:.2f}"


if __name__ == "__main__":
    sys.exit(main())
