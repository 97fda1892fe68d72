"""Search grids over (alpha, beta) of a baseline: their records, and the statistics of the best pair.

A record, results/node_grid/<set>_<arch>.json, holds the metrics of all runs of a search.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from ham.files import RESULTS, atomic_write_json

from . import search_grid
from .odd_files import InvalidRecord, read_json
from .records import path_of
from .schema import GRAPH, is_number, odd_value
from .spec import RunSpec
from .validation import check, check_code, strip_paths

FOLDER = RESULTS / "node_grid"
_MAX_SEEDS = 12  # whose 2^seeds sign flips are enumerated


@dataclass(frozen=True)
class Point:
    """Per seed the best validation metric and the test metric there; alpha = beta = 0 is the baseline."""

    alpha: float
    beta: float
    config_hash: str
    valid: tuple[float, ...]
    test: tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """All pairs of one baseline experiment.

    Args:
        exp: the baseline.
        seeds: seeds of every point.
        graph: name, metric and numbers of nodes.
        points: the baseline first.
        provenance: provenance of the runs, without duplicates.
    """

    exp: str
    seeds: tuple[int, ...]
    graph: dict[str, Any]
    points: tuple[Point, ...]
    provenance: tuple[dict[str, Any], ...]

    @property
    def arch(self) -> str:
        """GCN, GAT or SAGE."""
        return self.exp.rpartition("_")[2].upper()

    def points_of(self, sign: int) -> list[Point]:
        """The pairs with alpha of this sign: HAM (1), nHAM (-1), beta alone (0)."""
        return [p for p in self.points[1:] if (p.alpha > 0) - (p.alpha < 0) == sign]

    def gains(self, point: Point, metric: str = "valid") -> list[float]:
        """A point minus the baseline, seed by seed."""
        return [a - b for a, b in zip(getattr(point, metric), getattr(self.points[0], metric), strict=True)]


def record_path(base: str, folder: Path = FOLDER) -> Path:
    """The path of the record of a baseline's grid."""
    return folder / f"{base.rpartition('/')[2]}.json"


def record_all(runs: Path, folder: Path = FOLDER) -> list[str]:
    """Record every grid that has altered runs in `runs`; returns a line for each one left out.

    Searches in graph classification are left out: scripts/collect.py records each of their runs.

    Raises:
        PlanError: configs/lock.json is out of date.
        OSError: a record cannot be written.
    """
    problems = []
    with_record = search_grid.node_bases()
    for base in search_grid.bases():
        altered = (runs.glob(f"{base}_{method}-*/seed*/summary.json") for method in search_grid.methods(base))
        if not any(map(any, altered)):
            continue
        if base not in with_record:
            problems.append(f"{base}: it is not of node classification: scripts/collect.py records its runs")
            continue
        path = record_path(base, folder)
        try:
            grid = collect(base, runs)
        except InvalidRecord as error:
            kept = "; its earlier record is kept" if path.exists() else ""
            problems.append(f"{path.stem}: {error}{kept}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, asdict(grid), indent=1)
    return problems


def collect(base: str, runs: Path) -> Grid:
    """The grid of one baseline from run directories, and from committed records where a run has one.

    Raises:
        InvalidRecord: a run is missing or invalid, or its code is unknown.
    """
    seeds = search_grid.seeds()[base]
    specs = search_grid.runs(base, seeds)
    summaries = [_summary(run, runs) for run in specs]
    if missing := [run for run, summary in zip(specs, summaries, strict=True) if summary is None]:
        raise InvalidRecord(f"{len(missing)} of {len(specs)} runs are not done, such as {missing[0]}")
    provenances: list[dict[str, Any]] = []
    by_pair: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for pair, summary in zip(search_grid.pairs(base) * len(seeds), summaries, strict=True):
        by_pair.setdefault(pair, []).append(summary)
        provenance = _provenance(summary)
        if provenance not in provenances:
            provenances.append(provenance)
    points = (Point(*pair, own[0]["config_hash"], *_metrics(own)) for pair, own in by_pair.items())
    return Grid(base, seeds, summaries[0]["graph"], tuple(points), tuple(provenances))


def _summary(run: RunSpec, runs: Path) -> dict[str, Any] | None:
    """The summary of a run in its directory, else its committed record; None if it is not done.

    Raises:
        InvalidRecord: it is invalid, or its code is unknown.
    """
    committed = [] if run.overrides else [path_of(run)]
    for path in filter(os.path.lexists, (run.folder(runs) / "summary.json", *committed)):
        try:
            summary = read_json(path)
            if isinstance(summary, dict) and summary.get("config_hash") != run.info.config_hash:
                continue
            if (other := check(summary)).seed != run.seed:
                raise InvalidRecord(f"it is the record of {other}: move it to {other.name}/seed{other.seed}")
            return summary
        except InvalidRecord as error:
            raise InvalidRecord(f"{path}: {error}") from None
    return None


def _provenance(summary: dict[str, Any]) -> dict[str, Any]:
    """What runs of one machine and commit have in common."""
    provenance = strip_paths(summary["provenance"])
    return {key: value for key, value in provenance.items() if key not in ("argv", "config_hash")}


def _metrics(summaries: list[dict[str, Any]]) -> Iterator[tuple[float, ...]]:
    for name in ("valid_best", "test_at_best"):
        yield tuple(summary["metrics"][name] for summary in summaries)


def read(path: Path) -> Grid:
    """A grid's record. Raises InvalidRecord if it is damaged or its configuration is not the current one."""
    try:
        content = read_json(path)
        points = tuple(
            Point(p["alpha"], p["beta"], p["config_hash"], tuple(p["valid"]), tuple(p["test"]))
            for p in content["points"]
        )
        provenance = tuple(content["provenance"])
        grid = Grid(content["exp"], tuple(content["seeds"]), content["graph"], points, provenance)
        _check(grid)
        if (expected := record_path(grid.exp, path.parent)) != path:
            raise InvalidRecord(f"it is the record of {grid.exp}: move it to {expected.name}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRecord(f"{path}: it cannot be read ({error!r}): collect it again with --runs") from None
    except InvalidRecord as error:
        raise InvalidRecord(f"{path}: {error}") from None
    return grid


def _check(grid: Grid) -> None:
    """Raise InvalidRecord, KeyError, TypeError unless points, seeds and provenance are complete."""
    if grid.exp not in search_grid.node_bases():
        raise InvalidRecord(f"{grid.exp} has no search in node classification: delete the record")
    pairs, expected = [(point.alpha, point.beta) for point in grid.points], search_grid.pairs(grid.exp)
    if pairs[:1] != [(0, 0)] or sorted(pairs) != sorted(expected):
        raise InvalidRecord("its pairs are not those of the search: collect it again with --runs")
    if grid.seeds != search_grid.seeds()[grid.exp]:
        raise InvalidRecord("its number of seeds is not the paper's: collect it again with --runs")
    if problem := GRAPH(grid.graph, "graph") or odd_value([grid.graph, *grid.provenance]):
        raise InvalidRecord(f"it is incomplete: {problem}: collect it again with --runs")
    name = grid.graph["name"]
    if grid.exp != f"node/{name.replace('-', '_')}_{grid.arch.lower()}":
        raise InvalidRecord(
            f"its graph is {name!r}, and not that of {grid.exp}: collect it again with --runs"
        )
    hashes = {
        pair: run.info.config_hash
        for pair, run in zip(expected, search_grid.runs(grid.exp, [0]), strict=True)
    }
    for point in grid.points:
        values = (*point.valid, *point.test)
        is_complete = len(point.valid) == len(point.test) == len(grid.seeds)
        if not is_complete or not all(is_number(v) and 0 <= v <= 100 for v in values):
            raise InvalidRecord(f"({point.alpha:g}, {point.beta:g}) does not have one percentage per seed")
        if point.config_hash != hashes[point.alpha, point.beta]:
            raise InvalidRecord(
                f"({point.alpha:g}, {point.beta:g}) has another configuration now: run the search again"
            )
    for provenance in grid.provenance:
        provenance["hardware"], provenance["versions"]["torch"]  # which the page compares
        check_code(provenance)


def read_all(folder: Path = FOLDER) -> tuple[list[Grid], list[str]]:
    """All recorded grids, and one line for each file that cannot be used."""
    grids, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            grids.append(read(path))
        except InvalidRecord as error:
            problems.append(str(error))
    return grids, problems


def best(gains: list[list[float]], seeds: list[int]) -> int:
    """The index of the point with the highest mean over these seeds, the first of equals."""
    means = [round(mean(values[s] for s in seeds), 9) for values in gains]
    return means.index(max(means))


def leave_one_seed_out(gains: list[list[float]]) -> list[float]:
    """Per seed the gain of the point that is the best on the other seeds."""
    seeds = list(range(len(gains[0])))
    return [gains[best(gains, [s for s in seeds if s != held_out])][held_out] for held_out in seeds]


def sign_flip_count(gains: list[list[float]]) -> int:
    """The number of sign flips, of 2^seeds, under which the best point gains at least as much.

    All points of a seed are flipped together, since they share its baseline; the statistic is the maximum
    over the points. The test assumes that without an effect the differences of a seed are jointly as likely
    as their negatives.
    """
    observed = max(map(mean, gains))
    return sum(best_gain >= observed - 1e-9 for best_gain in _flipped_best_gains(gains))


def chance_gain(gains: list[list[float]]) -> float:
    """What the best point gains without any effect: the mean over all sign flips of its gain.

    The assumption is that of `sign_flip_count`. Where there is an effect, it counts as noise here, and the
    result is too large rather than too small.
    """
    return mean(_flipped_best_gains(gains))


def _flipped_best_gains(gains: list[list[float]]) -> Iterator[float]:
    count = len(gains[0])
    if count > _MAX_SEEDS:
        raise ValueError(f"at most {_MAX_SEEDS} seeds, got {count}")
    for signs in product((1, -1), repeat=count):
        yield max(mean(s * g for s, g in zip(signs, values, strict=True)) for values in gains)


def tied(gains: list[list[float]], values: list[float]) -> list[list[float]]:
    """The points with the same mean."""
    return [other for other in gains if abs(mean(other) - mean(values)) < 1e-9]
