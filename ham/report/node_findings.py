"""What the rows of the node classification tables sum up to: sentences and tables of node_reading.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median

from .grid import Grid, chance_gain
from .node_rows import TEST, VALID, NodeRow
from .statistics import CONFIDENCE, Difference, Sample, holm, student_quantile

_LEVEL = round(1 - CONFIDENCE, 9)
_EQUAL = 1e-9  # the rounding error of a mean of differences


def main_result(rows: Sequence[NodeRow]) -> str:
    """A sentence for HAM and one for nHAM: rows above, equal to, below their baseline; the paper's."""
    return " ".join(_counts([row for row in rows if row.method == name], name) for name in ("HAM", "nHAM"))


def _counts(rows: Sequence[NodeRow], method: str) -> str:
    gains = [(gain.value, row.papers_gain) for row in rows if (gain := row.gain())]
    if not gains:
        return f"No {method} row was run beside its baseline."
    ours, papers = zip(*gains, strict=True)
    up, down = (sum(sign * gain > _EQUAL for gain in ours) for sign in (1, -1))
    equal, above = len(ours) - up - down, sum(gain > _EQUAL for gain in papers)
    return (
        f"Of the {len(ours)} {method} {_verb(len(ours), 'row that was', 'rows that were')} run, "
        f"{up} {_verb(up, 'is above its', 'are above their')} baseline, "
        f"{equal} {_verb(equal, 'is', 'are')} equal and {down} {_verb(down, 'is', 'are')} below "
        f"(mean difference {_signed(mean(ours))} points, median {_signed(median(ours))}); in the paper, "
        f"{above} of the same rows {_verb(above, 'is', 'are')} above (mean {_signed(mean(papers))})."
    )


def _rows(method: str) -> str:
    return "baselines" if method == "base" else f"{method} rows"


def _verb(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def _signed(value: float) -> str:
    return f"{round(value, 9) + 0.0:+.2f}"


def chance(grids: Sequence[Grid]) -> list[str]:
    """A paragraph on what choosing the best pair of a complete search gains without any effect."""
    if not grids:
        return []
    gains = [
        f"{chance_gain([grid.gains(point) for point in grid.points_of(sign)]):.2f} ({method} on "
        f"{grid.graph['name']} with {grid.arch})"
        for grid in grids
        for method, sign in (("HAM", 1), ("nHAM", -1))
    ]
    return [
        f"Choosing the best of 12 pairs gains {', '.join(gains)} points where no pair has an effect: the "
        "mean over all sign flips of the seeds' differences, see [node_grid.md](node_grid.md). The paper's "
        "differences contain such a gain; ours are of its pairs, which were chosen on its runs."
    ]


def intervals_of_papers_gains(rows: Sequence[NodeRow]) -> str:
    """A sentence: how many differences of the paper lie in our intervals."""
    tests = [(row, gain.interval) for row in rows if (gain := row.gain()) and gain.interval]
    parts = []
    for name in ("HAM", "nHAM"):
        own = [(row.papers_gain, low, high) for row, (low, high) in tests if row.method == name]
        above, below = sum(gain > high for gain, _, high in own), sum(gain < low for gain, low, _ in own)
        parts.append(f"above it in {above} and below it in {below} of {len(own)} {name} rows")
    return f"The paper's difference, taken as exact, is outside our interval: {', '.join(parts)}."


def clear_differences(rows: Sequence[NodeRow]) -> list[str]:
    """Lines on the differences whose interval excludes 0, with Holm's p over all differences of the page."""
    tests = [
        (row, name, gain)
        for row in rows
        for name, metric in (("validation", VALID), ("test", TEST))
        if (gain := row.gain(metric)) and gain.interval
    ]
    if not tests:
        return ["No difference has an interval."]
    adjusted = holm([_p(gain) for _, _, gain in tests])
    clear = [(*test, p) for test, p in zip(tests, adjusted, strict=True) if test[2].is_clear]
    count = len(tests)
    clear_names, tested_names = ([name for _, name, *_ in own] for own in (clear, tests))
    parts = [
        f"{clear_names.count(part)} of {tested_names.count(part)} in {part}"
        for part in ("validation", "test")
    ]
    fewest = min(len(row.seeds) for row, _, _ in tests)
    needed = student_quantile(fewest - 1, 1 - _LEVEL / count) / math.sqrt(fewest)
    table = [
        f"| {row.graph} | {row.label} | {name} | {len(row.seeds)} | {gain} | {_digits(_p(gain))} | "
        f"{_digits(p)} |"
        for row, name, gain, p in clear
    ]
    return [
        f"The intervals of {len(clear)} of {count} differences exclude 0 ({', '.join(parts)}). Of all "
        f"comparisons without any effect, about one in twenty excludes 0: {_by_chance(count)} of {count}. "
        f"{_survivors(sum(p < _LEVEL for p in adjusted), count)} With {fewest} seeds, a mean difference must "
        f"exceed {needed:.1f} standard deviations for that. {intervals_of_papers_gains(rows)}",
        *_table("set | method | metric | seeds | difference | p | Holm's p", table),
    ]


def outside_paper(rows: Sequence[NodeRow]) -> list[str]:
    """Lines on the rows that differ from the paper: Welch's interval of the difference excludes 0."""
    tests = [(row, row.against_paper) for row in rows if row.against_paper.interval]
    if not tests:
        return ["No row has an interval of its difference to the paper."]
    adjusted = holm([_p(difference) for _, difference in tests])
    outside = [(*test, p) for test, p in zip(tests, adjusted, strict=True) if test[1].is_clear]
    parts = [
        f"{sum(row.method == name for row, *_ in outside)} of {total} {_rows(name)}"
        for name in ("base", "HAM", "nHAM")
        if (total := sum(row.method == name for row, _ in tests))
    ]
    table = [
        f"| {row.graph} | {row.label} | {spread(row.sample)} | {spread(row.paper)} | {difference} | "
        f"{difference.value / _error(row):+.1f} | {_digits(_p(difference))} | {_digits(p)} |"
        for row, difference, p in outside
    ]
    return [
        "A row differs from the paper if Welch's 95 % interval of the difference of the two means, as in "
        f"Tables 14, 15, 17 and 18, excludes 0: {', '.join(parts)}. Of {len(tests)} rows with the same true "
        f"means as the paper's, about {_by_chance(len(tests))} would differ. "
        f"{_survivors(sum(p < _LEVEL for p in adjusted), len(tests))} The paper's HAM and nHAM are the best "
        "of 12 pairs on the reported nodes, so ours are expected to be a little lower.",
        *_table("set | method | ours | paper | ours minus paper | in standard errors | p | Holm's p", table),
    ]


def _by_chance(total: int) -> str:
    """The expected number of intervals that exclude the truth."""
    return f"{_LEVEL * total:g}"


def _survivors(count: int, total: int) -> str:
    subject = f"{count} have" if count > 1 else f"{count or 'None'} has"
    return f"{subject} a p below {_LEVEL:.2f} after Holm's correction over all {total}."


def _table(head: str, rows: list[str]) -> list[str]:
    return ["", f"| {head} |", "|---" * (head.count("|") + 1) + "|", *rows] if rows else []


def _p(difference: Difference) -> float:
    """The p of a difference that has an interval."""
    assert difference.p is not None
    return difference.p


def _digits(p: float) -> str:
    return f"{p:.4f}" if p >= 1e-4 else "< 0.0001"


def _error(row: NodeRow) -> float:
    return math.sqrt(row.sample.variance_of_mean + row.paper.variance_of_mean)


def spread(sample: Sample) -> str:
    """Mean and sample standard deviation."""
    return f"{sample.mean:.2f}" + (f" ± {sample.std:.2f}" if sample.std is not None else "")
