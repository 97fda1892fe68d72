"""Tables 1 and 2: what the paper states about the methods in words and formulas."""

from __future__ import annotations

from collections.abc import Callable

from .hyperparameters import Sheet

PROPERTIES = ("implicit_sparsity_bias", "sign_flips", "no_hard_perturbations", "no_extra_parameters")
METHODS = {  # rows of Table 1; "-": the paper makes no claim
    "Dense training": ("no", "-", "yes", "yes"),
    "PILoT": ("yes", "no", "yes", "no"),
    "Sign-In": ("yes (less strong)", "yes", "no", "no"),
    "HAM": ("yes (less strong)", "yes", "yes", "yes"),
}
INVERSE_METRICS = {"GD": "1", "m * w": "sqrt(theta^2 + gamma^2)", "HAM": "1 + alpha |theta|"}
_LATEX = {
    "sqrt(theta^2 + gamma^2)": r"\sqrt{\theta^2 + \gamma^2}",
    "1 + alpha |theta|": r"1 + \alpha |\theta|",
    "g^-1(theta)": r"g^{-1}(\theta)",
}


def properties() -> Sheet:
    """Table 1."""
    rows = tuple(
        {"method": method, **dict(zip(PROPERTIES, cells, strict=True))} for method, cells in METHODS.items()
    )
    caption = (
        "What the paper states of dense training, of two methods that train every weight as a product m * w "
        "(PILoT, Sign-In), and of HAM: whether training is biased towards sparse solutions, whether weights "
        "change their sign more easily, and whether it does without resets that change the parameters at "
        "once and without further parameters. -: the paper makes no claim."
    )
    note = (
        "tests/ham/report/test_qualitative.py shows each claim on a small example that it can: parameters by "
        "counting, resets by running one, sign flips and the bias by simulated flows."
    )
    return Sheet("table01", "Table 1. Properties of the methods", note, rows, caption)


def inverse_metrics() -> Sheet:
    """Table 2."""
    rows = ({"method": "g^-1(theta)", **INVERSE_METRICS},)
    caption = (
        "The inverse metric of the Riemannian gradient flow of a weight theta under gradient descent (GD), "
        "under the product parameterization theta = m * w with balance gamma, and under HAM of strength "
        "alpha. The larger it is at theta = 0, the faster a weight changes its sign."
    )
    note = (
        "The function ham.theory.inverse_metric computes these in the paper's scale: gradient flow on the "
        "factors has twice the metric of m * w, with gamma half the difference of their squares."
    )
    title = "Table 2. Inverse metrics of gradient descent, m * w and HAM"
    return Sheet("table02", title, note, rows, caption, _LATEX)


SHEETS: dict[str, Callable[[], Sheet]] = {"table01": properties, "table02": inverse_metrics}
