"""What tables say, computed again from the files of the records: numpy and scipy, nothing of ham.report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"


# Records and plans


@dataclass(frozen=True)
class Cell:
    """A cell of a table of the paper or of a control, as in configs/tables."""

    table: str
    group: str
    row: str
    column: str
    exp: str
    metric: str
    seeds: tuple[int, ...]
    paper: tuple[float, ...]
    single_run: bool
    against: str  # the experiment of the paired difference


@cache
def record(exp: str, seed: int, scale: str = "runs") -> dict[str, Any] | None:
    """The record of a run, None if there is none; `scale` is the folder of results."""
    path = RESULTS / scale / exp / f"seed{seed}.json"
    return json.loads(path.read_text()) if path.exists() else None


@cache
def table(name: str) -> list[list[Cell | None]]:
    """The cells of a table, row by row; None where the paper has none."""
    plan = yaml.safe_load((ROOT / "configs" / "tables" / f"{name}.yaml").read_text())
    seeds = plan.get("column_seeds") or [plan["seeds"]] * len(plan["columns"])
    return [
        [
            cell
            and Cell(
                *(name, row.get("group", ""), row["label"], column, cell["exp"]),
                cell.get("metric", plan["metric"]),
                tuple(cell.get("seeds", own)),
                tuple(cell.get("paper", ())),
                cell.get("single_run", False),
                cell.get("against", ""),
            )
            for cell, column, own in zip(row["cells"], plan["columns"], seeds, strict=True)
        ]
        for row in plan["rows"]
    ]


def found(cell: Cell, scale: str = "runs") -> dict[int, dict[str, Any]]:
    """The records of a cell by seed."""
    return {seed: own for seed in cell.seeds if (own := record(cell.exp, seed, scale))}


def exists(cell: Cell, scale: str) -> bool:
    """False where the runs of a scale do not measure what the cell shows: a test set that is not there."""
    records = found(cell, scale).values()
    return scale == "runs" or not records or any(cell.metric in own["metrics"] for own in records)


def metric(records: dict[int, dict[str, Any]], name: str) -> np.ndarray:
    """A metric over the seeds."""
    return np.array([own["metrics"][name] for own in records.values()])


# Statistics


@dataclass(frozen=True)
class Comparison:
    """A difference of means: value, interval and p; nan where there is no spread."""

    value: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan

    @property
    def has_interval(self) -> bool:
        return bool(np.isfinite(self.low))

    @property
    def excludes_0(self) -> bool:
        return self.has_interval and not self.low <= 0 <= self.high

    @property
    def cell(self) -> tuple[Any, ...]:
        """Template and values of its text."""
        return ("# [#, #]", self.value, self.low, self.high) if self.has_interval else ("#", self.value)


def paired(differences: np.ndarray) -> Comparison:
    """Student's interval and test of the mean."""
    value = float(np.mean(differences))
    if len(differences) < 2 or np.ptp(differences) < 1e-9:
        return Comparison(value)
    test = stats.ttest_1samp(differences, 0)
    return Comparison(value, *map(float, test.confidence_interval(0.95)), float(test.pvalue))


def welch(ours: np.ndarray, paper: tuple[float, ...], runs: int) -> Comparison:
    """Our mean minus the paper's, with Welch's interval and test where both have a standard deviation."""
    value = float(np.mean(ours) - paper[0])
    if len(paper) < 2 or len(ours) < 2 or (np.ptp(ours) == 0 and paper[1] == 0):
        return Comparison(value)
    a, b = np.var(ours, ddof=1) / len(ours), paper[1] ** 2 / runs
    free = (a + b) ** 2 / (a**2 / (len(ours) - 1) + (b**2 / (runs - 1) if b else 0))
    half = stats.t.ppf(0.975, free) * np.sqrt(a + b)
    return Comparison(value, value - half, value + half, 2 * stats.t.sf(abs(value) / np.sqrt(a + b), free))


def holm(p: list[float]) -> np.ndarray:
    """Adjusted p: the running maximum of the ordered p, times m, m - 1, ..."""
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)).clip(max=1)
    return raised[np.argsort(order, kind="stable")]


# Node classification


@dataclass(frozen=True)
class NodeRow:
    """A method on a graph: its cell and records, those of its base, and the differences of both."""

    cell: Cell
    own: dict[int, dict[str, Any]]
    base_cell: Cell
    base: dict[int, dict[str, Any]]

    @property
    def method(self) -> str:
        """base, HAM or nHAM."""
        return self.cell.row.partition("+")[2] or "base"

    @property
    def shared(self) -> list[int]:
        return sorted({*self.own} & {*self.base}) if self.method != "base" else []

    def differences(self, name: str = "valid_best") -> np.ndarray:
        """Method minus base, seed by seed."""
        return np.array([self.own[s]["metrics"][name] - self.base[s]["metrics"][name] for s in self.shared])

    @property
    def gain(self) -> float:
        return float(self.differences().mean())

    @property
    def papers_gain(self) -> float:
        return self.cell.paper[0] - self.base_cell.paper[0]

    @property
    def against_paper(self) -> Comparison:
        return welch(metric(self.own, "valid_best"), self.cell.paper, len(self.cell.seeds))


def node_cells() -> list[tuple[Cell, Cell]]:
    """All cells of Tables 17 and 18 beside their bases, set by set."""
    columns = [own for name in ("table17", "table18") for own in zip(*table(name), strict=True)]
    bases = {(own.column, own.row): own for column in columns for own in column if "+" not in own.row}
    return [(own, bases[own.column, own.row.partition("+")[0]]) for column in columns for own in column]


@cache
def node_rows() -> list[NodeRow]:
    """The rows that have records."""
    rows = (NodeRow(cell, found(cell), base, found(base)) for cell, base in node_cells())
    return [row for row in rows if row.own]


def above_equal_below(values: Iterator[float]) -> tuple[int, int, int]:
    """The numbers of positive, zero and negative values."""
    own = np.array(list(values))
    return int((own > 1e-9).sum()), int((abs(own) <= 1e-9).sum()), int((own < -1e-9).sum())


# Grids


@dataclass(frozen=True)
class GridRow:
    """The 12 pairs of one method in a complete search: pair -> gains over the base by seed."""

    graph: str
    arch: str
    method: str
    pairs: list[tuple[float, float]]
    valid: np.ndarray
    test: np.ndarray
    papers_pair: tuple[float, float]

    @property
    def flipped_best(self) -> np.ndarray:
        """The best pair's gain under each of the 2^seeds sign flips."""
        flips = np.array(list(product((1, -1), repeat=self.valid.shape[1])))
        return (flips @ self.valid.T / flips.shape[1]).max(axis=1)


def grid_rows(path: Path) -> list[GridRow]:
    """HAM and nHAM of a grid's record."""
    grid = json.loads(path.read_text())
    base = grid["points"][0]
    rows = []
    for method, sign in (("HAM", 1), ("nHAM", -1)):
        points = [p for p in grid["points"] if np.sign(p["alpha"]) == sign]
        gains = [np.array([p[key] for p in points]) - np.array(base[key]) for key in ("valid", "test")]
        ham = record(f"{grid['exp']}_{method.lower()}", grid["seeds"][0])["ham"]
        rows.append(
            GridRow(
                *(grid["graph"]["name"], grid["exp"].rpartition("_")[2].upper(), method),
                *([(p["alpha"], p["beta"]) for p in points], *gains, (ham["alpha"], ham["beta"])),
            )
        )
    return rows


def grid_points(path: Path) -> dict[tuple[float, float], tuple[float, float]]:
    """(alpha, beta) -> mean gain in validation and in test over the base."""
    base, *_ = points = json.loads(path.read_text())["points"]
    return {
        (p["alpha"], p["beta"]): tuple(
            float(np.mean(p[key]) - np.mean(base[key])) for key in ("valid", "test")
        )
        for p in points
    }


def grid_base(path: Path) -> list[float]:
    """Mean validation and test metric of the base and the number of seeds."""
    base = json.loads(path.read_text())["points"][0]
    return [float(np.mean(base["valid"])), float(np.mean(base["test"])), len(base["valid"])]
