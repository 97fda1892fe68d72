"""The runs of node classification: sets, architectures, methods, the grid of Tables 16 and 19. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from . import plan

METHODS = {"base": "", "ham": "_ham", "nham": "_nham"}
ARCHS = ("gcn", "gat", "sage")
# the paper's tuning range (App. G.6.2), and its mirror image for alpha < 0
ALPHAS, BETAS = (1, 10, 100, 200), (0, 0.01, 0.1)
GRID: dict[str, list[tuple[float, float] | None]] = {
    "base": [None],
    "ham": [(a, b) for a in ALPHAS for b in BETAS] + [(0, b) for b in BETAS if b],  # decay alone, a control
    "nham": [(-a, b) for a in ALPHAS for b in BETAS],
}


@dataclass(frozen=True)
class Job:
    """One run: `exp` of a set and architecture, perhaps with other (alpha, beta)."""

    name: str
    arch: str
    method: str
    seed: int
    point: tuple[float, float] | None = None

    @property
    def exp(self) -> str:
        """The experiment."""
        return f"node/{self.name.replace('-', '_')}_{self.arch}{METHODS[self.method]}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """What differs from it."""
        return () if self.point is None else (f"ham.alpha={self.point[0]}", f"ham.beta={self.point[1]}")

    def __str__(self) -> str:
        return " ".join([self.exp, *self.overrides, f"seed {self.seed}"])


def seeds() -> dict[str, tuple[int, ...]]:
    """Set -> seeds, as many as the paper has runs."""
    cells = [cell for number in ("14", "15") for cell in plan.table(number).cells]
    names = [name for number in ("14", "15") for name in plan.table(number).columns]
    short = {name.replace("-", "_"): name for name in names}
    return {
        short[c.exp.removeprefix("node/").rpartition("_")[0]]: c.seeds
        for c in cells
        if c.exp.endswith("_gcn")
    }


def every(name: str, arch: str, seeds: Sequence[int], points: Mapping[str, Sequence[Any]]) -> list[Job]:
    """The runs of one set and architecture; those that are compared with each other stand together."""
    return [
        Job(name, arch, method, seed, point)
        for seed in seeds
        for method in points
        for point in points[method]
    ]


@cache
def published(exp: str) -> tuple[float, float]:
    """The (alpha, beta) of a leaf, Tables 16 and 19."""
    ham = yaml.safe_load((plan.CONFIGS / "exp" / f"{exp}.yaml").read_text())["ham"]
    return ham["alpha"], ham["beta"]
