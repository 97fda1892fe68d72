"""All pairs (alpha, beta) of a set and architecture: the record of a grid, and the worth of its best pair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from . import node_runs
from .records import InvalidRecord
from .spec import RunSpec
from .validation import check_code, is_number

_MOST_FLIPPED = 12  # seeds whose signs are flipped in all ways


@dataclass(frozen=True)
class Point:
    """The best validation metric and the test metric then, a value per seed; alpha = beta = 0 is the base."""

    alpha: float
    beta: float
    config_hash: str
    valid: tuple[float, ...]
    test: tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """All pairs of one set and architecture.

    Args:
        exp: the base's experiment.
        seeds: of every point.
        graph: name, metric and numbers of nodes.
        points: the base first.
        provenance: what made them, each kind once.
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

    def of(self, sign: int) -> list[Point]:
        """The pairs of HAM (1), of nHAM (-1), or beta alone (0)."""
        return [p for p in self.points[1:] if (p.alpha > 0) - (p.alpha < 0) == sign]

    def gains(self, point: Point, metric: str = "valid") -> list[float]:
        """A point less the base, seed by seed."""
        return [a - b for a, b in zip(getattr(point, metric), getattr(self.points[0], metric), strict=True)]


def read(path: Path) -> Grid:
    """A record. Raises Unfit where it is none of today's configuration."""
    try:
        content = json.loads(path.read_text())
        points = tuple(
            Point(p["alpha"], p["beta"], p["config_hash"], tuple(p["valid"]), tuple(p["test"]))
            for p in content.pop("points")
        )
        grid = Grid(
            content["exp"],
            tuple(content["seeds"]),
            content["graph"],
            points,
            tuple(content["provenance"]),
        )
        _check(grid)
        if path.stem != grid.exp.removeprefix("node/"):
            raise InvalidRecord(f"it is of {grid.exp}: it belongs into {grid.exp.removeprefix('node/')}.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRecord(f"{path}: it cannot be read ({error!r}): collect it anew with --runs") from None
    except InvalidRecord as error:
        raise InvalidRecord(f"{path}: {error}") from None
    return grid


def _check(grid: Grid) -> None:
    pairs = [(0, 0), *(pair for method in ("ham", "nham") for pair in node_runs.GRID[method])]
    if (grid.points[0].alpha, grid.points[0].beta) != (0, 0) or sorted(pairs) != sorted(
        (p.alpha, p.beta) for p in grid.points
    ):
        raise InvalidRecord("its pairs are not those of the grid: collect it anew with --runs")
    if grid.seeds != node_runs.seeds()[grid.graph["name"]]:
        raise InvalidRecord("its seeds are not the paper's number: collect it anew with --runs")
    for point in grid.points:
        told = (point.valid, point.test)
        whole = all(len(values) == len(grid.seeds) for values in told)
        if not whole or not all(is_number(v) and 0 <= v <= 100 for values in told for v in values):
            raise InvalidRecord(f"{point.alpha:g}, {point.beta:g} has not one percentage for each seed")
    if len({point.config_hash for point in grid.points}) < len(grid.points):
        raise InvalidRecord("two of its pairs are one configuration: collect it anew with --runs")
    leaves = [f"{grid.exp}_ham", f"{grid.exp}_nham"]
    known = {(0.0, 0.0): grid.exp} | {node_runs.published(exp): exp for exp in leaves}
    for point in grid.points:
        exp = known.get((point.alpha, point.beta))
        if exp and RunSpec(exp, 0).info.config_hash != point.config_hash:
            raise InvalidRecord(f"{exp} has another configuration today: run the grid again")
    for made in grid.provenance:
        made["hardware"], made["versions"]["torch"]
        check_code(made)


def best(gains: list[list[float]], seeds: list[int]) -> int:
    """The point with the highest mean over these seeds, the first of equals."""
    means = [round(mean(values[s] for s in seeds), 9) for values in gains]
    return means.index(max(means))


def leave_one_seed_out(gains: list[list[float]]) -> list[float]:
    """Each seed's gain of the point that is the best of the other seeds."""
    seeds = list(range(len(gains[0])))
    return [gains[best(gains, [s for s in seeds if s != out])][out] for out in seeds]


def sign_flip_count(gains: list[list[float]]) -> int:
    """In how many flips of the seeds' signs the best point gains at least as much; of 2^seeds.

    The points of a seed go together, since they share its base; the maximum over the points is the statistic.
    It assumes that without an effect a seed's differences are jointly as likely as their negatives.
    """
    count = len(gains[0])
    if count > _MOST_FLIPPED:
        raise ValueError(f"at most {_MOST_FLIPPED} seeds, got {count}")
    observed = max(map(mean, gains))
    flips = product((1, -1), repeat=count)
    return sum(
        max(mean(s * g for s, g in zip(signs, values, strict=True)) for values in gains) >= observed - 1e-9
        for signs in flips
    )


def tied(gains: list[list[float]], values: list[float]) -> list[list[float]]:
    """Those with the same mean."""
    return [other for other in gains if abs(mean(other) - mean(values)) < 1e-9]
