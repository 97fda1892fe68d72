"""The style of all figures, and saving them reproducibly, byte for byte. Needs matplotlib.

A method has one color, line style and marker in all figures (`METHODS`). The colors are Okabe and Ito's
(Color Universal Design, 2008) and Tol's (Colour Schemes, SRON, 2021); line styles and markers distinguish the
methods in gray. Grids use cividis, which is perceptually uniform with increasing lightness.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from .spec import PlanError

WIDTH, HEIGHT = 3.4, 2.6  # inches of one panel
SINGLE_WIDTH = 4.4  # of a single panel, which also has to hold titles and legend
CHARACTERS = 14  # of a title, per inch
SEQUENTIAL = "cividis"
METHODS: dict[str, dict[str, Any]] = {  # name -> matplotlib's properties; SAM's are tints with hollow markers
    "base": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "ham": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "alpha_only": {"color": "#CC79A7", "linestyle": ":", "marker": "v"},
    "beta_only": {"color": "#117733", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "D"},
    "matched_decay": {"color": "#F0A830", "linestyle": (0, (8, 2)), "marker": "P"},
    "nham": {"color": "#AA4499", "linestyle": (0, (2, 2)), "marker": "*"},
    "sign_in": {"color": "#0072B2", "linestyle": "-.", "marker": "^"},
    "pilot": {"color": "#882255", "linestyle": (0, (6, 1, 2, 1)), "marker": "X"},
    "spred": {"color": "#661100", "linestyle": (0, (4, 1, 1, 1, 1, 1, 1, 1)), "marker": "h"},
    "product": {"color": "#56B4E9", "linestyle": (0, (4, 1, 1, 1)), "marker": "<"},
    "product_decay": {"color": "#44AA99", "linestyle": (0, (1, 1)), "marker": ">"},
    "ham_signed": {"color": "#332288", "linestyle": (0, (7, 1.5, 1.5, 1.5)), "marker": "d"},
    "hyperbolic": {"color": "#999933", "linestyle": (0, (1, 0.7)), "marker": "p"},
    "sam": {"color": "#999999", "linestyle": (0, (10, 1)), "marker": "o", "markerfacecolor": "white"},
    "sam_ham": {"color": "#EBA878", "linestyle": (0, (3, 1)), "marker": "s", "markerfacecolor": "white"},
    "sam_alpha_only": {
        "color": "#DDA9C7",
        "linestyle": (0, (1, 2)),
        "marker": "v",
        "markerfacecolor": "white",
    },
    "sam_beta_only": {
        **{"color": "#70AD85", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "D"},
        "markerfacecolor": "white",
    },
    "sam_matched_decay": {
        **{"color": "#D6C87E", "linestyle": (0, (6, 3)), "marker": "P"},
        "markerfacecolor": "white",
    },
}
SPARSIFIERS = ("Random", "AC/DC", "RiGL", "STR", "SNIP", "SynFlow", "Dense")
LABELS: dict[str, tuple[str, ...]] = {  # name of a method -> its labels in figures, after a sparsifier's name
    "base": ("SGD", "Adam", "AdamW", "GD", "Baseline", "base", *SPARSIFIERS),
    "ham": ("HAM", "HAM (200, 1e-3)", "HAM (200, 16e-3)"),
    "alpha_only": ("alpha alone", "HAM (200, 0)"),
    "beta_only": ("beta alone", "HAM (0, 1e-3)", "HAM (0, 16e-3)"),
    "matched_decay": ("matched decay",),
    "nham": ("nHAM",),
    "sign_in": ("Sign-In", "Sign-In, s = 0.9"),
    "pilot": ("PILoT",),
    "spred": ("spred",),
    "product": ("m * w",),
    "product_decay": ("m * w with decay",),
    "ham_signed": ("HAM signed", "HYP"),
    "hyperbolic": ("hyperbolic step alone",),
    "sam": ("SAM",),
    "sam_ham": ("SAM + HAM",),
    "sam_alpha_only": ("SAM + alpha alone",),
    "sam_beta_only": ("SAM + beta alone",),
    "sam_matched_decay": ("SAM + matched decay",),
}
SHADES = ((0, (6, 1.5)), "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (1.5, 1)))  # line styles of `shades`
MARKS = 8  # markers along a curve
NOTE = {"fontsize": 6.5, "color": "0.3"}
_STYLE = {
    "font.family": "DejaVu Sans",  # part of matplotlib, hence the same on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "pdf.fonttype": 42,  # TrueType, which editors and printers can read
    "savefig.dpi": 160,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save in the style above, independent of the user's matplotlibrc."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def panels(count: int, *, width: float | None = None, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """An empty figure with `count` panels side by side, without a window or global state."""
    width = width or (SINGLE_WIDTH if count == 1 else WIDTH)
    figure = Figure(figsize=(count * width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def title(figure: Figure, *lines: str) -> None:
    """Title the figure with these lines, wrapped to its width."""
    characters = int(CHARACTERS * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, characters) for line in lines if line), fontsize=8.5)


def mark_every(points: int) -> int:
    """The number of points of a curve per marker."""
    return max(1, points // MARKS)


def look(label: str) -> dict[str, Any]:
    """Color, line style and marker of a method by one of its `LABELS`, as `HAM`, `+ HAM` or `Random + HAM`.

    Raises:
        PlanError: no method has this label.
    """
    head, plus, tail = label.partition("+ ")
    plain = tail if plus and head.strip() in ("", *SPARSIFIERS) else label
    for name, labels in LABELS.items():
        if plain in labels:
            return METHODS[name]
    raise PlanError(f"no method has the label {label!r}: add it to LABELS in ham/report/style.py")


def line(method: str) -> dict[str, Any]:
    """Color and line style of a name in `METHODS`, for curves without markers."""
    return {key: METHODS[method][key] for key in ("color", "linestyle")}


def shades(method: str, count: int) -> list[dict[str, Any]]:
    """Looks for one method under up to four settings: shades of its color, from dark to light, no markers."""
    color = np.array(to_rgb(METHODS[method]["color"]))
    looks = []
    for light, dash in zip(np.linspace(-0.6, 0.45, count), SHADES[:count], strict=True):
        mixed = color * (1 + light) if light < 0 else color + (1 - color) * light
        looks.append({"color": to_hex(mixed), "linestyle": dash})
    return looks


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.pdf and stem.png without dates and versions in them; returns the paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in metadata]
    for path, fields in zip(paths, metadata.values(), strict=True):
        figure.savefig(path, metadata=fields)
    return paths
