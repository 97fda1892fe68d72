"""Which runs a sweep is about: those of tables, figures, experiments and searches."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from ham.experiments import SEEDS
from ham.report import search_grid
from ham.report.plan import figure, figures, table, tables
from ham.report.spec import PlanError, RunSpec, lock
from ham.report.study import Study, study

from .manifests import SweepError
from .status import Status, Sweeps

_TUNING = "tuning"  # part of a study that all others need, whatever is selected of these


@dataclass(frozen=True)
class Selection:
    """What the command line selects.

    Args:
        tables, figures: names as `ham.report.plan.table` and `figure` take them.
        everything: all tables that have this scale, and all figures.
        exps: names or globs of experiments.
        grids: names or globs of experiments whose search over (alpha, beta) is selected.
        only: texts; runs whose experiment contains none of them are left out.
        seeds: instead of the paper's; of a study, the seeds that are kept beside its tuning.
        demo: the scale, "" for the paper's.
        study: name of a study, which has a scale of its own; nothing else can be selected beside it.

    Raises:
        SweepError: nothing is selected, or a seed is out of range.
    """

    tables: Sequence[str] = ()
    figures: Sequence[str] = ()
    everything: bool = False
    exps: Sequence[str] = ()
    grids: Sequence[str] = ()
    only: Sequence[str] = ()
    seeds: tuple[int, ...] | None = None
    demo: str = ""
    study: str = ""

    def __post_init__(self) -> None:
        """Raise SweepError if nothing is selected, or a seed is out of range."""
        others = bool(self.tables or self.figures or self.everything or self.exps or self.grids)
        if not (others or self.study):
            raise SweepError(
                "nothing is selected: give --table N, --figure N, --exp NAME, --grid EXP, --study NAME, --all"
            )
        if self.study and (others or self.demo):
            raise SweepError("--study selects its runs and their scale: omit other selections and --demo")
        if "" in self.only:
            raise SweepError("--only is empty, which matches all names: give a part of a name")
        if wrong := [seed for seed in self.seeds or () if seed not in SEEDS]:
            raise SweepError(f"--seeds must be from 0 to {SEEDS[-1]}, got {wrong[0]}")

    def runs(self, sweeps: Sweeps) -> dict[str, list[RunSpec]]:
        """Name of each selected part -> its runs.

        Args:
            sweeps: finished runs, on which the later runs of a study depend.

        Raises:
            PlanError: a table, figure or experiment is unknown.
            SweepError: no run remains.
        """
        parts = self._tables_and_figures() | self._searches() | self._experiments() | self._study(sweeps)
        only = self.only or [""]
        selected = {
            name: [run for run in runs if name == _TUNING or any(text in run.spec for text in only)]
            for name, runs in parts.items()
        }
        if not any(selected.values()):
            names = " or ".join(self.only)
            raise SweepError(f"no selected experiment contains {names}: see python train.py --list")
        return selected

    def _tables_and_figures(self) -> dict[str, list[RunSpec]]:
        shown = [table(name) for name in (tables() if self.everything else self.tables)]
        shown = [item for item in shown if not self.everything or item.has_scale(self.demo)]
        drawn = [figure(name) for name in (figures() if self.everything else self.figures)]
        shown += [item for item in drawn if not self.everything or item.has_scale(self.demo)]
        return {item.name: item.runs(self.seeds, self.demo) for item in shown}

    def _searches(self) -> dict[str, list[RunSpec]]:
        names = _matching(self.grids, search_grid.bases(), "experiment with a search over (alpha, beta)")
        if names and self.demo:
            raise PlanError(f"searches have no demo={self.demo}: omit --demo")
        seeds = search_grid.seeds()
        return {f"{name} (search)": search_grid.runs(name, self.seeds or seeds[name]) for name in names}

    def _study(self, sweeps: Sweeps) -> dict[str, list[RunSpec]]:
        if not self.study:
            return {}
        plan = study(self.study)
        runs = plan.runs(outcomes(plan, sweeps))
        tuning = [run for run in runs if run.seed == plan.tuning.seed]
        others = [run for run in runs if run not in tuning and (not self.seeds or run.seed in self.seeds)]
        return {_TUNING: tuning, f"study {plan.name}": others}

    def in_local_order(self, runs: list[RunSpec]) -> list[RunSpec]:
        """The order in which runs start on one machine; a study has its own."""
        return runs if self.study else in_local_order(runs)

    def _experiments(self) -> dict[str, list[RunSpec]]:
        known = [spec for spec in lock()[self.demo] if " " not in spec]
        names = _matching(self.exps, known, "experiment" + f" at demo={self.demo}" * bool(self.demo))
        seeds = {name: self.seeds or paper_seeds().get(name, (0,)) for name in names}
        every = dict.fromkeys(seed for own in seeds.values() for seed in own)
        runs = [
            RunSpec(name, seed, demo=self.demo) for seed in every for name in names if seed in seeds[name]
        ]
        return {"experiments": runs} if runs else {}


def outcomes(plan: Study, sweeps: Sweeps) -> dict[RunSpec, float | None]:
    """The accuracy of each tuning run of a study that has ended, None where it diverged."""
    known: dict[RunSpec, float | None] = {}
    for arm in plan.tuned_arms:
        for _ in range(2):  # the fourth trial is known once three have ended
            for run in plan.trials(arm, known):
                kind = sweeps.state(run).kind
                if kind in (Status.DONE, Status.DIVERGED):
                    known[run] = sweeps.outcome(run) if kind is Status.DONE else None
    return known


@cache
def paper_seeds() -> dict[str, tuple[int, ...]]:
    """Experiment -> the seeds with which tables, else figures, show it."""
    shown: dict[str, tuple[int, ...]] = {}
    for item in map(table, tables()):
        for cell in item.cells:
            shown.setdefault(cell.exp, cell.seeds or item.seeds)
    for item in map(figure, figures()):
        for exp in item.series.values():
            shown.setdefault(exp, item.seeds)
    return shown


def in_local_order(runs: list[RunSpec]) -> list[RunSpec]:
    """The order on one machine: runs that are compared with each other follow each other.

    Seed by seed, and of a seed the experiments of one baseline, such as a network's baseline, HAM and nHAM.
    """
    bases: dict[str, int] = {}
    for run in runs:
        bases.setdefault(run.info.base, len(bases))
    return sorted(runs, key=lambda run: (run.seed, bases[run.info.base]))


def _matching(patterns: Sequence[str], known: list[str], kind: str) -> list[str]:
    """The known names that a pattern is or matches, each once. Raises PlanError."""
    matches: dict[str, None] = {}
    for pattern in patterns:
        own = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not own:
            nearest = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
            raise PlanError(f"unknown {kind} {pattern!r}; nearest: {', '.join(nearest)}")
        matches.update(dict.fromkeys(own))
    return list(matches)
