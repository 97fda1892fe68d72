"""Curves over the epochs: the metrics that are shown, and the page on which the reader chooses runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ham.report.curves import Curve, curve
from ham.report.plan import Panel
from ham.report.scales import SCALES
from ham.report.spec import RunSpec

from . import charts, pages
from .sources import Group, Sources

ACCURACY = "accuracy"
PANELS = {  # name -> curve; the metric of the accuracy is the task's
    ACCURACY: Panel("", "accuracy [%]"),
    "loss": Panel("train_loss", "training loss"),
    "sparsity": Panel("sparsity", "pruned weights [%]", scale=100),
    "l1": Panel("l1_mean", "L1: mean |weight|"),
    "flips": Panel("sign_flips", "weights that change sign in ten epochs [%]", scale=100),
    "clamped": Panel("clamped_share", "steps clamped by HAM [%]", scale=100),
}
POINTS = 31  # of a curve
_STEPS = [digit * 10**power for power in range(9) for digit in (1, 2, 5)]
CHOSEN = 3  # curves that are shown before the reader chooses
ABOUT = "Means of the chosen runs over the epochs, with bands of one sample standard deviation."
SLOTS = ("base", "ham", "beta_only", "sign_in", "matched_decay", "product", "alpha_only", "product_decay")
"""Methods whose line styles and markers the chosen curves get, in turn; their colors are their own."""


Panels = Mapping[str, Curve]
"""Name in `PANELS` -> curve."""


def panels_by_run(sources: Sources) -> dict[RunSpec, Panels]:
    """The curves of every configuration that has some."""
    return {run: panels_of(group) for run, group in sources.groups.items() if group.histories}


def render(sources: Sources, curves: Mapping[RunSpec, Panels]) -> dict[str, str]:
    """curves.html."""
    groups = [sources.groups[run] for run in curves]
    settings: dict[str, list[tuple[int, Group]]] = {}
    for place, group in enumerate(groups):
        settings.setdefault(setting(group.run.demo), []).append((place, group))
    found = list(curves.values())
    used = [name for name in PANELS if any(name in panels for panels in found)]
    last = [
        [
            group,
            len(group.histories),
            *(f"{own[name].means[-1]:.4g}" if name in own else "-" for name in used),
        ]
        for group, own in zip(groups, found, strict=True)
    ]
    return {
        "curves.html": pages.render(
            "curves.html",
            page="curves.html",
            title="Curves",
            settings=settings,
            chosen=range(min(CHOSEN, len(groups))),
            panels={name: PANELS[name] for name in used},
            data=_data(groups, found, used),
            last=last,
            setting=setting,
        )
    }


def setting(demo: str) -> str:
    """The scale in a few words."""
    return SCALES[demo].summary if demo else "paper's setting"


def panels_of(group: Group) -> Panels:
    """What the epochs of the runs hold; a dense run has no sparsity."""
    found, histories = {}, thinned(group.histories)
    for name, panel in PANELS.items():
        metric = panel.metric or group.run.info.reported[0].removesuffix("_last")
        points = curve(histories, replace(panel, metric=metric))
        if points.epochs and not (name == "sparsity" and not any(points.means)):
            found[name] = points
    return found


def step(epochs: int, points: int) -> int:
    """The distance of epochs of which a curve shows at most so many, a round number."""
    return next(own for own in _STEPS if epochs <= points * own)


def thinned(histories: Sequence[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Epochs at a round distance, and the last one: `POINTS` are all that is visible."""
    count = max(map(len, histories), default=0)
    own = step(count, POINTS)
    return [
        [line for line in lines if (line["epoch"] + 1) % own == 0 or line["epoch"] + 1 == count]
        for lines in histories
    ]


def _data(groups: Sequence[Group], found: Sequence[Panels], used: Sequence[str]) -> dict[str, Any]:
    """What assets/site.js draws the chosen curves from."""
    empty = charts.curve_spec("", ["", ""], SLOTS[:2])
    return {
        "panels": {name: PANELS[name].label for name in used},
        "dashes": list(map(charts.dash, SLOTS)),
        "shapes": list(map(charts.shape, SLOTS)),
        "series": [
            {
                "label": f"{group.title}, {setting(group.run.demo)} (n = {len(group.histories)})",
                "color": charts.color(group.method),
                "curves": {name: _points(points) for name, points in panels.items()},
            }
            for group, panels in zip(groups, found, strict=True)
        ],
        "spec": charts.Chart("choice", "Chosen curves", ABOUT, empty, 420).vega_lite,
    }


def _points(points: Curve) -> list[list[float]]:
    """Epoch, mean and standard deviation of each point."""
    rows = zip(points.epochs, points.means, points.stds, strict=True)
    return [[epoch, charts.rounded(mean), charts.rounded(std)] for epoch, mean, std in rows]
