"""Charts of sparse linear regression (App. G.1), simulated: Figures 6, 7 and 8."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from .charts import Chart, color, dash, rounded
from .sliders import HEIGHT, SLIDER, Slider, as_number, as_numbers, by_method, calculate, format_number

LABELS = {  # method in results/theory -> label and look
    "gd": ("GD", "base"),
    "ham": ("HAM", "ham"),
    "ham_signed": ("HAM signed", "ham_signed"),
    "hyperbolic": ("hyperbolic step alone", "hyperbolic"),
}
FLATTEN = {"flatten": ["step", "low", "median", "high"]}


def distances(name: str, title: str, description: str, data: dict[str, Any]) -> Chart:
    """Figures 6 and 7: distance to the truth over the steps, median and range over the seeds."""
    looks = dict(LABELS[series["method"]] for series in data["series"])
    rows = _bands(data, [LABELS[series["method"]][0] for series in data["series"]])
    y = {"type": "quantitative", "title": "distance to the truth"}
    methods = by_method(looks)
    band = {"y": {"field": "low", **y}, "y2": {"field": "high"}, "color": methods["color"]}
    spec = {
        "height": HEIGHT,
        "data": {"values": rows},
        "transform": [FLATTEN],
        "encoding": {"x": _log_axis("step", "step", rows[0]["step"])},
        "layer": [
            {"mark": {"type": "area", "opacity": 0.18}, "encoding": band},
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"y": {"field": "median", **y}, **methods},
            },
        ],
    }
    return Chart(name, title, description, spec, HEIGHT, *_table(rows))


def strengths(data: dict[str, Any]) -> Chart:
    """Figure 8: HAM with more alpha and a smaller learning rate; a slider chooses the setting in front."""
    series = data["series"]
    exponents = [round(math.log10(alpha)) for alpha in as_numbers([own["alpha"] for own in series])]
    labels = [
        f"alpha = 1e{exponent}, lr = {as_number(own['lr']):g}"
        for exponent, own in zip(exponents, series, strict=True)
    ]
    rows = [
        {**row, "exponent": exponent} for row, exponent in zip(_bands(data, labels), exponents, strict=True)
    ]
    slider = Slider("exponent", "log10 of alpha", min(exponents), max(exponents), 1, max(exponents))
    dashes = [dash(look) for look in ("base", "ham", "sign_in", "beta_only")][: len(labels)]
    y = _log_axis(
        "median",
        "distance to the truth",
        [value for row in rows for end in ("low", "high") for value in row[end]],
    )
    y["axis"]["format"] = "~r"
    band = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    legend = {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolStrokeColor": "var(--text)"}
    scale = {"domain": labels, "range": dashes}
    line = {
        "y": y,
        "strokeDash": {"field": "method", "title": None, "scale": scale, "legend": legend},
        "strokeWidth": {"condition": {"test": "datum.front", "value": 3}, "value": 1.2},
        "color": {"condition": {"test": "datum.front", "value": color("ham")}, "value": "var(--muted)"},
    }
    spec = {
        "height": HEIGHT,
        "params": [slider.parameter],
        "data": {"values": rows},
        "transform": [calculate("datum.exponent == exponent", "front"), FLATTEN],
        "encoding": {"x": _log_axis("step", "step", rows[0]["step"])},
        "layer": [
            {
                "transform": [{"filter": "datum.front"}],
                "mark": {"type": "area", "opacity": 0.18, "color": color("ham")},
                "encoding": band,
            },
            {"mark": {"type": "line"}, "encoding": line},
        ],
    }
    return Chart(
        "strengths",
        "HAM with more alpha and a smaller learning rate lr",
        "Distance to the truth over the steps for HAM with four values of alpha. More alpha ends nearer to "
        "the truth, after more steps.",
        spec,
        HEIGHT + SLIDER,
        *_table(rows),
    )


def _log_axis(field: str, title: str, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic channel with a tick at each power of ten that the values reach."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ticks = [float(f"1e{exponent}") for exponent in range(low, high + 1)]
    scale = {"type": "log", "domain": [ticks[0], ticks[-1]]}
    shown = {"values": ticks, "format": "~s"}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": shown}


def _bands(data: dict[str, Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """A row per series: the steps after the start, and at each the median and range over the seeds."""
    rows = []
    for label, series in zip(labels, data["series"], strict=True):
        steps, *seeds = [as_numbers(own)[1:] for own in (data["steps"], *series["distances"])]
        if len({*map(len, (steps, *seeds))}) != 1 or not all(own and min(own) > 0 for own in (steps, *seeds)):
            raise ValueError("it lacks steps, or a step or distance is not above 0")
        over = list(zip(*seeds, strict=True))
        ranges = {"low": map(min, over), "median": map(statistics.median, over), "high": map(max, over)}
        rows.append(
            {
                "method": label,
                "step": steps,
                **{name: list(map(rounded, own)) for name, own in ranges.items()},
            }
        )
    return rows


def _table(rows: Sequence[dict[str, Any]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Head and rows: the medians at the first recorded step of each power of ten, and at the last step."""
    steps = rows[0]["step"]
    firsts = {math.floor(math.log10(step)): place for place, step in reversed(list(enumerate(steps)))}
    shown = sorted({*firsts.values(), len(steps) - 1})
    head = ("step", *(f"{row['method']}, median" for row in rows))
    return head, [(f"{steps[at]:,}", *(format_number(row["median"][at]) for row in rows)) for at in shown]
