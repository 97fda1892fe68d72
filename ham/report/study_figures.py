"""The figures of a study: a forest plot of its contrasts, and curves of its primary arms over the epochs."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure as Picture

from . import style
from .figures import BAND, draw_panel
from .plan import Panel
from .scales import scaled_down
from .study_results import StudyResult

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
    for y, (_, contrast) in enumerate(rows):
        dots = list(contrast.differences.values())
        axis.plot(dots, [y + 0.16] * len(dots), "o", color="0.6", markersize=2.5)
        axis.plot(contrast.mean.value, y, "s", color="black")
        if contrast.mean.interval:
            axis.plot(contrast.mean.interval, [y, y], "-", color="black")
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [f"{c.contrast}  (n = {len(c.differences)})" for _, c in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("difference of top-1 accuracy [points]")
    marks = "(dots: seeds; squares: means with 95 % intervals)"
    style.title(picture, f"{result.study.title}: paired differences", scaled_down(result.study.demo), marks)
    return picture


def curves(result: StudyResult) -> Picture | None:
    """Accuracy, L1 norm, sign flips and small weights of the arms of the first part."""
    part = next(iter(result.parts.values()))
    if not part.ended:
        return None
    picture, axes = style.panels(len(PANELS), height=style.HEIGHT + 0.5)
    epochs = {arm.name: [record.epochs() for record in arm.records.values()] for arm in part.arms.values()}
    for panel, axis in zip(PANELS, axes, strict=True):
        draw_panel(axis, panel, epochs)
    names = [f"{arm.name} (n = {len(arm.records)})" for arm in part.arms.values()]
    state = "" if part.is_complete else f"Incomplete: {part.ended} of {part.planned} runs"
    style.title(picture, result.study.title, scaled_down(result.study.demo), state, BAND)
    picture.legend(axes[0].get_lines(), names, loc="outside lower center", ncols=len(names))
    return picture
