"""The studies: forest plot, verdicts, accuracies, curves and tuning, complete or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ham.report import study_page
from ham.report.curves import curve
from ham.report.methods import method_of_experiment
from ham.report.plan import Panel
from ham.report.scales import SCALES, scaled_down
from ham.report.study import studies, study
from ham.report.study_results import ArmResult, PartResult, StudyResult, results, with_epochs

from . import commands, pages
from .charts import Chart, Interval, Series, curves, forest
from .curves import thinned
from .sources import Sources, page_of

PANELS = {  # name -> curve
    "top1": Panel("top1", "test top-1 [%]"),
    "loss": Panel("train_loss", "training loss"),
    "l1": Panel("l1_mean", "L1: mean |weight|"),
    "flips": Panel("sign_flips", "weights that change sign in ten epochs [%]", scale=100),
    "small": Panel("below_0.001", "weights below 1e-3 [%]", scale=100),
    "clamped": Panel("clamped_share", "steps clamped by HAM [%]", scale=100),
}
ACCURACY = "top1"


@dataclass(frozen=True)
class StudyPage:
    """A study and what its part of the page shows."""

    result: StudyResult

    @property
    def name(self) -> str:
        """Of the study."""
        return self.result.study.name

    @property
    def command(self) -> str:
        """The line that runs it."""
        return commands.for_study(self.name, self.result.study.demo)

    @cached_property
    def headlines(self) -> list[str]:
        """A sentence for each part."""
        return study_page.headlines(self.result)

    @property
    def verdicts(self) -> list[tuple[str, str]]:
        """Claim and verdict."""
        return [(claim.text, self.result.verdict(claim)) for claim in self.result.study.claims]

    @property
    def progress(self) -> list[tuple[str, int, int]]:
        """Part, runs that have ended, planned runs."""
        trials = sum(map(len, self.result.trials.values()))
        tuning = ("tuning", trials, 4 * len(self.result.study.tuned_arms))
        return [tuning, *((name, part.ended, part.planned) for name, part in self.result.parts.items())]

    @property
    def forest(self) -> Chart | None:
        """The contrasts of the complete parts."""
        contrasts = [c for part in self.result.parts.values() if part.is_complete for c in part.contrasts]
        rows = [
            Interval(
                f"{c.contrast} (n = {len(c.differences)})",
                c.mean.value,
                c.mean.interval,
                list(c.differences.values()),
            )
            for c in contrasts
            if c.mean
        ]
        axis = "difference of top-1 accuracy [points]"
        title = "Paired differences: seeds (dots) and means (squares) with 95 % intervals"
        return forest(f"{self.name}-forest", title, axis, rows) if rows else None

    @property
    def tuning(self) -> tuple[str, list[str], list[list[str]]]:
        """What tuning shows, as a sentence and a table with a mark at the chosen rates."""
        head, rows, chosen = study_page.tuning_table(self.result)
        marked = [
            [f"{cell} (chosen)" if place == own else cell for place, cell in enumerate(row)]
            for row, own in zip(rows, chosen, strict=True)
        ]
        return study_page.tuning_note(self.result), head, marked

    def charts(self, part: PartResult) -> list[Chart]:
        """Curves of the arms; those of a part with more arms than looks are pairs of a contrast."""
        arms = {name: arm for name, arm in part.arms.items() if arm.records}
        methods = {name: method_of_experiment(self.result.study.arms[name].exp) for name in arms}
        if len(set(methods.values())) == len(methods):
            return list(filter(None, (self._chart(part, name, arms, methods) for name in PANELS)))
        pairs = [
            {name: arms[name] for name in (c.contrast.reference, c.contrast.arm) if name in arms}
            for c in part.contrasts
        ]
        drawn = [self._chart(part, ACCURACY, own, methods, str(i)) for i, own in enumerate(pairs) if own]
        return list(filter(None, drawn))

    def _chart(
        self,
        part: PartResult,
        panel: str,
        arms: Mapping[str, ArmResult],
        methods: Mapping[str, str],
        suffix: str = "",
    ) -> Chart | None:
        """The curves of one metric; None where no arm has it."""
        metric = PANELS[panel]
        series = [
            Series(name, methods[name], points)
            for name, arm in arms.items()
            if (points := curve(thinned([own.epochs() for own in arm.records.values()]), metric)).epochs
        ]
        if not series:
            return None
        title = " and ".join(arms) if suffix else metric.label[0].upper() + metric.label[1:]
        axis = metric.label if suffix else ""
        return curves(f"{self.name}-{part.part.name}-{panel}{suffix}", title, axis, series, 300)

    def run_page(self, arm: ArmResult, sources: Sources) -> str:
        """The page of an arm's runs, "" without any."""
        if arm.rate is None:
            return ""
        own = self.result.study.run(arm.name, arm.rate, 0)
        return page_of(own) if own in sources.groups else ""


def build(sources: Sources) -> tuple[list[StudyPage], list[str]]:
    """All studies, and a line for each record that lacks its epochs."""
    shown, problems = [], []
    for plan in map(study, studies()):
        records, incomplete = with_epochs(sources.records[plan.demo])
        shown.append(StudyPage(results(plan, records, sources.diverged[plan.demo])))
        problems += incomplete
    return shown, problems


def render(shown: list[StudyPage], sources: Sources) -> dict[str, str]:
    """The page of all studies."""
    context: dict[str, Any] = {
        "page": "study.html",
        "title": "Study",
        "studies": shown,
        "sources": sources,
        "words": study_page,
        "caveat": {own.name: _caveat(own.result.study.demo) for own in shown},
    }
    return {"study.html": pages.render("study.html", **context)}


def _caveat(demo: str) -> str:
    return f"{scaled_down(demo)}: {SCALES[demo].data}. {SCALES[demo].caveat}"
