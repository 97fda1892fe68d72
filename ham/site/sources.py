"""What the pages show, read once from a folder of results: records, divergences, simulated figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ham.experiments import experiments
from ham.report.methods import method_of_experiment
from ham.report.records import DEMOS, Record, metrics_path, read_all, read_diverged
from ham.report.spec import RunSpec
from ham.report.study import studies, study

SETTINGS = ("", *DEMOS)
"""The paper's setting, then the scales below it."""


@dataclass(frozen=True)
class Group:
    """The runs of one configuration at one scale, which differ only in their seed.

    Args:
        run: the configuration, with seed 0.
        records: seed -> record.
        diverged: seed -> reason, of runs without a record.
    """

    run: RunSpec
    records: Mapping[int, Record]
    diverged: Mapping[int, str]

    @property
    def page(self) -> str:
        """Its page in the site."""
        return page_of(self.run)

    @property
    def title(self) -> str:
        """The experiment, with the arm of a study or the overrides."""
        return " ".join(filter(None, (self.run.exp, arm_or_overrides(self.run))))

    @property
    def cell(self) -> str:
        """The cell of the paper that the experiment is of."""
        return _cells().get(self.run.exp, "")

    @property
    def method(self) -> str:
        """Its name in `ham.report.methods.METHODS`."""
        return method_of_experiment(self.run.exp)

    @cached_property
    def histories(self) -> list[list[dict[str, Any]]]:
        """The epochs of those seeds whose records keep them."""
        return [own.epochs() for own in self.records.values() if metrics_path(own.path).exists()]


@dataclass(frozen=True)
class Sources:
    """The valid records of a folder of results.

    Args:
        records: scale ("" is the paper's) -> run -> record.
        diverged: scale -> run that diverged -> reason.
        simulated: names of the theory's figures that have data.
        problems: a line for each file that cannot be used.
    """

    records: Mapping[str, Mapping[RunSpec, Record]]
    diverged: Mapping[str, Mapping[RunSpec, str]]
    simulated: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    @cached_property
    def groups(self) -> dict[RunSpec, Group]:
        """Configuration, with seed 0 -> its runs; the paper's setting first, then by name."""
        seeds: dict[RunSpec, tuple[dict[int, Record], dict[int, str]]] = {}
        for demo in SETTINGS:
            for run, record in self.records[demo].items():
                seeds.setdefault(_without_seed(run), ({}, {}))[0][run.seed] = record
            for run, reason in self.diverged[demo].items():
                if run not in self.records[demo]:
                    seeds.setdefault(_without_seed(run), ({}, {}))[1][run.seed] = reason
        ordered = sorted(seeds, key=lambda run: (SETTINGS.index(run.demo), run))
        return {run: Group(run, *(dict(sorted(own.items())) for own in seeds[run])) for run in ordered}


def read(results: Path) -> Sources:
    """The records in a folder. Raises PlanError if configs/lock.json is out of date."""
    problems: list[str] = []
    records: dict[str, Mapping[RunSpec, Record]] = {}
    diverged: dict[str, Mapping[RunSpec, str]] = {}
    for demo in SETTINGS:
        records[demo], invalid = read_all(demo, results)
        diverged[demo], damaged = read_diverged(demo, results)
        problems += [*invalid, *damaged]
    simulated = frozenset(path.stem for path in (results / "theory").glob("*.json"))
    return Sources(records, diverged, simulated, tuple(dict.fromkeys(problems)))


def page_of(run: RunSpec) -> str:
    """The page of a configuration at a scale: runs/<name>.html, with hyphens for slashes."""
    return f"runs/{run.name.replace('/', '-')}.html"


def arm_or_overrides(run: RunSpec) -> str:
    """The arm of a study that a run is of, or its overrides; "" without these."""
    return _arms().get((run.spec, run.demo)) or " ".join(run.overrides)


def _without_seed(run: RunSpec) -> RunSpec:
    return RunSpec(run.exp, 0, run.overrides, run.demo)


@cache
def _cells() -> dict[str, str]:
    return experiments()


@cache
def _arms() -> dict[tuple[str, str], str]:
    """Configuration and scale -> arm and learning rate, for the runs of all studies."""
    names: dict[tuple[str, str], str] = {}
    for plan in map(study, studies()):
        for arm, rate in ((arm, rate) for arm in plan.arms for rate in plan.possible_rates()):
            tuning, run = plan.trial(arm, rate), plan.run(arm, rate, 0)
            names[tuning.spec, plan.demo] = f"({arm}, learning rate {rate:.4g}, tuning)"
            names[run.spec, plan.demo] = f"({arm}, learning rate {rate:.4g})"
    return names
