"""The searches for (alpha, beta) of Tables 13, 16 and 19: their pairs, and the runs of each experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from . import plan
from .spec import CONFIGS, PlanError, RunSpec, reading

# the paper's tuning range (App. G.6.1, G.6.2), and its mirror image for alpha < 0
_ALPHAS, _BETAS = (1, 10, 100, 200), (0, 0.01, 0.1)
PAIRS: dict[str, tuple[tuple[float, float], ...]] = {
    "ham": (
        *((alpha, beta) for alpha in _ALPHAS for beta in _BETAS),
        *((0, beta) for beta in _BETAS if beta),  # weight decay alone, a control
    ),
    "nham": tuple((-alpha, beta) for alpha in _ALPHAS for beta in _BETAS),
}
"""Method, which is also the suffix of its experiments -> its pairs (alpha, beta)."""


@dataclass(frozen=True)
class Search:
    """The search of a baseline experiment.

    Args:
        methods: keys of `PAIRS`.
        seeds: seeds of the search, as many as the paper has runs.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]


@cache
def searches() -> dict[str, Search]:
    """Baseline experiment -> its search, in the order of the tables.

    A baseline is an experiment of a table with the key `search` that has siblings <exp>_<method> there, one
    for each method of that key.

    Raises:
        PlanError: a table names an unknown method, or has no baseline.
    """
    known: dict[str, Search] = {}
    for name in plan.tables():
        table = plan.table(name)
        if unknown := [method for method in table.search if method not in PAIRS]:
            raise PlanError(
                f"configs/tables/{name}.yaml: unknown search {unknown[0]!r}: choose from {', '.join(PAIRS)}"
            )
        for exp, seeds in _bases(table).items():
            known.setdefault(exp, Search(table.search, seeds))
    return known


def _bases(table: plan.Table) -> dict[str, tuple[int, ...]]:
    """The baselines of a table, and their seeds."""
    if not table.search:
        return {}
    shown: dict[str, tuple[int, ...]] = {}
    for cell in table.cells:
        shown.setdefault(cell.exp, cell.seeds or table.seeds)
    siblings = {exp: {f"{exp}_{method}" for method in table.search} for exp in shown}
    bases = {exp: seeds for exp, seeds in shown.items() if siblings[exp] <= shown.keys()}
    if not bases:
        raise PlanError(
            f"configs/tables/{table.name}.yaml: no experiment has siblings _{', _'.join(table.search)}: "
            "remove search"
        )
    return bases


def seeds() -> dict[str, tuple[int, ...]]:
    """Baseline experiment -> its seeds, as many as the paper has runs."""
    return {exp: search.seeds for exp, search in searches().items()}


def bases() -> list[str]:
    """The experiments that have a search, in the order of the tables."""
    return list(seeds())


def node_bases() -> list[str]:
    """The baselines whose runs share one record, results/node_grid/<set>_<arch>.json.

    The runs of the others, which take hours each, have records of their own. Raises PlanError.
    """
    return [base for base in bases() if RunSpec(base, 0).info.task == "nodes"]


def methods(base: str) -> tuple[str, ...]:
    """The methods of a baseline's search, which are also the suffixes of its siblings."""
    return searches()[base].methods


def pairs(base: str) -> list[tuple[float, float]]:
    """The pairs of a baseline's runs of one seed, in the order of `runs`; (0, 0) is the baseline."""
    return [(0, 0), *(pair for method in methods(base) for pair in PAIRS[method])]


@cache
def published(exp: str) -> tuple[float, float]:
    """The (alpha, beta) of an experiment, Tables 13, 16 and 19.

    They are in the experiment's file, or in the file of configs/ham that it selects. Raises PlanError.
    """
    path = CONFIGS / "exp" / f"{exp}.yaml"
    with reading(path):
        content = plan.read_yaml(path)
        groups = {key: value for entry in content["defaults"] for key, value in entry.items()}
        selected = groups.get("override /ham")
        values = plan.read_yaml(CONFIGS / "ham" / f"{selected}.yaml") if selected else {}
        values = values | content.get("ham", {})
        return float(values["alpha"]), float(values["beta"])


def run(base: str, method: str, pair: tuple[float, float], seed: int) -> RunSpec:
    """The run of a pair; the published pair is the experiment itself."""
    exp = f"{base}_{method}"
    if pair == published(exp):
        return RunSpec(exp, seed)
    return RunSpec(exp, seed, (f"ham.alpha={pair[0]}", f"ham.beta={pair[1]}"))


def runs(base: str, seeds: Sequence[int]) -> list[RunSpec]:
    """The runs of a search, seed by seed: the baseline, then every pair."""
    altered = [(method, pair) for method in methods(base) for pair in PAIRS[method]]
    return [
        spec
        for seed in seeds
        for spec in [RunSpec(base, seed), *(run(base, method, pair, seed) for method, pair in altered)]
    ]
