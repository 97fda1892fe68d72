"""The page results/tables/node_grid.md: what the search for (alpha, beta) of Tables 16 and 19 gains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean

from ham.files import RESULTS

from . import search_grid
from .grid import Grid, Point, best, chance_gain, leave_one_seed_out, sign_flip_count, tied
from .statistics import mean_of

PAGE = RESULTS / "tables" / "node_grid.md"
_HEAD = """\
# The search for alpha and beta in node classification

Written by `python scripts/node_grid.py` from results/node_grid; do not edit.

Of 12 pairs (alpha, beta), the paper takes the one with the best mean validation metric and prints that
metric (App. G.6.2): a method without any effect would gain too. All gains are over the baseline,
paired by seed.

**chosen**: the pair with the best mean, the first of equals, and the number of other pairs that equal it.
**gain**: its validation metric minus the baseline's, with Student's 95 % interval, which ignores the choice.
**p**: the fraction of all sign flips of the seeds, with all pairs of a seed flipped together, under which the
best pair gains at least as much; without an effect, and with noise that is symmetric about 0, a p below 0.05
occurs in one grid of twenty for each method. It cannot be below 1 / 2^seeds, and the page shows one p per row
without correction. **by chance**: the mean gain of the best pair over these sign flips: what choosing gains
where no pair has an effect. **leave one out**: mean gain of a seed whose pair was chosen on the other seeds;
where all seeds share one split (cora, citeseer, pubmed, the Amazon and the Coauthor sets), the choice still
uses the same validation nodes. **test**: the chosen pair's gain on the test nodes, at the epochs of the best
validation metric. **paper's pair**: the pair of Tables 16 and 19, its validation gain, and its rank among the
12.

| set | method | seeds | chosen | gain | p | by chance | leave one out | test | paper's pair |
|---|---|---|---|---|---|---|---|---|---|
"""


def page(grids: Sequence[Grid]) -> str:
    """The page as markdown."""
    rows = [search_row(grid, method) for grid in grids for method in search_grid.methods(grid.exp)]
    squares = [line for grid in grids for line in gains_table(grid)]
    return _HEAD + "\n".join([*rows, *squares]) + "\n"


def search_row(grid: Grid, method: str) -> str:
    """The row of one grid and method: the best pair and the paper's."""
    points, seeds = grid.points_of(1 if method == "ham" else -1), list(range(len(grid.seeds)))
    gains = [grid.gains(point) for point in points]
    chosen = points[best(gains, seeds)]
    published = search_grid.published(f"{grid.exp}_{method}")
    papers = next(p for p in points if (p.alpha, p.beta) == published)
    equals = len(tied(gains, grid.gains(chosen))) - 1
    above = sum(mean(values) > mean(grid.gains(papers)) + 1e-9 for values in gains)
    ranks = (above + 1, above + len(tied(gains, grid.gains(papers))))
    rank = "-".join(map(str, dict.fromkeys(ranks)))
    cells = [
        *(grid.graph["name"], f"{grid.arch}+{'HAM' if method == 'ham' else 'nHAM'}", str(len(seeds))),
        _pair(chosen) + (f", {equals} equal" if equals else ""),
        *(str(mean_of(grid.gains(chosen))), f"{sign_flip_count(gains)} / {2 ** len(seeds)}"),
        f"{chance_gain(gains):+.2f}",
        f"{mean(leave_one_seed_out(gains)):+.2f}",
        str(mean_of(grid.gains(chosen, "test"))),
        f"{_pair(papers)}: {mean_of(grid.gains(papers))}, {rank} of {len(points)}",
    ]
    return "| " + " | ".join(cells) + " |"


def _pair(point: Point) -> str:
    return f"({point.alpha:g}, {point.beta:g})"


def gains_table(grid: Grid) -> list[str]:
    """The lines with all gains of a grid, validation and test."""
    base = grid.points[0]
    setups = {json.dumps([part["hardware"], part["versions"]["torch"]]) for part in grid.provenance}
    mixed = "The runs are from several machines or versions of torch, which differ in rounding.\n"
    lines = [
        f"\n## {grid.graph['name']}, {grid.arch}\n",
        *([mixed] if len(setups) > 1 else []),
        f"Baseline: validation {mean(base.valid):.2f}, test {mean(base.test):.2f}, {len(grid.seeds)} seeds. "
        "Cells: gain in validation / in test. alpha = 0 is beta alone, decoupled weight decay of the "
        "convolutions: a control that the paper's grid lacks.\n",
    ]
    betas = sorted({point.beta for point in grid.points})
    lines.append("| alpha | " + " | ".join(f"beta = {beta:g}" for beta in betas) + " |")
    lines.append("|---" * (1 + len(betas)) + "|")
    for alpha in sorted({point.alpha for point in grid.points}):
        row = {point.beta: point for point in grid.points if point.alpha == alpha}
        cells = (f"{mean(grid.gains(row[b])):+.2f} / {mean(grid.gains(row[b], 'test')):+.2f}" for b in betas)
        lines.append(f"| {alpha:g} | " + " | ".join(cells) + " |")
    return lines
