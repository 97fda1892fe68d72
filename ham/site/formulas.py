"""Charts of the theory's closed forms: Figures 1, 2b and 3.

The formulas are those of `ham.theory`, written as Vega expressions, which are constants of this module; tests
evaluate them and compare. What stands in results/theory are numbers: the settings of a figure are where its
sliders start, and its data are in the table below the chart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .charts import Chart
from .sliders import (
    GUIDE,
    METHODS,
    STEPS,
    Slider,
    as_number,
    as_numbers,
    axis,
    calculate,
    columns,
    formula_chart,
    horizontal_line,
    sign_of,
)

INVERSE_METRICS = {  # Table 2
    "GD": "1",
    "m * w": "sqrt(datum.theta * datum.theta + gamma * gamma)",
    "HAM": "1 + alpha * abs(datum.theta)",
}


def inverse_metrics(data: dict[str, Any]) -> Chart:
    """Figure 1, left."""
    strengths = data["settings"]["strengths"]
    return formula_chart(
        "inverse-metric",
        "Inverse metric of a weight",
        "The inverse metric over the weight theta, of GD, m * w and HAM. That of m * w is gamma at zero.",
        sliders=_strengths(strengths),
        sequence=("theta", -1.5, 1.505, 0.01),
        transform=[calculate(expression, method) for method, expression in INVERSE_METRICS.items()],
        methods=METHODS,
        x=axis("theta", "theta", (-1.5, 1.5)),
        y=axis("value", "inverse metric", (0, 4)),
        head=("theta", *METHODS),
        rows=columns(data["theta"], *(data["inverse_metric"][kind] for kind in ("gd", "product", "ham"))),
    )


def _strengths(strengths: Mapping[str, Mapping[str, float]]) -> list[Slider]:
    return [
        Slider("alpha", "alpha of HAM", 0, 5, 0.1, strengths["ham"]["alpha"]),
        Slider("gamma", "gamma of m * w", 0, 1, 0.01, strengths["product"]["gamma"]),
    ]


CROSSING = "if(abs(alpha - 1) < 1e-9, 0.5, log((1 + alpha) / 2) / (alpha - 1))"
"""When HAM's flow from -1 to 1 passes zero."""

FLOWS = (  # d theta = -g^-1(theta) (theta - 1) dt from -1, solved by separation of variables
    calculate("1 - 2 * exp(-datum.t)", "GD"),
    calculate("exp(sqrt(1 + gamma * gamma) * datum.t)", "growth"),
    calculate(
        "1 - (1 + gamma * gamma) / (1 + (gamma * gamma * datum.growth - 1 / datum.growth) / 2)", "m * w"
    ),
    calculate("if(abs(alpha - 1) < 1e-9, datum.t, (exp((alpha - 1) * datum.t) - 1) / (alpha - 1))", "before"),
    calculate("exp((1 + alpha) * (datum.t - crossing))", "after"),
    calculate(
        "if(datum.t < crossing, (2 * datum.before - 1) / (1 + 2 * alpha * datum.before), "
        "(datum.after - 1) / (datum.after + alpha))",
        "HAM",
    ),
)


def flows(data: dict[str, Any]) -> Chart:
    """Figure 1, right."""
    settings = data["settings"]
    if (settings["start"], settings["optimum"], settings["loss"]) != (-1, 1, "(theta - 1)^2 / 2"):
        raise ValueError("its flow is not from -1 to the minimum of (theta - 1)^2 / 2")
    return formula_chart(
        "flow",
        "Flow of a weight from -1 to the minimum at 1",
        "The weight theta over time under the flows of GD, m * w and HAM. m * w slows down at zero.",
        sliders=_strengths(settings["strengths"]),
        parameters=[{"name": "crossing", "expr": CROSSING}],
        sequence=("t", 0, 6.01, 0.025),
        transform=FLOWS,
        methods=METHODS,
        x=axis("t", "time t", (0, 6)),
        y=axis("value", "theta", (-1, 1.1)),
        head=("time t", *METHODS),
        rows=columns(data["time"], *(data["flow"][kind] for kind in ("gd", "product", "ham"))),
        layers=[horizontal_line(0), horizontal_line(1)],
    )


NORMS = {"theta^2 (L2)": {"color": "var(--base)", "dash": [1, 0]}, "HAM": "ham", "abs(theta) (L1)": GUIDE}
BREGMAN = (  # Lemma 4.4 from 0, divided by its value at 1
    calculate("datum.theta * datum.theta", "theta^2 (L2)"),
    calculate("abs(datum.theta)", "abs(theta) (L1)"),
    calculate("alpha * abs(datum.theta)", "x"),
    calculate("((1 + datum.x) * log(1 + datum.x) - datum.x) / scale", "HAM"),
)


def bregman(data: dict[str, Any]) -> Chart:
    """Figure 2b."""
    alphas = as_numbers(data["settings"]["alphas"])
    return formula_chart(
        "bregman",
        "HAM's Bregman function R_alpha(theta) / R_alpha(1)",
        "HAM's normalized Bregman function over theta lies between theta^2 and abs(theta).",
        sliders=[Slider("exponent", "log10 of alpha", -1, 8, 0.1, 2)],
        parameters=[
            {"name": "alpha", "expr": "pow(10, exponent)"},
            {"name": "scale", "expr": "(1 + alpha) * log(1 + alpha) - alpha"},
        ],
        sequence=("theta", -1, 1.005, 0.01),
        transform=BREGMAN,
        methods=NORMS,
        x=axis("theta", "theta", (-1, 1)),
        y=axis("value", "R(theta) / R(1)", (0, 1)),
        head=("theta", *("theta^2" if alpha == 0 else f"HAM, alpha = {alpha:g}" for alpha in alphas)),
        rows=columns(data["theta"], *data["normalised"]),
        subtitle="'alpha = ' + format(alpha, '.3~r')",
    )


MAP = (  # one step of GD, then of HYP (sign of theta_k) or HYP* (sign of theta_k+1/2)
    calculate("datum.theta - lr * gradient", "half"),
    calculate(f"datum.half * exp(-lr * alpha * {sign_of('datum.theta')} * gradient)", "HYP"),
    calculate(f"datum.half * exp(-lr * alpha * {sign_of('datum.half')} * gradient)", "HYP*"),
    calculate("datum.theta", "no step"),
    calculate(sign_of("datum.theta"), "side"),
)


def one_step(data: dict[str, Any]) -> Chart:
    """Figure 3, left."""
    at = data["settings"]["map"]
    edges = {"x": {"datum": 0, "type": "quantitative"}, "x2": {"datum": {"expr": "lr * gradient"}}}
    flipped = {"type": "rect", "color": "var(--muted)", "opacity": 0.15, "clip": True}
    return formula_chart(
        "one-step",
        "One step: the weight after it over the weight before it",
        "The weight after one step over the weight before it, for HYP and HYP*. They differ between 0 and "
        "lr * gradient, where the gradient step changes the sign.",
        sliders=[
            Slider("lr", "learning rate lr", 0.01, 0.2, 0.01, at["lr"]),
            Slider("alpha", "alpha", 0, 40, 1, at["alpha"]),
            Slider("gradient", "gradient", -1, 1, 0.1, at["gradient"]),
        ],
        sequence=("theta", -0.25, 0.2505, 0.001),
        transform=MAP,
        methods={**STEPS, "no step": GUIDE},
        x=axis("theta", "weight before", (-0.25, 0.25)),
        y=axis("value", "weight after", (-0.5, 0.5)),
        encoding={"detail": {"field": "side"}},  # HYP jumps at zero
        layers=[{"data": {"values": [{}]}, "mark": flipped, "encoding": edges}],
        head=("weight before", *STEPS),
        rows=columns(data["theta"], data["next"]["hyp"], data["next"]["hyp_star"]),
    )


def path_transform(steps: int) -> list[dict[str, Any]]:
    """Steps of HAM with HYP and HYP* from `start` under the gradient theta - optimum, one after the other.

    Every field has a name of its own: Vega does not calculate an overwritten field again from the start.
    """
    transform = [calculate("start", f"{method} 0") for method in STEPS]
    for step in range(steps):
        for method, is_signed in (("HYP", True), ("HYP*", False)):
            weight, half = f"datum['{method} {step}']", f"datum['{method} half {step}']"
            sign = sign_of(weight if is_signed else half)
            transform += [
                calculate(f"{weight} - lr * ({weight} - optimum)", f"{method} half {step}"),
                calculate(
                    f"{half} * exp(-lr * alpha * {sign} * ({weight} - optimum))", f"{method} {step + 1}"
                ),
            ]
    places = range(steps + 1)
    every = {name: ", ".join(f"datum['{name} {step}']" for step in places) for name in STEPS}
    transform += [calculate(f"[{values}]", name) for name, values in every.items()]
    return [*transform, calculate(f"sequence({steps + 1})", "step"), {"flatten": ["step", *STEPS]}]


def path(data: dict[str, Any]) -> Chart:
    """Figure 3, right."""
    at = data["settings"]["path"]
    optimum = as_number(at["optimum"])
    steps = len(data["path"]["hyp"]) - 1
    if not 1 <= steps <= 50:
        raise ValueError(f"its path has {steps} steps, not 1 to 50")
    return formula_chart(
        "path",
        f"Steps through zero to the optimum {optimum:g}",
        "The weight over the steps for HYP and HYP*, from a positive start to a negative optimum. HYP* "
        "arrives first.",
        sliders=[
            Slider("lr", "learning rate lr", 0.01, 0.1, 0.005, at["lr"]),
            Slider("alpha", "alpha", 0, 40, 1, at["alpha"]),
            Slider("start", "start", 0.1, 1, 0.05, at["start"]),
        ],
        parameters=[{"name": "optimum", "value": optimum}],
        sequence=("row", 0, 1, 1),
        transform=path_transform(steps),
        methods=STEPS,
        x=axis("step", "step", (0, steps)),
        y=axis("value", "weight", (min(-1.2, 1.2 * optimum), 1)),
        head=("step", *STEPS),
        rows=columns(list(range(steps + 1)), data["path"]["hyp"], data["path"]["hyp_star"]),
        layers=[horizontal_line(0), horizontal_line(optimum)],
    )
