"""The page node_reading.md: Tables 14, 15, 17 and 18 as paired differences, test metrics, node counts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from ham.files import RESULTS

from . import plan
from .grid import Grid
from .node_findings import chance, clear_differences, main_result, outside_paper, spread
from .node_rows import TABLES, TEST, VALID, NodeReport, NodeRow
from .statistics import Sample

PAGE = RESULTS / "tables" / "node_reading.md"
_HEAD = """\
# Reading the node classification tables

{result}

Written by `python scripts/node_report.py` from {source}; do not edit. A row is one network on one graph, its
baseline the same recipe without HAM. nHAM is HAM with a negative alpha.

The paper's tables print the best validation metric over the epochs, under the best of 12 (alpha, beta)
that was chosen on the same validation nodes; ours are runs of the pair that the paper chose. Runs of one
seed share split, initial weights and dropout, so their differences are paired.

"""
_EXPLANATION = """
An interval that contains 0 is compatible with no effect, and its width tells which effects could have been
missed. On cora, citeseer, pubmed, the Amazon and the Coauthor sets all seeds share one split: an interval
there covers only initial weights and dropout. On the others the seeds' splits are of one graph and overlap:
intervals are too narrow there rather than too wide. Rounding, which differs between processors, changes a
run by as much as a small effect ([how much](../../docs/decisions.md#the-same-run-on-another-processor)).

## All rows

**valid**: mean and sample standard deviation over our seeds; **paper**: as printed; **paper's difference**:
method minus baseline there. **difference**: method minus baseline, mean over the seeds that have both, with
a 95 % interval (Student's t) where they differ. **nodes**: that difference as a number of validation nodes of
one run. **+ / = / -**: seeds in which the method is above, equal, below. **test**: the test metric at the
epoch of the best validation metric. **inverted**: fraction of the convolutions' weights with
abs(theta) > 1/abs(alpha), where nHAM's inverse metric 1 + alpha abs(theta) is negative, at that epoch and at
the last; there nHAM can no longer be interpreted as mirror descent.

"""
_COLUMNS = (
    *("set", "method", "seeds", "valid", "paper", "difference", "nodes", "+ / = / -"),
    "paper's difference",
    *("test", "test difference", "inverted"),
)


def page(report: NodeReport, grids: Sequence[Grid], source: str) -> str:
    """The page as markdown; `source` names what the report was made of."""
    rows = report.rows
    sections = [
        *("## Differences that exclude 0", "", *clear_differences(rows), ""),
        *(line for paragraph in chance(grids) for line in (paragraph, "")),
        *("## Rows that differ from the paper", "", *outside_paper(rows)),
    ]
    table = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|", *map(_line, rows)]
    head = _HEAD.format(result=main_result(rows), source=source)
    tail = ["", _missing(report.missing), ""] if report.missing else [""]
    return head + "\n".join([*sections, *_EXPLANATION.splitlines(), *table, *tail])


def _missing(missing: dict[str, list[str]]) -> str:
    every = {row.label for row in plan.table(TABLES[0]).rows}  # a label of runs that diverged has more
    names = [
        name if {*labels} == every else f"{name} ({', '.join(labels)})" for name, labels in missing.items()
    ]
    return f"Without a run: {', '.join(names)}."


def _line(row: NodeRow) -> str:
    """The row in the table of all rows."""
    own, expected = len(row.own), len(row.cell.seeds)
    texts = [
        *(row.graph, row.label, f"{own}" + (f" of {expected}" if own < expected else "")),
        *(spread(row.sample), spread(row.paper), str(row.gain() or ""), in_nodes(row), signs(row)),
        "" if row.method == "base" else f"{row.papers_gain:+.2f}",
        *(spread(Sample.of(row.values(TEST))), str(row.gain(TEST) or ""), inverted(row)),
    ]
    return f"| {' | '.join(texts)} |"


def in_nodes(row: NodeRow) -> str:
    """The mean difference of an accuracy as a number of validation nodes, and their mean number."""
    graphs = [row.own[seed]["graph"] for seed in row.seeds]
    if not graphs or graphs[0]["metric"] != "accuracy":
        return ""
    counts = [graph["nodes"]["valid"] for graph in graphs]
    nodes = mean(d * count / 100 for d, count in zip(row.differences(VALID), counts, strict=True))
    return f"{round(nodes, 9) + 0.0:+.1f} of {mean(counts):.0f}"


def signs(row: NodeRow) -> str:
    """The numbers of seeds in which the method is above, equal, below."""
    if not row.seeds:
        return ""
    differences = row.differences(VALID)
    above, below = (sum(sign * d > 1e-9 for d in differences) for sign in (1, -1))
    return f"{above} / {len(differences) - above - below} / {below}"


def inverted(row: NodeRow) -> str:
    """Fraction of nHAM's weights whose inverse metric is negative, at the best epoch and at the last."""
    if not all("negative_metric_last" in summary["metrics"] for summary in row.own.values()):
        return ""
    fractions = (mean(row.values(f"negative_metric_{when}")) for when in ("best", "last"))
    return " / ".join(f"{100 * fraction:.1f} %" for fraction in fractions)
