"""Charts of one neuron a relu(w z) that learns a w = p (App. E): Figure 4, and its paths in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .charts import Chart
from .sliders import (
    GUIDE,
    HEIGHT,
    METHODS,
    SLIDER,
    Slider,
    as_number,
    as_numbers,
    axis,
    by_method,
    calculate,
    formula_chart,
)

KINDS = {"gd": "GD", "product": "m * w", "ham": "HAM"}
CASES = ((1, 1), (-1, 1), (1, -1), (-1, -1))  # signs of (a, w) at the start
CURVES = {**METHODS, "a w = p": GUIDE}
VISIBLE = 0.01  # distance of two points of a path
NEWTON = 6  # steps, which reach float64's rounding for every value of the sliders


def _m_of_ham(x: str, alpha: str) -> str:
    """HAM's M(x) for x >= 0 (Eq. 10)."""
    return f"if({alpha} > 0, ({alpha} * {x} - log(1 + {alpha} * {x})) / ({alpha} * {alpha}), {x} * {x} / 2)"


def _m_of_product(x: str, gamma: str) -> str:
    """M(x) of m * w (Eq. 10)."""
    return f"sqrt({x} * {x} + {gamma} * {gamma})"


M_OF_A, M_OF_W = _m_of_product("size", "gamma_1"), _m_of_product("size", "gamma_2")
"""M(a) and M(w) of m * w at the start."""

PARAMETERS = (  # M(a) - M(w) at the start: a reaches zero if it is negative (Theorem E.2)
    {
        "name": "balance_ham",
        "expr": f"{_m_of_ham('size', 'alpha_1')} - {_m_of_ham('size', 'alpha_2')}",
    },
    {
        "name": "balance_product",
        "expr": f"{M_OF_A} - gamma_1 - {M_OF_W} + gamma_2",
    },
)


def _where_reached(balance: str, w: str) -> str:
    return f"if(datum.a <= 0, {w}, if({balance} < 0, {w}, NaN))"


def orbit_transform() -> list[dict[str, Any]]:
    """The curves M_1(a) - M_2(w) = M_1(a_0) - M_2(w_0) from (-size, size) to a w = target.

    HAM's M_2(w) = v is solved for y = alpha_2 w, y - ln(1 + y) = alpha_2^2 v, by Newton's method from above.
    """
    excess = f"{_m_of_ham('abs(datum.a)', 'alpha_1')} - balance_ham"
    root = f"{_m_of_product('datum.a', 'gamma_1')} - {M_OF_A} + {M_OF_W}"
    newton = [
        calculate(
            f"max(1e-9, (1 + datum.y{step}) * (log(1 + datum.y{step}) + datum.goal) / datum.y{step} - 1)",
            f"y{step + 1}",
        )
        for step in range(NEWTON)
    ]
    ham = f"if(datum.v < 0, NaN, if(alpha_2 > 0, datum.y{NEWTON} / alpha_2, sqrt(2 * datum.v)))"
    return [  # every field has a name of its own: Vega does not calculate an overwritten one again
        calculate("-size + datum.u * (size + 3)", "a"),
        calculate(_where_reached("0", "abs(datum.a)"), "GD"),
        calculate(excess, "v"),
        calculate("alpha_2 * alpha_2 * datum.v", "goal"),
        calculate("max(1e-9, datum.goal + sqrt(2 * datum.goal))", "y0"),
        *newton,
        calculate(_where_reached("balance_ham", ham), "HAM"),
        calculate(root, "root"),
        calculate(
            _where_reached("balance_product", "sqrt(datum.root * datum.root - gamma_2 * gamma_2)"), "m * w"
        ),
        calculate("if(datum.a > 0, target / datum.a, NaN)", "a w = p"),
    ]


UNTIL_SOLVED = {"filter": "datum.a * datum.value <= target + 1e-9"}


def orbits(data: dict[str, Any]) -> Chart:
    """The path of a neuron from a wrong outer sign, with the settings of Figure 4."""
    settings = data["settings"]
    alpha, gamma = (as_numbers(settings["strengths"][kind]) for kind in ("ham", "product"))
    start = {"x": {"datum": {"expr": "-size"}, "type": "quantitative"},
             "y": {"datum": {"expr": "size"}, "type": "quantitative"}}  # fmt: skip
    dot = {"type": "point", "filled": True, "size": 70, "opacity": 1, "color": "var(--text)"}
    return formula_chart(
        "orbits",
        "Paths from the wrong sign of a, at (-size, size)",
        "The paths of (a, w) under GD, m * w and HAM from a negative a. GD ends at zero; with alpha_1 > "
        "alpha_2, HAM passes a = 0 and ends on the curve of solutions.",
        sliders=[
            Slider("alpha_1", "alpha of a (HAM)", 0, 10, 0.1, alpha[0]),
            Slider("alpha_2", "alpha of w (HAM)", 0, 10, 0.1, alpha[1]),
            Slider("gamma_1", "gamma of a (m * w)", 0, 2, 0.05, gamma[0]),
            Slider("gamma_2", "gamma of w (m * w)", 0, 2, 0.05, gamma[1]),
            Slider("size", "size", 0.1, 0.9, 0.05, 0.5),
        ],
        parameters=[{"name": "target", "value": as_number(settings["target"])}, *PARAMETERS],
        sequence=("u", 0, 1.001, 0.0025),
        transform=orbit_transform(),
        after=[UNTIL_SOLVED],
        methods=CURVES,
        x=axis("a", "a (outer weight)", (-1, 2)),
        y=axis("value", "w (inner weight)", (0, 2)),
        layers=[{"data": {"values": [{}]}, "mark": dot, "encoding": start}],
        head=(),
        rows=(),
    )


def _coordinates(points: Any) -> tuple[list[float], list[float]]:
    """The coordinates (a, w) of a path, rounded, without points that cannot be distinguished.

    Raises:
        ValueError: it has fewer than two points, or a point does not have two numbers.
    """
    path = [tuple(as_numbers(point)) for point in points]
    if len(path) < 2 or any(len(point) != 2 for point in path):
        raise ValueError("a path has not two coordinates at each of its points")
    kept = [path[0]]
    for point in path[1:-1]:
        if math.dist(point, kept[-1]) > VISIBLE:
            kept.append(point)
    kept.append(path[-1])
    return [round(a, 3) for a, _ in kept], [round(w, 3) for _, w in kept]


def quadrants(data: dict[str, Any]) -> Chart:
    """Figure 4: simulated paths from all sign cases, one data set at a time."""
    values = [row for kind, method in KINDS.items() for row in _paths(data["paths"][kind], method)]
    seeds = sorted({row["seed"] for row in values})
    slider = Slider("seed", "data set", seeds[0], seeds[-1], 1, seeds[0])
    spec = {
        "height": HEIGHT,
        "params": [slider.parameter],
        "data": {"values": values},
        "transform": [
            {"filter": "datum.seed == seed"},
            calculate("length(datum.a) - 1", "last"),
            calculate("sequence(datum.last + 1)", "t"),
            {"flatten": ["a", "w", "t"]},
        ],
        "encoding": {
            "x": axis("a", "a (outer weight)", (-1.3, 1.7)),
            "y": axis("w", "w (inner weight)", (-1.3, 1.7)),
        },
        "layer": _quadrant_layers(),
    }
    return Chart(
        "quadrants",
        "Simulated paths from the four cases of signs",
        "Paths of (a, w) of simulated data sets, one at a time. GD learns from one case of signs, m * w and "
        "HAM from the two with w > 0.",
        spec,
        HEIGHT + SLIDER,
        ("signs at the start", *(f"{method} learns" for method in METHODS)),
        [(_signs(case), *(_learned_share(values, method, case) for method in METHODS)) for case in CASES],
    )


def _paths(paths: Any, method: str) -> Iterator[dict[str, Any]]:
    """The rows of a method's paths. Raises ValueError if one is odd."""
    for path in paths:
        if tuple(path["case"]) not in CASES or type(path["seed"]) is not int:
            raise ValueError("a path has no case of signs or no seed")
        a, w = _coordinates(path["a_w"])
        end = "learns" if path["learned"] is True else "fails"
        case = CASES.index(tuple(path["case"]))
        yield {"seed": path["seed"], "method": method, "case": case, "end": end, "a": a, "w": w}


def _signs(case: tuple[int, int]) -> str:
    return ", ".join(f"{name} {'>' if sign > 0 else '<'} 0" for name, sign in zip("aw", case, strict=True))


def _learned_share(values: Sequence[Mapping[str, Any]], method: str, case: tuple[int, int]) -> str:
    ends = [row["end"] for row in values if (row["method"], row["case"]) == (method, CASES.index(case))]
    return f"{ends.count('learns')} of {len(ends)}"


def _quadrant_layers() -> list[dict[str, Any]]:
    """The paths, their starts and their ends."""
    looks = by_method(METHODS)
    ends = {"domain": ["learns", "fails"], "range": ["circle", "cross"]}
    legend = {"symbolStrokeWidth": 2, "symbolStrokeColor": "var(--text)", "symbolFillColor": "transparent"}
    shape = {"field": "end", "type": "nominal", "scale": ends, "title": None, "legend": legend}
    point = {"type": "point", "opacity": 1, "clip": True}
    return [
        {
            "mark": {"type": "line", "clip": True},
            "encoding": {**looks, "order": {"field": "t"}, "detail": {"field": "case"}},
        },
        {
            "transform": [{"filter": "datum.t == 0"}],
            "mark": {**point, "filled": True, "size": 30, "color": "var(--text)"},
        },
        {
            "transform": [{"filter": "datum.t == datum.last"}],
            "mark": {**point, "size": 60, "strokeWidth": 2},
            "encoding": {"color": looks["color"], "shape": shape},
        },
    ]
