"""What the search for (alpha, beta) of Tables 16 and 19 is worth: all pairs of a set and architecture.

    python scripts/nodes.py --sets cora --archs sage --grid --jobs 2     # the runs
    python scripts/node_grid.py --runs runs                              # record whole grids, write the page

A record is results/node_grid/<set>_<arch>.json; the page results/tables/node_grid.md is written from the
records alone, which needs no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import nodes

from ham.report import node_runs
from ham.report.grid import Grid, Point, best, leave_one_seed_out, read, sign_flip_count, tied
from ham.report.records import RESULTS, InvalidRecord, atomic_write_text, strip_paths
from ham.report.spec import PlanError
from ham.report.statistics import mean_of
from ham.report.validation import check_code

ROOT = Path(__file__).resolve().parents[1]
FOLDER = RESULTS / "node_grid"
TARGET = RESULTS / "tables" / "node_grid.md"
PAGE_HEAD = """\
# The search for alpha and beta in node classification

Written by `python scripts/node_grid.py` from results/node_grid; not edited by hand.

The paper takes, of 12 pairs (alpha, beta), the one with the best mean validation metric and prints that
metric (App. G.6.2): a method without any effect would gain too. All gains are over the base, paired by
seed.

**chosen**: the pair with the best mean, the first of equals, and how many others equal it. **gain**: its
validation metric less the base's, with Student's 95 % interval, which knows nothing of the choice. **p**:
in what share of all ways to flip the seeds' signs, the pairs of a seed together, the best pair gains at
least as much; without an effect, and with noise that is symmetric about 0, a p below 0.05 comes up in one
grid of twenty for each method. It cannot fall below 1 / 2^seeds, and the page shows one p for each row
without correction. **left out**: mean gain of a seed whose pair was chosen on the other seeds; where all
seeds share one split (cora, citeseer, pubmed, the Amazon and the Coauthor sets) the choice has still seen
the very validation nodes. **test**: the chosen pair's gain on the test nodes, at the epochs of the best
validation metric. **paper's pair**: that of Tables 16 and 19, its validation gain, and its place among the
12.

| set | method | seeds | chosen | gain | p | left out | test | paper's pair |
|---|---|---|---|---|---|---|---|---|
"""


def collect(jobs: list[node_runs.Job], runs: Path) -> Grid:
    """The grid of one set and architecture.

    Raises:
        Unfit: a run is missing, or its code is unknown.
    """
    worker = nodes.Worker(jobs, runs, 1)
    found = {job: worker.summary(job) for job in jobs}
    if missing := [job for job, summary in found.items() if summary is None]:
        raise InvalidRecord(f"{len(missing)} of {len(jobs)} runs are not done, such as {missing[0]}")
    made: list[dict[str, Any]] = []
    points: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for job, summary in found.items():
        points.setdefault(job.point or (0, 0), []).append(summary)
        info = strip_paths(summary["provenance"])
        info = {k: v for k, v in info.items() if k not in ("argv", "config_hash")}
        for part in (info, *info["resumed_from"]):
            check_code(part)
        if info not in made:
            made.append(info)
    whole = tuple(
        Point(*pair, summaries[0]["config_hash"], *_metrics(summaries)) for pair, summaries in points.items()
    )
    base = next(job for job in jobs if job.point is None)
    seeds = tuple(sorted({job.seed for job in jobs}))
    return Grid(base.exp, seeds, found[base]["graph"], whole, tuple(made))


def _metrics(summaries: list[dict[str, Any]]) -> Iterator[tuple[float, ...]]:
    for name in ("valid_best", "test_at_best"):
        yield tuple(summary["metrics"][name] for summary in summaries)


def line(grid: Grid, sign: int) -> str:
    """A grid's row of HAM or nHAM."""
    points, seeds = grid.of(sign), list(range(len(grid.seeds)))
    gains = [grid.gains(point) for point in points]
    chosen = points[best(gains, seeds)]
    method = "ham" if sign > 0 else "nham"
    pair = node_runs.published(f"{grid.exp}_{method}")
    own = next(p for p in points if (p.alpha, p.beta) == pair)
    equals = len(tied(gains, grid.gains(chosen))) - 1
    above = sum(mean(g) > mean(grid.gains(own)) + 1e-9 for g in gains)
    places = (above + 1, above + len(tied(gains, grid.gains(own))))
    place = "-".join(map(str, dict.fromkeys(places)))
    told = [
        *(grid.graph["name"], f"{grid.arch}+{'HAM' if sign > 0 else 'nHAM'}", str(len(seeds))),
        _pair(chosen) + (f", {equals} equal" if equals else ""),
        *(str(mean_of(grid.gains(chosen))), f"{sign_flip_count(gains)} / {2 ** len(seeds)}"),
        f"{mean(leave_one_seed_out(gains)):+.2f}",
        str(mean_of(grid.gains(chosen, "test"))),
        f"{_pair(own)}: {mean_of(grid.gains(own))}, {place} of {len(points)}",
    ]
    return "| " + " | ".join(told) + " |"


def _pair(point: Point) -> str:
    return f"({point.alpha:g}, {point.beta:g})"


def square(grid: Grid) -> list[str]:
    """All gains of a grid, validation and test."""
    base = grid.points[0]
    mixed = len({json.dumps([made["hardware"], made["versions"]["torch"]]) for made in grid.provenance}) > 1
    lines = [
        f"\n## {grid.graph['name']}, {grid.arch}\n",
        *(["Its runs are from several machines or versions of torch, which round differently.\n"] * mixed),
        f"Base: validation {mean(base.valid):.2f}, test {mean(base.test):.2f}, {len(grid.seeds)} seeds. "
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


def page(grids: list[Grid]) -> str:
    """The whole page."""
    rows = [line(grid, sign) for grid in grids for sign in (1, -1)]
    squares = [text for grid in grids for text in square(grid)]
    return PAGE_HEAD + "\n".join([*rows, *squares]) + "\n"


def record(runs: Path, folder: Path) -> list[str]:
    """Record every grid of which there are runs; returns a line for each that is not whole."""
    problems = []
    for name, seeds in node_runs.seeds().items():
        for arch in node_runs.ARCHS:
            exp = f"{name.replace('-', '_')}_{arch}"
            if not any(runs.glob(f"node/{exp}_*ham-*/seed*/summary.json")):
                continue
            path = folder / f"{exp}.json"
            jobs = node_runs.every(name, arch, seeds, node_runs.GRID)
            try:
                grid = collect(jobs, runs)
            except InvalidRecord as error:
                kept = "; its older record stays" if path.exists() else ""
                problems.append(f"{exp}: {error}{kept}")
                continue
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(path, json.dumps(asdict(grid), indent=1) + "\n")
    return problems


def main(argv: list[str] | None = None) -> int:
    """Record grids and write the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="record the whole grids among these run directories first")
    parser.add_argument("--records", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--to", type=Path, default=TARGET, metavar="FILE")
    args = parser.parse_args(argv)
    problems = []
    try:
        if args.runs:
            problems = record(args.runs, args.records)
        for problem in problems:
            print(f"node_grid.py: left out {problem}", file=sys.stderr)
        grids = [read(path) for path in sorted(args.records.glob("*.json"))]
        if not grids:
            place = args.runs or args.records
            raise InvalidRecord(f"no whole grid in {place}: python scripts/nodes.py --grid makes one")
        args.to.parent.mkdir(parents=True, exist_ok=True)
        args.to.write_text(page(grids))
    except (PlanError, InvalidRecord, OSError) as error:
        print(f"node_grid.py: {error}", file=sys.stderr)
        return 2
    print(args.to)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
