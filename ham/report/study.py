"""A planned comparison of training methods at a small scale: its runs, and the learning rates it chooses.

Reads configs/studies/<name>.yaml; docs/study.md explains the plan. Tuning comes first: every arm without
`rate_of` is trained with three learning rates on a part of the training images and judged on another part.
A fourth rate is the geometric mean of the best one and its better neighbor, or twice (half) the best one
where that is the highest (lowest). The arm's rate is the best of the four. A run that diverged is worse than
any other, and the lower rate wins a tie. Then the parts of the study follow, seeds outside and arms inside,
so that runs which are compared with each other follow each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .plan import read_yaml
from .spec import CONFIGS, PlanError, RunSpec, reading

Outcomes = Mapping[RunSpec, float | None]
"""Finished runs -> accuracy in percent at the last epoch, None where the run diverged."""

RATE = "optimizer.lr"


@dataclass(frozen=True)
class Arm:
    """A training method of a study.

    Args:
        name: name in tables and figures.
        exp: the experiment.
        rate_of: the arm whose learning rate it uses; its own name where it is tuned.
        decays: option -> its value in the paper times the paper's learning rate and number of steps.
    """

    name: str
    exp: str
    rate_of: str
    decays: Mapping[str, float]


@dataclass(frozen=True)
class Contrast:
    """A comparison that is named in advance: `arm` minus `reference`, paired by seed."""

    arm: str
    reference: str

    def __str__(self) -> str:
        return f"{self.arm} - {self.reference}"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and what counts as support.

    Args:
        text: the statement.
        contrasts: contrasts of one part.
        needed: so many of them must be above 0 and significant for support, below 0 for a contradiction.
    """

    text: str
    contrasts: tuple[Contrast, ...]
    needed: int


@dataclass(frozen=True)
class Part:
    """A part of a study, whose contrasts share one correction for multiple tests."""

    name: str
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Tuning:
    """How learning rates are chosen: the first three, the seed, and overrides of these runs."""

    seed: int
    rates: tuple[float, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """The plan of a study.

    Args:
        name: name of its file.
        title: data and network.
        demo: the scale.
        steps: optimizer steps of a run.
        tuning: tuning of the arms' learning rates.
        arms: name -> arm.
        parts: name -> part, in the order in which they run.
        claims: claims that the study decides.
    """

    name: str
    title: str
    demo: str
    steps: int
    tuning: Tuning
    arms: Mapping[str, Arm] = field(repr=False)
    parts: Mapping[str, Part] = field(repr=False)
    claims: tuple[Claim, ...] = field(repr=False)

    def run(self, arm: str, rate: float, seed: int, overrides: tuple[str, ...] = ()) -> RunSpec:
        """A run of an arm with a learning rate; decays follow from the rate, to four digits."""
        own = self.arms[arm]
        decays = (f"{key}={total / (rate * self.steps):.4g}" for key, total in own.decays.items())
        return RunSpec(own.exp, seed, (f"{RATE}={rate:g}", *decays, *overrides), self.demo)

    def trial(self, arm: str, rate: float) -> RunSpec:
        """The tuning run of an arm with a learning rate."""
        return self.run(arm, rate, self.tuning.seed, self.tuning.overrides)

    @property
    def tuned_arms(self) -> list[str]:
        """The arms that are tuned."""
        return [arm.name for arm in self.arms.values() if arm.rate_of == arm.name]

    def trials(self, arm: str, outcomes: Outcomes) -> list[RunSpec]:
        """The tuning runs of an arm that are determined: three, or four once these have ended."""
        runs = [self.trial(arm, rate) for rate in self.tuning.rates]
        if all(run in outcomes for run in runs):
            runs.append(self.trial(arm, self._fourth_rate(arm, outcomes)))
        return runs

    def rate(self, arm: str, outcomes: Outcomes) -> float | None:
        """The learning rate of an arm; None until its four tuning runs have ended.

        Raises:
            PlanError: all of its tuning runs diverged.
        """
        tuned = self.arms[arm].rate_of
        runs = self.trials(tuned, outcomes)
        if len(runs) == len(self.tuning.rates) or not all(run in outcomes for run in runs):
            return None
        if all(outcomes[run] is None for run in runs):
            raise PlanError(f"every tuning run of {tuned} diverged: the plan of study {self.name} ends here")
        return rate_of(max(runs, key=lambda run: _rank(run, outcomes)))

    def _fourth_rate(self, arm: str, outcomes: Outcomes) -> float:
        rates = self.tuning.rates
        runs = [self.trial(arm, rate) for rate in rates]
        best = max(range(len(rates)), key=lambda i: _rank(runs[i], outcomes))
        if best == 0:
            return rates[0] / 2
        if best == len(rates) - 1:
            return rates[-1] * 2
        neighbor = max(best - 1, best + 1, key=lambda i: _rank(runs[i], outcomes))
        return math.sqrt(rates[best] * rates[neighbor])

    def runs(self, outcomes: Outcomes) -> list[RunSpec]:
        """The runs that the finished tuning runs determine, in the order in which they start."""
        tuning = [run for arm in self.tuned_arms for run in self.trials(arm, outcomes)]
        return [*tuning, *(run for part in self.parts.values() for run in self.part_runs(part, outcomes))]

    def part_runs(self, part: Part, outcomes: Outcomes) -> Iterator[RunSpec]:
        """The runs of a part, seed by seed; none until all rates are chosen."""
        rates = {arm: self.rate(arm, outcomes) for arm in self.arms}
        if None not in rates.values():
            yield from (self.run(arm, rates[arm], seed) for seed in part.seeds for arm in part.arms)

    def possible_runs(self) -> list[RunSpec]:
        """Every run that the outcomes of tuning could ask for, with seed 0: what configs/lock.json lists."""
        tuned = self.tuned_arms
        rates = self.possible_rates()
        trials = [self.run(arm, rate, 0, self.tuning.overrides) for arm in tuned for rate in rates]
        return [*trials, *(self.run(arm, rate, 0) for arm in self.arms for rate in rates)]

    def possible_rates(self) -> list[float]:
        """Every learning rate that tuning could choose."""
        first = sorted(self.tuning.rates)
        between = [math.sqrt(a * b) for a, b in itertools.pairwise(first)]
        return sorted([first[0] / 2, *first, *between, first[-1] * 2])


def study(name: str) -> Study:
    """The study in configs/studies/<name>.yaml. Raises PlanError."""
    if name not in studies():
        raise PlanError(f"unknown study {name!r}: choose one of {', '.join(studies())}")
    path = CONFIGS / "studies" / f"{name}.yaml"
    with reading(path):
        return _study(name, read_yaml(path))


def studies() -> list[str]:
    """Names of all studies."""
    return sorted(path.stem for path in (CONFIGS / "studies").glob("*.yaml"))


def _study(name: str, content: dict[str, Any]) -> Study:
    totals = {key: paper["rate"] * paper["steps"] for key, paper in content["paper"].items()}
    arms = {
        key: Arm(
            key,
            arm["exp"],
            arm.get("rate_of", key),
            {option: value * totals[arm["paper"]] for option, value in arm.get("decays", {}).items()},
        )
        for key, arm in content["arms"].items()
    }
    tuning = content["tuning"]
    parts = {
        key: Part(
            key, tuple(part["seeds"]), tuple(part["arms"]), tuple(Contrast(*c) for c in part["contrasts"])
        )
        for key, part in content["parts"].items()
    }
    claims = tuple(
        Claim(text, tuple(Contrast(*pair) for pair in claim["contrasts"]), claim["needed"])
        for text, claim in content["claims"].items()
    )
    rates = tuple(tuning["rates"])
    _check_names(arms, parts.values(), claims)
    if list(rates) != sorted({*rates}):
        raise ValueError("tuning.rates must rise")
    return Study(
        name,
        content["title"],
        content["demo"],
        content["steps"],
        Tuning(tuning["seed"], rates, tuple(tuning["overrides"])),
        arms,
        parts,
        claims,
    )


def _check_names(arms: Mapping[str, Arm], parts: Collection[Part], claims: Iterable[Claim]) -> None:
    tuned = {arm.name for arm in arms.values() if arm.rate_of == arm.name}
    if wrong := {arm.rate_of for arm in arms.values()} - tuned:
        raise ValueError(f"rate_of must name a tuned arm, not {min(wrong)!r}")
    for part in parts:
        used = {*part.arms, *(name for c in part.contrasts for name in (c.arm, c.reference))}
        if unknown := used - {*part.arms} | used - arms.keys():
            raise ValueError(f"part {part.name} has no arm {min(unknown)!r}")
    known = {contrast for part in parts for contrast in part.contrasts}
    for claim in claims:
        if not {*claim.contrasts} <= known:
            raise ValueError(f"the claim {claim.text!r} needs contrasts of a part")


def _rank(run: RunSpec, outcomes: Outcomes) -> tuple[float, float]:
    """Sorts runs from worst to best: a run that diverged is the worst, and a lower rate wins a tie."""
    accuracy = outcomes[run]
    return (-math.inf if accuracy is None else accuracy, -rate_of(run))


def rate_of(run: RunSpec) -> float:
    """The learning rate of a run of a study."""
    return next(float(text.partition("=")[2]) for text in run.overrides if text.startswith(f"{RATE}="))
