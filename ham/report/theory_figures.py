"""Figures 1, 2b, 3, 4, 6, 7 and 8 from results/theory, which `scripts/theory_runs.py` writes.

Needs matplotlib and numpy. Curves over several seeds are medians, bands are ranges. Colors and line styles
are those of the methods in methods.py; captions.py says what a figure shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .odd_files import InvalidRecord
from .spec import PlanError
from .style import line, panels, save, shades, styled
from .theory_data import DATA, show

GD, HAM, PRODUCT = line("base"), line("ham"), line("product")
SIGNED, HYPERBOLIC = line("ham_signed"), line("hyperbolic")
KINDS = {"gd": ("GD", GD), "product": ("m * w", PRODUCT), "ham": ("HAM", HAM)}
GUIDE = {"color": "0.7", "linewidth": 0.8}  # axes, starts, optima
FAILED = {"color": "0.6", "linestyle": (0, (1, 1.2))}


def draw(names: Sequence[str], out: Path, data: Path = DATA, problems: list[str] | None = None) -> list[Path]:
    """Draw the named ones of FIGURES into out/<name>.pdf and .png; returns the paths.

    Args:
        names: names of the figures.
        out: folder to write to.
        data: folder of the data.
        problems: list that gets a line for each file of invalid data, whose figure is not drawn.

    Raises:
        PlanError: the figure is unknown, or its data are missing.
        InvalidRecord: data are invalid, and `problems` is None.
    """
    paths = []
    for name in names:
        source = data / f"{name}.json"
        if name not in FIGURES:
            raise PlanError(f"unknown theory figure {name!r}: choose one of {', '.join(FIGURES)}")
        if not source.exists():
            raise PlanError(f"{source} is missing: run python scripts/theory_runs.py first")
        try:
            with styled():
                picture = show(source, FIGURES[name])
                paths += save(picture, out / name)
        except InvalidRecord as error:
            if problems is None:
                raise
            problems.append(str(error))
    return paths


def inverse_metrics(data: dict[str, Any]) -> Figure:
    """Figure 1: the inverse metrics, and a weight that passes through zero under each."""
    figure, (left, right) = panels(2)
    strengths = data["settings"]["strengths"]
    for kind, (label, look) in KINDS.items():
        settings = "".join(f", {key} = {value:g}" for key, value in strengths[kind].items())
        left.plot(data["theta"], data["inverse_metric"][kind], label=label + settings, **look)
        right.plot(data["time"], data["flow"][kind], label=label, **look)
    left.set(xlabel="theta", ylabel="inverse metric", ylim=(0, 3.4))
    for theta, name in ((-1, "start"), (1, "optimum")):
        left.axvline(theta, **GUIDE)
        left.text(theta, 0.05, f" {name}", ha="left", va="bottom", fontsize=6.5, color="0.3")
    left.set_title("Inverse metric near zero")
    left.legend(loc="upper center")
    right.axhline(0, **GUIDE)
    right.axhline(data["settings"]["optimum"], **GUIDE)
    right.set(xlabel="time t", ylabel="theta", title="Its flow from -1 to the optimum 1")
    right.legend(loc="lower right")
    return figure


def bregman(data: dict[str, Any]) -> Figure:
    """Figure 2b: HAM's Bregman function between the squared L2 norm and L1."""
    figure, (axes,) = panels(1)
    alphas = data["settings"]["alphas"]
    looks = [GD, *shades("ham", len(alphas) - 1)]  # alpha = 0 is gradient descent
    for alpha, values, look in zip(alphas, data["normalised"], looks, strict=True):
        label = "alpha to 0: theta^2" if alpha == 0 else f"HAM, alpha = {alpha:g}"
        axes.plot(data["theta"], values, label=label, **look)
    axes.plot(data["theta"], np.abs(data["theta"]), color="0.6", linewidth=0.9, label="|theta|")
    axes.set(xlabel="theta", ylabel="R(theta) / R(1)", title="HAM's Bregman function, normalized")
    axes.set_xticks((-1, -0.5, 0, 0.5, 1))
    axes.legend(loc="upper center", fontsize=6.5)
    return figure


def signs(data: dict[str, Any]) -> Figure:
    """Figure 3: HYP and HYP* differ where the gradient step changes the sign."""
    figure, (left, right) = panels(2, height=3.0)
    looks = {"hyp": SIGNED, "hyp_star": HAM}
    settings = data["settings"]["map"]
    edge = settings["lr"] * settings["gradient"]
    theta = np.array(data["theta"])
    left.axvspan(0, edge, color="0.93", linewidth=0)
    left.axhline(0, **GUIDE)
    left.plot(theta, theta, **GUIDE)
    left.text(-0.052, -0.042, "no step", ha="right", va="bottom", fontsize=6.5, color="0.3")
    for name, look in looks.items():
        values = np.array(data["next"][name])
        jumps = np.flatnonzero(np.abs(np.diff(values)) > 5 * (theta[1] - theta[0])) + 1
        left.plot(np.insert(theta, jumps, np.nan), np.insert(values, jumps, np.nan), **look)
    left.set(
        xlabel="weight before", ylabel="weight after", title=f"One step, gradient {settings['gradient']:g}",
        ylim=(-0.3, 0.13),
        xticks=(-0.1, -0.05, 0, 0.05, 0.1),
    )  # fmt: skip
    optimum = data["settings"]["path"]["optimum"]
    right.axhline(0, **GUIDE)
    right.axhline(optimum, **GUIDE)
    right.text(0, optimum, "optimum", ha="left", va="bottom", fontsize=6.5, color="0.3")
    for name, look in looks.items():
        right.plot(data["path"][name], marker="o", markersize=2.5, **look)
    right.set(xlabel="step", ylabel="weight", title=f"A path through zero to the optimum {optimum:g}")
    handles: dict[str, Artist] = {
        r"HYP: sign($\theta_k$), before the gradient": Line2D([], [], **SIGNED),
        r"HYP*, as HAM: sign($\theta_{k+1/2}$), after it": Line2D([], [], **HAM),
        "the gradient changes the sign": Patch(color="0.93"),
    }
    _legend_below(figure, handles)
    return figure


def _legend_below(figure: Figure, handles: dict[str, Artist]) -> None:
    """A legend under all panels, which covers no data."""
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), columnspacing=1.4
    )


def quadrants(data: dict[str, Any]) -> Figure:
    """Figure 4: which sign cases GD, m * w and HAM learn; solid paths end at a w = 1."""
    figure, axes = panels(3, width=2.6, height=3.1)
    branch = np.geomspace(0.3, 3, 100)
    truth = {"color": "0.45", "linewidth": 0.9, "linestyle": (0, (4, 2))}
    for ax, (kind, (label, look)) in zip(axes, KINDS.items(), strict=True):
        ax.axhline(0, **GUIDE)
        ax.axvline(0, **GUIDE)
        ax.plot(branch, 1 / branch, **truth)
        for path in data["paths"][kind]:
            a, w = np.array(path["a_w"]).T
            is_learned = path["learned"]
            shown = {"color": look["color"], "linestyle": "-"} if is_learned else FAILED
            ax.plot(a, w, linewidth=0.9, **shown)
            ax.plot(
                a[0],
                w[0],
                "o",
                color=shown["color"],
                markersize=2.4,
                fillstyle="full" if is_learned else "none",
            )
            ax.plot(a[-1], w[-1], "*" if is_learned else "x", color=shown["color"], markersize=4)
        learned_cases = {tuple(p["case"]) for p in data["paths"][kind]}
        learned_cases -= {tuple(p["case"]) for p in data["paths"][kind] if not p["learned"]}
        ax.set(
            xlim=(-1.3, 1.7),
            ylim=(-1.3, 1.7),
            xlabel="a (outer weight)",
            title=f"{label}: learns {len(learned_cases)} of 4 sign cases",
        )
        ax.set_aspect("equal")
    axes[0].set_ylabel("w (inner weight)")
    _legend_below(
        figure,
        {
            "start of a path that learns": Line2D([], [], color="0", marker="o", markersize=2.4),
            "its end": Line2D([], [], color="0", marker="*", markersize=4, linestyle="none"),
            "start of a path that fails": Line2D(
                [], [], marker="o", markersize=2.4, fillstyle="none", **FAILED
            ),
            "its end ": Line2D([], [], color="0.6", marker="x", markersize=4, linestyle="none"),
            "solutions a w = 1": Line2D([], [], **truth),
        },
    )
    return figure


def distances(data: dict[str, Any], title: str, looks: Sequence[dict], labels: Sequence[str] = ()) -> Figure:
    """Figures 7 and 8: distance to the truth over the steps."""
    figure, (axes,) = panels(1, width=4.4, height=3.0)
    _distances(axes, data, looks, labels)
    axes.set(title=title)
    return figure


def benefit(data: dict[str, Any]) -> Figure:
    """Figure 6: the distances, and per seed the cost of taking the sign before the step."""
    figure, (left, right) = panels(2, height=2.9)
    _distances(left, data, (GD, HAM, SIGNED), legend_location="center right")
    left.set(title="Sparse regression from zero")
    _, ham, signed = (np.array(series["distances"])[:, 1:] for series in data["series"])
    steps, excess = np.array(data["steps"])[1:], signed - ham
    right.axhline(0, **GUIDE)
    right.fill_between(steps, excess.min(0), excess.max(0), color=SIGNED["color"], alpha=0.15, linewidth=0)
    right.plot(steps, np.median(excess, 0), **SIGNED)
    right.set(xscale="log", xlabel="step", title="HAM signed minus HAM, of each seed")
    right.set_ylabel("difference of the distances")
    return figure


def _distances(
    axes: Axes,
    data: dict[str, Any],
    looks: Sequence[dict],
    labels: Sequence[str] = (),
    legend_location: str = "best",
) -> None:
    steps = np.array(data["steps"])[1:]
    for number, (series, look) in enumerate(zip(data["series"], looks, strict=True)):
        values = np.array(series["distances"])[:, 1:]
        label = labels[number] if labels else series["label"]
        axes.fill_between(steps, values.min(0), values.max(0), color=look["color"], alpha=0.13, linewidth=0)
        axes.plot(steps, np.median(values, 0), label=f"{label} ({np.median(values[:, -1]):.3g})", **look)
    count = len(data["settings"]["seeds"])
    axes.set(xscale="log", xlabel="step", ylabel="distance to the truth")
    if labels:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0)
    heading = f"median (at the end) and\nrange of {count} seeds"
    axes.legend(loc=legend_location, title=heading, title_fontsize=6.5, alignment="left")


FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "figure01": inverse_metrics,
    "figure02b": bregman,
    "figure03": signs,
    "figure04": quadrants,
    "figure06": benefit,
    "figure07": lambda data: distances(data, "Sparse regression from the wrong signs", (HAM, GD, HYPERBOLIC)),
    "figure08": lambda data: distances(
        data,
        "HAM with more alpha and a smaller learning rate",
        shades("ham", 4),
        [f"alpha = 1e{3 + j}, lr = 1e-{4 + j}" for j in range(4)],
    ),
}
