"""The style of all figures, and saving them reproducibly, byte for byte. Needs matplotlib.

A method has one color, line style and marker in all figures, see methods.py. Grids use cividis, which is
perceptually uniform with increasing lightness.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from ham.files import atomic_write

from .methods import METHODS

WIDTH, HEIGHT = 3.4, 2.6  # inches of one panel
SINGLE_WIDTH = 4.4  # of a single panel, which also has to hold titles and legend
CHARACTERS = 14  # of a title, per inch
SEQUENTIAL = "cividis"
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
    for path, (ending, fields) in zip(paths, metadata.items(), strict=True):
        atomic_write(path, partial(figure.savefig, format=ending, metadata=fields))
    return paths
