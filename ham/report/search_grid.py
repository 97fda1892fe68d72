"""The search for (alpha, beta) of Tables 16 and 19: the pairs, and the runs of each experiment's search."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import yaml

from . import plan
from .spec import RunSpec

# the paper's tuning range (App. G.6.2), and its mirror image for alpha < 0
_ALPHAS, _BETAS = (1, 10, 100, 200), (0, 0.01, 0.1)
PAIRS: dict[str, tuple[tuple[float, float], ...]] = {
    "ham": (
        *((alpha, beta) for alpha in _ALPHAS for beta in _BETAS),
        *((0, beta) for beta in _BETAS if beta),  # weight decay alone, a control
    ),
    "nham": tuple((-alpha, beta) for alpha in _ALPHAS for beta in _BETAS),
}
"""Method, which is also the suffix of its experiments -> its pairs (alpha, beta)."""


@cache
def seeds() -> dict[str, tuple[int, ...]]:
    """Base experiment -> its seeds, as many as the paper has runs.

    A base is an experiment of the tables that has siblings <exp>_ham and <exp>_nham there.
    """
    shown: dict[str, tuple[int, ...]] = {}
    for name in plan.tables():
        table = plan.table(name)
        for cell in table.cells:
            shown.setdefault(cell.exp, cell.seeds or table.seeds)
    return {exp: own for exp, own in shown.items() if {f"{exp}_{method}" for method in PAIRS} <= shown.keys()}


def bases() -> list[str]:
    """The experiments that have a search, in the order of the tables."""
    return list(seeds())


@cache
def published(exp: str) -> tuple[float, float]:
    """The (alpha, beta) of an experiment, Tables 16 and 19."""
    ham = yaml.safe_load((plan.CONFIGS / "exp" / f"{exp}.yaml").read_text())["ham"]
    return ham["alpha"], ham["beta"]


def run(base: str, method: str, pair: tuple[float, float], seed: int) -> RunSpec:
    """The run of a pair; the published pair is the experiment itself."""
    exp = f"{base}_{method}"
    if pair == published(exp):
        return RunSpec(exp, seed)
    return RunSpec(exp, seed, (f"ham.alpha={pair[0]}", f"ham.beta={pair[1]}"))


def runs(base: str, seeds: Sequence[int]) -> list[RunSpec]:
    """The runs of a search, seed by seed: the base, then every pair."""
    pairs = [(method, pair) for method in PAIRS for pair in PAIRS[method]]
    return [
        spec
        for seed in seeds
        for spec in [RunSpec(base, seed), *(run(base, method, pair, seed) for method, pair in pairs)]
    ]
