"""Draws the plan's figures from records: curves over epochs, and grids over (alpha, beta)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from . import plan, style
from .curves import Curve, curve
from .methods import look
from .plan import Figure, Panel
from .records import InvalidRecord, Record, metrics_path
from .render import DIVERGED, NOT_RUN, PLUS_MINUS
from .scales import file_name, scaled_down
from .spec import RunSpec, canonical

BAND = f"(mean over seeds, band: {PLUS_MINUS} one sample standard deviation)"
SPAN = 5.0  # range of a grid's colors in accuracy points, so that a failed run does not flatten the others


def draw(
    figure: Figure,
    records: Mapping[RunSpec, Record],
    demo: str = "",
    problems: list[str] | None = None,
    diverged: Collection[RunSpec] = (),
) -> Picture | None:
    """The figure; None if it has no run to show. Damaged epochs are reported in `problems`."""
    if figure.kind == "grid":
        is_shown = any(run in records for run in shown_runs(figure, demo))
        return _grid(figure, records, demo, diverged) if is_shown else None
    runs = {
        label: [RunSpec(exp, seed, demo=demo) for seed in figure.seeds]
        for label, exp in figure.series.items()
    }
    epochs = {label: _epochs(own, records, problems) for label, own in runs.items()}
    states = {label: _state(own, diverged) for label, own in runs.items()}
    return _curves(figure, epochs, states, demo) if any(epochs.values()) else None


def _state(runs: Sequence[RunSpec], diverged: Collection[RunSpec]) -> str:
    """The state of runs without a record: diverged or not run."""
    return DIVERGED if any(run in diverged for run in runs) else NOT_RUN


def _epochs(
    runs: Sequence[RunSpec], records: Mapping[RunSpec, Record], problems: list[str] | None
) -> list[list[dict]]:
    """The epochs of those runs that have them; a demo's record may have none."""
    histories = []
    for record in (records[run] for run in runs if run in records):
        if record.run.demo and not metrics_path(record.path).exists():
            continue
        try:
            histories.append(record.epochs())
        except InvalidRecord as error:
            if problems is not None:
                problems.append(str(error))
    return histories


def shown_runs(figure: Figure, demo: str) -> list[RunSpec]:
    """The runs whose records the figure can show."""
    altered = [replace(run, seed=seed, demo=demo) for run in figure.points.values() for seed in figure.seeds]
    return [*figure.runs(demo=demo), *altered]


def _curves(
    figure: Figure, epochs: Mapping[str, list[list[dict]]], states: Mapping[str, str], demo: str
) -> Picture:
    picture, axes = style.panels(len(figure.panels), height=style.HEIGHT + 0.5)
    for panel, axis in zip(figure.panels, axes, strict=True):
        draw_panel(axis, panel, epochs)
    names = [
        f"{label} (n = {len(runs)})" if runs else f"{label} ({states[label]})"
        for label, runs in epochs.items()
    ]
    style.title(picture, figure.title, scaled_down(demo) if demo else "", BAND)
    columns = 2 if len(figure.panels) == 1 or len(names) > 4 else len(names)
    picture.legend(axes[0].get_lines(), names, loc="outside lower center", ncols=columns)
    return picture


def draw_panel(axis: Axes, panel: Panel, epochs: Mapping[str, list[list[dict]]]) -> None:
    """Draw the curves of one metric.

    Args:
        axis: axes to draw on.
        panel: the metric.
        epochs: label of a method -> the epochs of each of its runs.
    """
    for label, runs in epochs.items():
        _line(axis, curve(runs, panel), look(label))
    axis.set_xlabel("epoch")
    axis.set_xlim(left=0)
    axis.ticklabel_format(axis="y", scilimits=(-4, 5), useMathText=True)
    axis.set_ylabel(panel.label)


def _line(axis: Axes, points: Curve, own: Mapping[str, Any]) -> None:
    axis.plot(points.epochs, points.means, markevery=style.mark_every(len(points.epochs)), **own)
    if any(points.stds):
        low = [m - s for m, s in zip(points.means, points.stds, strict=True)]
        high = [m + s for m, s in zip(points.means, points.stds, strict=True)]
        axis.fill_between(points.epochs, low, high, color=own["color"], alpha=0.18, linewidth=0)


def value(
    figure: Figure, point: tuple[float, float], records: Mapping[RunSpec, Record], demo: str
) -> float | None:
    """A grid's value: the mean over the seeds' records, of the named experiment if there is one."""
    values = []
    for seed in figure.seeds:
        altered = replace(figure.points[point], seed=seed, demo=demo)
        record = records.get(canonical(altered)) or records.get(altered)
        values += [record.metric(figure.metric)] if record else []
    return statistics.mean(values) if values else None


def _grid(
    figure: Figure, records: Mapping[RunSpec, Record], demo: str, diverged: Collection[RunSpec]
) -> Picture:
    alphas, betas = (sorted({point[i] for point in figure.points}) for i in (0, 1))
    picture, (axis,) = style.panels(1, width=1.3 + 0.62 * len(betas), height=1.1 + 0.42 * len(alphas))
    values = {point: value(figure, point, records, demo) for point in figure.points}
    known = [v for v in values.values() if v is not None]
    table = [[math.nan if (v := values[a, b]) is None else v for b in betas] for a in alphas]
    best, worst = max(known), max(min(known), max(known) - SPAN)
    span = 0.05 if best == worst else 0.0
    limits = dict(vmin=worst - span, vmax=best + span)
    axis.set_facecolor("0.93")
    image = axis.imshow(table, cmap=style.SEQUENTIAL, origin="lower", aspect="auto", **limits)
    for (alpha, beta), number in values.items():
        runs = [replace(figure.points[alpha, beta], seed=seed, demo=demo) for seed in figure.seeds]
        state = _state([*runs, *map(canonical, runs)], diverged)
        _write(axis, image, (betas.index(beta), alphas.index(alpha)), number, state)
    if figure.chosen:
        _mark(axis, betas.index(figure.chosen[1]), alphas.index(figure.chosen[0]))
    axis.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axis.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axis.set(xlabel="beta", ylabel="alpha")
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    extend = "min" if min(known) < worst else "neither"
    bar = picture.colorbar(image, ax=axis, label="top-1 [%]", shrink=0.95, extend=extend)
    bar.outline.set_visible(False)
    style.title(picture, figure.title, scaled_down(demo) if demo else "", "(framed: the paper's choice)")
    return picture


def _write(axis: Axes, image: AxesImage, position: tuple[int, int], number: float | None, state: str) -> None:
    """Write a cell's value, white on dark colors, or the state of its runs."""
    if number is None:
        axis.text(*position, state, ha="center", va="center", **style.NOTE)
        return
    red, green, blue, _ = image.cmap(image.norm(number))
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45  # ITU-R BT.709
    axis.text(
        *position, f"{number:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
    )


def _mark(axis: Axes, column: int, row: int) -> None:
    """A black frame with a white one inside, visible on dark and on light cells."""
    for inset, color, width in ((0.0, "black", 2.0), (0.06, "white", 1.0)):
        corner, size = (column - 0.5 + inset, row - 0.5 + inset), 1 - 2 * inset
        axis.add_patch(
            Rectangle(corner, size, size, fill=False, edgecolor=color, linewidth=width, clip_on=False)
        )


def draw_all(
    names: Sequence[str] | None,
    records: Mapping[RunSpec, Record],
    folder: Path,
    demo: str = "",
    problems: list[str] | None = None,
    diverged: Collection[RunSpec] = (),
) -> Iterator[tuple[str, list[Path]]]:
    """Draw the named figures, all if None, into folder/<name>.pdf and .png; of a demo with its prefix.

    Yields:
        Name and paths of each figure; no paths if none of its runs has a record to show.

    Raises:
        PlanError, InvalidRecord, OSError.
    """
    for figure in [plan.figure(name) for name in (plan.figures() if names is None else names)]:
        with style.styled():
            picture = draw(figure, records, demo, problems, diverged) if figure.has_scale(demo) else None
            paths = style.save(picture, folder / file_name(figure.name, demo)) if picture else []
        yield figure.name, paths
