"""Parts of charts whose parameters are sliders, which Vega-Lite evaluates in the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ham.report.schema import is_number

from .charts import Chart, color, dash

HEIGHT, SLIDER = 280, 40  # pixels of a drawing and of a slider
METHODS = {"GD": "base", "m * w": "product", "HAM": "ham"}
STEPS = {"HYP": "ham_signed", "HYP*": "ham"}
GUIDE = {"color": "var(--muted)", "dash": [1, 3]}  # what is no method


@dataclass(frozen=True)
class Slider:
    """A parameter of a chart.

    Args:
        name: name in expressions.
        label: label before the value.
        low: the smallest value.
        high: the largest value.
        step: between its values.
        value: initial value.

    Raises:
        ValueError: the value is not a number from `low` to `high`.
    """

    name: str
    label: str
    low: float
    high: float
    step: float
    value: float

    def __post_init__(self) -> None:
        """Raise ValueError on a value that the slider cannot have."""
        if not is_number(self.value) or not self.low <= self.value <= self.high:
            raise ValueError(f"{self.label} is not from {self.low:g} to {self.high:g}")

    @property
    def parameter(self) -> dict[str, Any]:
        """Of a Vega-Lite specification."""
        bind = {"input": "range", "min": self.low, "max": self.high, "step": self.step, "name": self.label}
        return {"name": self.name, "value": self.value, "bind": bind}


def as_numbers(values: Sequence[Any]) -> list[float]:
    """The values. Raises ValueError unless all are numbers."""
    if not isinstance(values, list) or not all(map(is_number, values)):
        raise ValueError("a list has something that is not a number")
    return values


def as_number(value: Any) -> float:
    """The value. Raises ValueError unless it is a number."""
    return as_numbers([value]).pop()


def calculate(expression: str, name: str) -> dict[str, str]:
    """A transform: the field of each row by an expression."""
    return {"calculate": expression, "as": name}


def by_method(methods: Mapping[str, str | Mapping[str, Any]]) -> dict[str, Any]:
    """Color and line style of the field `method` by its look: a name of a method, or GUIDE."""
    colors = [color(look) if isinstance(look, str) else look["color"] for look in methods.values()]
    dashes = [dash(look) if isinstance(look, str) else look["dash"] for look in methods.values()]
    legend = {"symbolType": "stroke", "symbolStrokeWidth": 2}
    field = {"field": "method", "type": "nominal", "title": None, "legend": legend}
    domain = list(methods)
    return {
        "color": {**field, "scale": {"domain": domain, "range": colors}},
        "strokeDash": {**field, "scale": {"domain": domain, "range": dashes}},
    }


def axis(field: str, title: str, domain: tuple[float, float]) -> dict[str, Any]:
    """A channel of numbers on a fixed domain."""
    scale = {"domain": list(domain), "nice": False}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": {"tickCount": 5}}


def formula_chart(
    name: str,
    title: str,
    description: str,
    *,
    sliders: Sequence[Slider],
    sequence: tuple[str, float, float, float],
    transform: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]] = (),
    methods: Mapping[str, str | Mapping[str, Any]],
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    parameters: Sequence[Mapping[str, Any]] = (),
    encoding: Mapping[str, Any] | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    subtitle: str = "",
) -> Chart:
    """A chart of lines over a sequence: each method is a field that `transform` calculates.

    Args:
        name: name of the chart.
        title: heading.
        description: text for readers who do not see the chart.
        sliders: parameters of the chart.
        sequence: field, first value, end and step of the data.
        transform: calculates the fields that `methods` names.
        after: transforms of the rows of `method` and `value`.
        methods: field -> name of a method, or a look.
        x: the channel.
        y: the channel, of the field `value`.
        head: names of the columns of `rows`.
        rows: numbers of the chart at the start.
        parameters: further ones, which follow from the sliders.
        encoding: further channels of the lines.
        layers: drawn below the lines.
        subtitle: expression of a text above the drawing.
    """
    field, start, stop, step = sequence
    lines = {
        "data": {"sequence": {"start": start, "stop": stop, "step": step, "as": field}},
        "transform": [*transform, {"fold": list(methods), "as": ["method", "value"]},
                      {"filter": "isFinite(datum.value)"}, *after],
        "mark": {"type": "line", "strokeWidth": 2, "clip": True},
        "encoding": {"x": x, "y": y, **by_method(methods), **(encoding or {})},
    }  # fmt: skip
    spec = {
        "height": HEIGHT,
        "params": [*(slider.parameter for slider in sliders), *parameters],
        "layer": [*layers, lines],
        **({"title": {"text": {"expr": subtitle}}} if subtitle else {}),
    }
    return Chart(name, title, description, spec, HEIGHT + SLIDER * len(sliders), head, rows)


def format_number(value: Any) -> str:
    """A number of a table."""
    return f"{value:.4g}"


def evenly_spaced(values: Sequence[Any], count: int = 9) -> list[int]:
    """Evenly spaced positions of a list, with the first and the last."""
    count = min(count, len(values))
    return [round(place * (len(values) - 1) / (count - 1)) for place in range(count)] if count > 1 else [0]


def columns(x: Sequence[float], *ys: Sequence[float]) -> list[list[str]]:
    """Rows of a table of some points of curves. Raises ValueError unless all have numbers, equally many."""
    if len({len(values) for values in (x, *ys)}) != 1 or not x:
        raise ValueError("its lists have different lengths")
    every = [as_numbers(values) for values in (x, *ys)]
    return [[format_number(values[place]) for values in every] for place in evenly_spaced(x)]


def horizontal_line(y: float) -> dict[str, Any]:
    """A horizontal guide."""
    mark = {"type": "rule", "color": GUIDE["color"], "strokeDash": GUIDE["dash"]}
    return {"data": {"values": [{}]}, "mark": mark, "encoding": {"y": {"datum": y, "type": "quantitative"}}}


def sign_of(expression: str) -> str:
    """The sign of an expression, which Vega has no function for."""
    return f"if({expression} > 0, 1, if({expression} < 0, -1, 0))"
