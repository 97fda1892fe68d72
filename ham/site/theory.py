"""The page of the theory: its figures, with the parameters as sliders where a closed form exists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ham.report.odd_files import InvalidRecord
from ham.report.theory_data import DATA, show

from . import formulas, neuron, pages, regression
from .charts import Chart

PAGE = "theory.html"


@dataclass(frozen=True)
class Section:
    """A chart and what to see in it.

    Args:
        heading: heading of the section.
        look_for: one sentence that says what a reader should look for.
        source: equations and figure of the paper.
        functions: functions of ham.theory, which compute the formulas.
        figure: figure whose data the chart needs.
        make: the chart of these data.
        lines: the formulas, as text.
        terms: meanings of the symbols.
    """

    heading: str
    look_for: str
    source: str
    functions: tuple[str, ...]
    figure: str
    make: Callable[[dict[str, Any]], Chart]
    lines: tuple[str, ...] = ()
    terms: str = ""


def _from_zero(data: dict[str, Any]) -> Chart:
    return regression.distances(
        "from-zero",
        "Distance to a sparse truth, from zero",
        "Distance to the truth over the steps, from zero, for GD, HAM and HAM signed. HAM ends nearer to it.",
        data,
    )


def _from_wrong_signs(data: dict[str, Any]) -> Chart:
    return regression.distances(
        "from-wrong-signs",
        "Distance to a sparse truth, from the wrong signs",
        "Distance to the truth over the steps, from -0.0001, for HAM, GD and the hyperbolic step alone.",
        data,
    )


SECTIONS = (
    Section(
        "Inverse metric",
        "Move gamma towards 0: the inverse metric of m * w vanishes at theta = 0, while that of HAM is never "
        "below that of gradient descent (GD).",
        "Table 2 and Figure 1 of the paper",
        ("inverse_metric",),
        "figure01",
        formulas.inverse_metrics,
        ("GD: 1", "m * w: sqrt(theta^2 + gamma^2)", "HAM: 1 + alpha |theta|"),
        "theta is one weight. The inverse metric g^-1(theta) is the factor by which a method multiplies the "
        "gradient step of this weight. m * w trains two factors in place of theta. Its gamma is "
        "(m^2 - w^2) / 2, and a constant factor of 2 is left out.",
    ),
    Section(
        "Flow through zero",
        "With a small gamma, m * w slows down where theta changes its sign; HAM does not, and passes zero "
        "earlier with more alpha.",
        "Equations 4 and 9 and Figure 1 of the paper, without weight decay, for the loss (theta - 1)^2 / 2",
        ("riemannian_flow",),
        "figure01",
        formulas.flows,
        ("d theta = -g^-1(theta) (theta - 1) dt",),
        "The flow is training with infinitely small steps; t is the sum of the learning rates.",
    ),
    Section(
        "HAM's Bregman function",
        "With more alpha the curve moves from theta^2, which favors small weights, towards abs(theta), which "
        "favors sparse weights, and slowly: alpha has to be large.",
        "Lemma 4.4, Theorem 4.6, Remark 4.7 and Figure 2b of the paper",
        ("bregman",),
        "figure02b",
        formulas.bregman,
        ("R_alpha(theta) = ((1 + x) ln(1 + x) - x) / alpha^2 with x = alpha |theta|",),
        "In linear regression with more weights than data, training with small steps from zero ends at the "
        "solution with the smallest sum of R_alpha over the weights (the implicit bias). The curve is "
        "divided by its value at 1.",
    ),
    Section(
        "The sign before and after the gradient step",
        "In the gray band the gradient step changes the sign: there HYP* moves the weight further away from "
        "zero, and HYP pulls it back.",
        "Sections 3 and 3.1 and Figure 3 of the paper",
        ("ham_step", "hyperbolic_step"),
        "figure03",
        formulas.one_step,
        (
            "theta_k+1/2 = theta_k - lr gradient",
            "HYP: theta_k+1 = theta_k+1/2 exp(-lr alpha sign(theta_k) gradient)",
            "HYP*: theta_k+1 = theta_k+1/2 exp(-lr alpha sign(theta_k+1/2) gradient), as in HAM",
        ),
        "theta_k is the weight before step k, theta_k+1/2 the weight after the base optimizer's step, here "
        "gradient descent, and theta_k+1 the weight after HAM's.",
    ),
    Section(
        "A path through zero",
        "At the start of the sliders HYP* arrives at the optimum first, and with a smaller learning rate the "
        "two come closer; with a large rate and alpha both jump over the optimum, and either can be first.",
        "Section 3.1, Theorem B.6 and Figure 3 of the paper, for the loss (theta - optimum)^2 / 2",
        ("ham_step",),
        "figure03",
        formulas.path,
    ),
    Section(
        "One neuron in closed form",
        "With alpha of a above alpha of w, HAM's path passes a = 0 and ends at a solution; make them equal, "
        "and it ends at zero, as that of GD always does.",
        "Equations 10 and 12, Lemma E.1 and Theorem E.2 of the paper: the flow keeps M(a) - M(w)",
        ("balance", "on_manifold_regularizer", "neuron_flow"),
        "figure04",
        neuron.orbits,
        (
            "GD: M(x) = x^2 / 2",
            "m * w: M(x) = sqrt(x^2 + gamma^2)",
            "HAM: M(x) = (alpha |x| - ln(1 + alpha |x|)) / alpha^2",
        ),
        "The neuron a relu(w z) has an inner weight w and an outer weight a, and learns a w = p from inputs "
        "z. With infinitely small steps M(a) - M(w) does not change, where a and w have an alpha or gamma of "
        "their own. All paths start at a = -size, w = size.",
    ),
    Section(
        "One neuron, simulated",
        "From w > 0 and a < 0 (top left), HAM and m * w reach a solution and GD does not; from w < 0 no "
        "method does.",
        "Figure 4 of the paper, drawn again with HAM",
        ("neuron_flow", "learned_cases"),
        "figure04",
        neuron.quadrants,
    ),
    Section(
        "Sparse regression from zero",
        "HAM ends near the sparse truth and GD far from it; taking the sign before the step (HAM signed) "
        "hardly changes the end.",
        "Theorem 4.5, Appendix G.1 and Figure 6 of the paper",
        ("simulate_linear_regression", "implicit_solution"),
        "figure06",
        _from_zero,
    ),
    Section(
        "Sparse regression from the wrong signs",
        "The hyperbolic step alone changes no sign and moves away from the truth; HAM needs both steps.",
        "Appendix G.1 and Figure 7 of the paper",
        ("simulate_linear_regression",),
        "figure07",
        _from_wrong_signs,
    ),
    Section(
        "More alpha",
        "Choose an alpha: a larger one, with the same product of alpha and learning rate, ends nearer to the "
        "truth after more steps.",
        "Appendix G.1 and Figure 8 of the paper",
        ("simulate_linear_regression",),
        "figure08",
        regression.strengths,
    ),
)


def page(data: Path = DATA) -> tuple[str, list[str]]:
    """The page as HTML, and a line for each figure whose data are invalid or missing; it has no charts.

    Args:
        data: folder of the files that scripts/theory_runs.py writes; without it the page has no charts.
    """
    shown, problems = [], {}
    for section in SECTIONS if data.is_dir() else ():
        source = data / f"{section.figure}.json"
        try:
            shown.append((section, show(source, section.make)))
        except InvalidRecord as error:
            problems.setdefault(source, str(error))
    text = pages.render("theory.html", page=PAGE, title="Theory", sections=shown)
    return text, list(problems.values())
