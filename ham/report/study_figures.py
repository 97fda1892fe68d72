"""The figures of a study: a forest plot of its contrasts, and curves of its primary arms over the epochs."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from . import style
from .figures import BAND, Curve, curve
from .plan import Panel
from .study_results import PartResult, StudyResult

SCALED = "Scaled down: not the paper's setting"
PANELS = (
    Panel("top1", "test top-1 [%]"),
    Panel("l1_mean", "mean |weight|"),
    Panel("sign_flips", "sign flips per ten epochs [%]", scale=100),
    Panel("below_0.001", "weights below 1e-3 [%]", scale=100),
)


def draw(result: StudyResult, folder: Path) -> list[Path]:
    """Draw study_<name>_forest and _curves as pdf and png; returns the paths. Without runs there is none."""
    paths: list[Path] = []
    with style.styled():
        for kind, picture in (("forest", forest(result)), ("curves", curves(result))):
            if picture is not None:
                paths += style.save(picture, folder / f"study_{result.study.name}_{kind}")
    return paths


def forest(result: StudyResult) -> Picture | None:
    """Paired differences of each complete part: seeds as dots, means with 95 % intervals."""
    parts = [part for part in result.parts.values() if part.is_complete]
    rows = [(part, contrast) for part in parts for contrast in part.contrasts if contrast.mean]
    if not rows:
        return None
    picture, (axis,) = style.panels(1, width=5.6, height=1.3 + 0.34 * len(rows))
    for place, (_, contrast) in enumerate(rows):
        dots = list(contrast.differences.values())
        axis.plot(dots, [place + 0.16] * len(dots), "o", color="0.6", markersize=2.5)
        axis.plot(contrast.mean.value, place, "s", color="black")
        if contrast.mean.interval:
            axis.plot(contrast.mean.interval, [place, place], "-", color="black")
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [f"{c.contrast}  (n = {len(c.differences)})" for _, c in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("difference of top-1 accuracy [points]")
    style.title(
        picture, f"{result.study.title}: paired differences", SCALED, "(squares: means, 95 % intervals)"
    )
    return picture


def curves(result: StudyResult) -> Picture | None:
    """Accuracy, L1 norm, sign flips and small weights of the arms of the first part."""
    part = next(iter(result.parts.values()))
    if not part.ended:
        return None
    picture, axes = style.panels(len(PANELS), height=style.HEIGHT + 0.5)
    for panel, axis in zip(PANELS, axes, strict=True):
        _panel(axis, panel, part)
    names = [f"{arm.name} (n = {len(arm.records)})" for arm in part.arms.values()]
    style.title(picture, result.study.title, SCALED, BAND)
    picture.legend(axes[0].get_lines(), names, loc="outside lower center", ncols=len(names))
    return picture


def _panel(axis: Axes, panel: Panel, part: PartResult) -> None:
    for arm in part.arms.values():
        points: Curve = curve([record.epochs() for record in arm.records.values()], panel)
        look = style.look(arm.name)
        axis.plot(points.epochs, points.means, markevery=style.mark_every(len(points.epochs)), **look)
        low = [m - s for m, s in zip(points.means, points.stds, strict=True)]
        high = [m + s for m, s in zip(points.means, points.stds, strict=True)]
        axis.fill_between(points.epochs, low, high, color=look["color"], alpha=0.18, linewidth=0)
    axis.set(xlabel="epoch", ylabel=panel.label, xlim=(0, None))
    axis.ticklabel_format(axis="y", scilimits=(-4, 5), useMathText=True)
