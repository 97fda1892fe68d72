"""Tables 1 and 2 are the paper's, and their claims hold where a small example can show them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ham import HAM, theory
from ham.report.qualitative import INVERSE_METRICS, METHODS, PROPERTIES, SHEETS
from pruning import PILoT
from pruning.parameterization import Product

KINDS = {"GD": "gd", "m * w": "product", "HAM": "ham"}


def column(name: str) -> dict[str, str]:
    return {method: cells[PROPERTIES.index(name)] for method, cells in METHODS.items()}


def test_tables_1_and_2_are_the_papers(paper: dict[str, Any]) -> None:
    words = {True: "yes", False: "no", None: "-", "less strong": "yes (less strong)"}
    names = {"dense": "Dense training", "pilot": "PILoT", "sign_in": "Sign-In", "ham": "HAM"}
    assert {names[key]: tuple(map(words.get, cells)) for key, cells in paper["table1"].items()} == METHODS
    ours = {
        label.lower().replace(" ", ""): formula.replace("alpha |", "alpha*|")
        for label, formula in INVERSE_METRICS.items()
    }
    assert paper["table2"] == ours
    assert [row["method"] for row in SHEETS["table01"]().rows] == list(METHODS)


@pytest.mark.parametrize("label", INVERSE_METRICS)
def test_table_2_is_what_the_theory_computes(label: str) -> None:
    """The printed formula, evaluated, equals ham.theory.inverse_metric for random weights and strengths."""
    python = INVERSE_METRICS[label].replace("^", "**").replace("alpha |theta|", "alpha * abs(theta)")
    rng = np.random.default_rng(0)
    theta = np.concatenate([[0.0], rng.standard_normal(50)])
    for alpha, gamma in rng.uniform(0.01, 5, (5, 2)):
        names = {"theta": theta, "alpha": alpha, "gamma": gamma, "sqrt": np.sqrt, "abs": np.abs}
        expected = np.broadcast_to(eval(python, {"__builtins__": {}}, names), theta.shape)
        ours = theory.inverse_metric(theta, KINDS[label], alpha=alpha, gamma=gamma)
        np.testing.assert_allclose(ours, expected, rtol=1e-14)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_products_have_extra_parameters_and_ham_has_none() -> None:
    """HAM also adds nothing to the optimizer's state."""
    claims = column("no_extra_parameters")
    counts = {}
    for method in METHODS:
        model = nn.Linear(6, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if method == "HAM":
            HAM(optimizer, model=model, alpha=10, beta=0.1)
        if method == "Sign-In":
            Product(reset_every=2).attach(model, total_epochs=10)
        if method == "PILoT":
            PILoT(sparsity=0.5).attach(model, total_epochs=10, steps_per_epoch=1)
        counts[method] = count(model)
        if method in ("Dense training", "HAM"):
            model(torch.ones(1, 6)).sum().backward()
            optimizer.step()
            assert {key for state in optimizer.state.values() for key in state} == {"momentum_buffer"}
    assert {method: "no" if n > 28 else "yes" for method, n in counts.items()} == claims
    assert counts["Sign-In"] == counts["PILoT"] == 28 + 24  # a second factor for each of the 24 weights


def test_only_sign_in_resets_its_parameters_at_once() -> None:
    """A reset moves the factors, however small the learning rate, and keeps their product."""
    claims = column("no_hard_perturbations")
    moved = {"Dense training": 0.0}
    for method, reset_every in (("Sign-In", 1), ("PILoT", 0)):
        torch.manual_seed(0)
        model = nn.Linear(6, 4).double()
        product = Product(reset_every=reset_every)
        product.attach(model, total_epochs=10)
        with torch.no_grad():  # as if training had let the balance decay
            m, w = product.weights[0].parameters
            m.mul_(0.5)
        before, theta = (m.clone(), w.clone()), model.weight.detach().clone()
        product.on_epoch_start(1, torch.optim.SGD(model.parameters(), lr=1e-9))
        torch.testing.assert_close(model.weight.detach(), theta, rtol=1e-12, atol=1e-12)
        moved[method] = max(float((a - b).abs().max().detach()) for a, b in zip(before, (m, w), strict=True))
    theta = np.linspace(-1, 1, 11)
    steps = [
        np.abs(theory.ham_step(theta, theta, lr=lr, alpha=10) - theta).max() for lr in (1e-3, 1e-6, 1e-9)
    ]
    assert steps[0] / steps[1] == pytest.approx(1e3, rel=0.02) and steps[2] < 1e-7  # vanishes with the rate
    moved["HAM"] = steps[2]
    assert {method: "no" if change > 0.1 else "yes" for method, change in moved.items()} == claims


def test_signs_change_faster_than_in_dense_training_where_table_1_says_so() -> None:
    """Time of the flow from -1 to 0 on (theta - 1)^2 / 2; dense training takes ln 2."""
    times = np.linspace(0, 10, 2001)
    runs = {
        "Dense training": ("gd", {}),
        "PILoT": ("product", {"gamma": 0.01}),  # its penalty lets the balance vanish
        "Sign-In": ("product", {"gamma": 0.5}),  # (m^2 - w^2) / 2 after a reset
        "HAM": ("ham", {"alpha": 1.0}),
    }
    crossing = {}
    for method, (kind, strength) in runs.items():
        path = theory.riemannian_flow(lambda x: x - 1, np.array([-1.0]), times, kind, **strength)[:, 0]
        time = times[np.argmax(path >= 0)]
        crossing[method] = time / 2 if kind == "product" else time  # the factors' flow is twice as fast
    dense = crossing.pop("Dense training")
    assert dense == pytest.approx(np.log(2), abs=0.006) and crossing["PILoT"] > 3 * dense
    claims = {method: "yes" if time < dense else "no" for method, time in crossing.items()}
    assert column("sign_flips") == {"Dense training": "-"} | claims


def test_the_bias_towards_sparsity_is_ordered_as_table_1_says() -> None:
    """L1 norm of the limit of each flow from 0 in regression; of the true weights 4 are 1, the rest 0."""
    problem = theory.regression(dim=60, samples=30, seed=0, nonzeros=4)
    runs = {
        "Dense training": ("gd", {}),
        "PILoT": ("product", {"gamma": 1e-3}),
        "Sign-In": ("product", {"gamma": 0.5}),
        "HAM": ("ham", {"alpha": 100.0}),
    }
    l1 = {}
    for method, (kind, strength) in runs.items():
        end = theory.riemannian_flow(problem.gradient, np.zeros(60), np.array([0, 200.0]), kind, **strength)[
            -1
        ]
        assert abs(problem.gradient(end)).max() < 0.01
        l1[method] = abs(end).sum()
    dense, strongest = l1["Dense training"], l1["PILoT"]
    assert strongest == pytest.approx(4, rel=0.1) and dense > 1.8 * strongest
    assert column("implicit_sparsity_bias") == {
        method: "no" if norm == dense else "yes" if norm == strongest else "yes (less strong)"
        for method, norm in l1.items()
    }
    assert all(strongest < l1[method] < 0.99 * dense for method in ("Sign-In", "HAM"))
