"""Charts of the pages: Vega-Lite specifications with one look in both color schemes.

Vega-Lite draws them in the browser as SVG; assets/site.js has the look of axes and legends. The colors of
methods are CSS variables of assets/site.css, so that a chart follows the color scheme without being drawn
again; line styles and markers distinguish the methods in gray. Names of fields and expressions are constants
of this package: values of records enter as data only.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ham.report.curves import Curve
from ham.report.methods import METHODS

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name: nothing is loaded from there
INPUTS = 60  # pixels of a chart for its inputs
DIGITS = 4  # significant ones of the data of charts
_DASHES = {"-": (1, 0), "--": (6, 3), ":": (2, 3), "-.": (8, 3, 2, 3)}
_SHAPES = {"o": "circle", "s": "square", "D": "diamond", "d": "diamond", "P": "cross", "X": "cross"}
_SHAPES |= {"v": "triangle-down", "^": "triangle-up", "<": "triangle-left", ">": "triangle-right"}
_SHAPES |= {"*": "wedge", "h": "arrow", "p": "stroke"}


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Args:
        name: `id` of the chart in the page: letters, digits and hyphens.
        title: heading, in words.
        description: text for readers who do not see the chart.
        spec: the Vega-Lite specification, without size and schema.
        height: height in CSS pixels, reserved before the chart is drawn; `INPUTS` of them for its inputs if
            any.
        head: names of the columns of `rows`.
        rows: rows of a table below the chart, with the same numbers.
        like: name of an earlier chart of the page whose specification this one shares, but for data and
            description; "" for none.
    """

    name: str
    title: str
    description: str
    spec: Mapping[str, Any]
    height: int = 260
    head: Sequence[str] = ()
    rows: Iterable[Sequence[object]] = ()
    like: str = ""

    @property
    def vega_lite(self) -> dict[str, Any]:
        """The complete specification, or what differs from `like`; the width is that of the page."""
        if self.like:
            data = {"values": self.spec["data"]["values"]}
            return {"like": self.like, "description": self.description, "data": data}
        height = self.height - (INPUTS if "params" in self.spec else 0)
        size = {} if "vconcat" in self.spec else {"width": "container", "height": height}
        return {
            "$schema": SCHEMA,
            "description": self.description,
            "autosize": {"type": "fit", "contains": "padding"},
            **size,
            **self.spec,
        }


@dataclass(frozen=True)
class Series:
    """A labeled curve in the look of a method."""

    label: str
    method: str
    points: Curve


def color(method: str) -> str:
    """The CSS variable of a method's color."""
    return f"var(--{method.replace('_', '-')})"


def dash(method: str) -> list[float]:
    """Lengths of strokes and gaps of a method's lines, in pixels."""
    style = METHODS[method]["linestyle"]
    return list(_DASHES[style]) if isinstance(style, str) else [1.5 * length for length in style[1]]


def shape(method: str) -> str:
    """The marker of a method."""
    return _SHAPES[METHODS[method]["marker"]]


def rounded(value: float) -> float:
    """A number as charts hold it."""
    return float(f"{value:.{DIGITS}g}")


def curves(name: str, title: str, axis: str, series: Sequence[Series], height: int = 260) -> Chart:
    """Means over the epochs with bands of one sample standard deviation.

    Args:
        name: name of the chart.
        title: heading.
        axis: label of the y axis; "" where the title says it.
        series: one curve each, of at least one point; a single one has neither legend nor markers.
        height: height in pixels.
    """
    rows = [
        (own.label if len(series) > 1 else "", epoch, *map(rounded, (mean, mean - std, mean + std)))
        for own in series
        for epoch, mean, std in _points(own.points)
    ]
    spec = curve_spec(axis, [own.label for own in series], [own.method for own in series])
    spec["data"] = {"values": _csv(("series", "epoch", "mean", "low", "high"), rows), "format": _NUMBERS}
    lasts = "; ".join(f"{own.label} {own.points.means[-1]:.4g}".strip() for own in series)
    return Chart(name, title, f"{axis or title} over the epochs. At the end: {lasts}.", spec, height)


def curve_spec(axis: str, labels: Sequence[str], methods: Sequence[str]) -> dict[str, Any]:
    """The specification of `curves` without data: fields series, epoch, mean, low and high."""
    is_single = len(labels) == 1
    scales = {
        "color": [color(method) for method in methods],
        "strokeDash": [dash(method) for method in methods],
        "shape": [shape(method) for method in methods],
    }
    own = {
        channel: {"value": values[0]}
        if is_single
        else {"field": "series", "title": None, "scale": {"domain": list(labels), "range": values}}
        for channel, values in scales.items()
    }
    y = {"type": "quantitative", "scale": {"zero": False}, "title": axis}
    band = {"y": {"field": "low", **y}, "y2": {"field": "high"}, "color": own["color"]}
    line = {"y": {"field": "mean", **y}, "color": own["color"], "strokeDash": own["strokeDash"]}
    marks = {"y": {"field": "mean", **y}, "color": own["color"], "shape": own["shape"]}
    every = [
        {"window": [{"op": "row_number", "as": "row"}], "groupby": ["series"]},
        {"filter": "datum.row % 6 === 1"},
    ]
    layers = [
        {"mark": {"type": "area", "fillOpacity": 0.18}, "encoding": band},
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": line},
        {
            "transform": every,
            "mark": {"type": "point", "filled": True, "opacity": 1, "size": 45},
            "encoding": marks,
        },
    ]
    x = {"field": "epoch", "type": "quantitative", "title": "epoch"}
    return {"encoding": {"x": x}, "layer": layers[: 2 if is_single else 3]}


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot.

    Args:
        label: label of the comparison.
        value: the mean difference.
        interval: lower and upper bound, None if there is none.
        seeds: the difference of each seed.
        paper: the paper's difference, None without.
    """

    label: str
    value: float
    interval: tuple[float, float] | None
    seeds: Sequence[float] = ()
    paper: float | None = None


def forest(name: str, title: str, axis: str, rows: Sequence[Interval], is_log: bool = False) -> Chart:
    """Differences with their intervals: squares are means, dots seeds, diamonds the paper's differences.

    Args:
        name: name of the chart.
        title: heading.
        axis: label of the x axis.
        rows: rows from top to bottom, with distinct labels.
        is_log: True for a scale that is linear near 0 and logarithmic beyond.
    """
    head = ("row", "low", "mean", "high", "paper", "seed")
    values: list[tuple[object, ...]] = []
    for own in rows:
        low, high = map(rounded, own.interval or (own.value, own.value))
        paper = "" if own.paper is None else rounded(own.paper)
        values.append((own.label, low, rounded(own.value), high, paper, ""))
        values += [(own.label, "", "", "", "", rounded(seed)) for seed in own.seeds]
    scale = {"type": "symlog", "constant": 1} if is_log else {}
    x = {"type": "quantitative", "title": axis, "scale": scale}
    y = {"field": "row", "type": "nominal", "sort": None, "title": None}
    dots = _mark({"type": "point", "size": 18, "filled": True, "opacity": 0.5}, "seed", x, "circle")
    diamonds = _mark({"type": "point", "size": 70, "opacity": 1}, "paper", x, "diamond", "var(--ham)")
    spec = {
        "data": {"values": _csv(head, values), "format": _FOREST},
        "encoding": {"y": y},
        "layer": [
            {"mark": {"type": "rule", "color": "currentColor"}, "encoding": {"x": {"datum": 0}, "y": None}},
            *[dots] * any(own.seeds for own in rows),  # Vega warns of a layer without data
            {
                "transform": [{"filter": "isValid(datum.mean)"}],
                "mark": {"type": "rule", "strokeWidth": 2, "color": "currentColor"},
                "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}},
            },
            _mark({"type": "point", "size": 70, "filled": True, "opacity": 1}, "mean", x, "square"),
            *[diamonds] * any(own.paper is not None for own in rows),
        ],
    }
    texts = [
        (own.label, _signed(own.value), *(map(_signed, own.interval or ())), _signed(own.paper))
        if own.interval
        else (own.label, _signed(own.value), "-", "-", _signed(own.paper))
        for own in rows
    ]
    columns = ("", "difference", "low", "high", "paper")
    if all(own.paper is None for own in rows):
        columns, texts = columns[:4], [text[:4] for text in texts]
    description = f"{axis}: {len(rows)} differences with 95 % intervals; the table below has the numbers."
    return Chart(name, title, description, spec, 70 + 22 * len(rows), columns, texts)


def _mark(
    mark: Mapping[str, Any], field: str, x: Mapping[str, Any], shape: str, color: str = "currentColor"
) -> dict[str, Any]:
    return {
        "transform": [{"filter": f"isValid(datum.{field})"}],
        "mark": {"color": color, "shape": shape, **mark},
        "encoding": {"x": {"field": field, **x}},
    }


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 9) + 0.0:+.2f}"


def _points(points: Curve) -> Iterable[tuple[int, float, float]]:
    return zip(points.epochs, points.means, points.stds, strict=True)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Data of a chart in its shortest form; numbers without a needless `.0`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([f"{v:g}" if isinstance(v, float) else v for v in row] for row in rows)
    return out.getvalue()


_NUMBERS = {"type": "csv", "parse": dict.fromkeys(("epoch", "mean", "low", "high"), "number")}
_FOREST = {"type": "csv", "parse": dict.fromkeys(("low", "mean", "high", "paper", "seed"), "number")}
