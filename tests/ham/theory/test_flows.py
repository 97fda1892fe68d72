"""Eqs. 1 to 4, Theorems 3.1 and 4.1 to 4.3, Corollary B.2, Theorem B.6 and App. B.1 by integration."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from ham import HAM
from ham.theory import (
    exponential_step,
    factor_flow,
    factor_step,
    gd_step,
    ham_step,
    hyperbolic_step,
    inverse_metric,
    linear_rate,
    mirror_flow,
    on_manifold_regularizer,
    product_closed_form,
    product_flow,
    riemannian_flow,
)
from ham.theory.flows import integrate
from pruning.product import rebalance

RNG = np.random.default_rng(7)
A = RNG.standard_normal((6, 4))
HESSIAN = A.T @ A / 6
OPTIMUM = np.array([1.0, -0.5, 0.0, 0.8])
START = np.array([0.4, 0.3, -0.2, -0.6])  # two signs to flip
TIMES = np.linspace(0, 3, 13)
LAMBDA = np.linalg.eigvalsh(HESSIAN)[0]  # a quadratic's PL constant


def gradient(theta):
    return HESSIAN @ (theta - OPTIMUM)


def loss(theta):
    difference = np.asarray(theta) - OPTIMUM
    return np.einsum("...i,ij,...j->...", difference, HESSIAN, difference) / 2


def factors(theta, scaling):
    return tuple(t.numpy() for t in rebalance(torch.tensor(theta), scaling))


def order(errors, lrs):
    """The slope of the errors over the learning rates, in logarithms."""
    return np.polyfit(np.log(lrs), np.log(errors), 1)[0]


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_exponential_step_is_descent_on_the_factors_to_second_order(beta):
    """Theorem 3.1: from |m| = |w|, one step differs by O(lr^2) and N steps with lr = 1/N by O(lr)."""
    m, w = np.sqrt(np.abs(START)), np.sign(START) * np.sqrt(np.abs(START))
    lrs, local_errors, global_errors = 2.0 ** -np.arange(6, 12), [], []
    for lr in lrs:
        m1, w1 = factor_step(m, w, gradient(START), lr=lr, beta=beta)
        local_errors.append(
            np.abs(m1 * w1 - exponential_step(START, gradient(START), lr=lr, beta=beta)).max()
        )
        theta, mk, wk = START, m, w
        for _ in range(round(1 / lr)):
            theta = exponential_step(theta, gradient(theta), lr=lr, beta=beta)
            mk, wk = factor_step(mk, wk, gradient(mk * wk), lr=lr, beta=beta)
        global_errors.append(np.abs(mk * wk - theta).max())
    assert order(local_errors, lrs) == pytest.approx(2, abs=0.05)
    assert order(global_errors, lrs) == pytest.approx(1, abs=0.1)


def test_induction_of_theorem_3_1_has_decay_of_the_sum_of_squares():
    """App. B.1: m^2 + w^2 changes by -4 lr theta grad - 4 lr beta (m^2 + w^2), not by 4 lr beta theta."""
    m, w = np.sqrt(np.abs(START)), np.sign(START) * np.sqrt(np.abs(START))
    lr, beta, grad = 1e-6, 0.3, gradient(START)
    m1, w1 = factor_step(m, w, grad, lr=lr, beta=beta)
    change = (m1**2 + w1**2 - m**2 - w**2) / lr
    np.testing.assert_allclose(change, -4 * START * grad - 4 * beta * (m**2 + w**2), atol=1e-4)
    assert np.abs(change + 4 * START * grad + 4 * beta * START).max() > 0.1


def test_beta_has_one_sign_in_the_derivative_of_theorem_b_3():
    """Eq. 7's first term E = exp(-int alpha s g + beta) has dE = -(alpha s g + beta) E, not with + beta."""
    alpha, beta, t, h = 3.0, 0.4, 0.7, 1e-6

    def term(time):  # s g = cos, so that the integral is sin
        return np.exp(-alpha * np.sin(time) - beta * time)

    slope = (term(t + h) - term(t - h)) / (2 * h)
    assert slope == pytest.approx(-(alpha * np.cos(t) + beta) * term(t), rel=1e-8)
    printed = np.exp(-alpha * np.sin(t) + beta * t) * (-alpha * np.cos(t) + beta)
    assert abs(printed - slope) > 0.05


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("scaling", [1.0, 0.05])
def test_closed_form_and_eq_2_are_the_flow_of_the_factors(beta, scaling):
    """Eq. 1 with u0, v0 = (m +- w) / 2; Eq. 2 with a minus, 4 theta^2 and decay 4 beta."""
    m0, w0 = factors(START, scaling)
    m, w, integral = factor_flow(gradient, m0, w0, TIMES, beta=beta)
    theta = m * w
    np.testing.assert_allclose(product_closed_form(m0, w0, integral, TIMES[:, None], beta), theta, atol=1e-7)
    np.testing.assert_allclose(product_flow(gradient, m0, w0, TIMES, beta=beta), theta, atol=1e-7)
    decayed = scaling * np.exp(-4 * beta * TIMES)[:, None]
    np.testing.assert_allclose(m**2 - w**2, np.broadcast_to(decayed, m.shape), atol=1e-7)
    assert np.abs(theta[-1] - START).max() > 0.3  # it moved


def test_eq_2_as_printed_is_not_the_flow_of_the_factors():
    """Each error changes d theta / dt = w dm + m dw of the factors at the start."""
    beta = 0.2
    m, w = factors(START, 1.0)
    g = gradient(START)
    true = w * (-w * g - 2 * beta * m) + m * (-m * g - 2 * beta * w)
    root = np.hypot(2 * START, m**2 - w**2)
    np.testing.assert_allclose(-root * g - 4 * beta * START, true, atol=1e-12)
    printed_root = np.hypot(START, m**2 - w**2)
    for wrong in (
        root * g - 4 * beta * START,
        -root * g - 2 * beta * START,
        -printed_root * g - 4 * beta * START,
    ):
        assert np.abs(wrong - true).max() > 0.05


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_table_2_is_the_metric_of_the_factors_with_time_scaled_by_two(beta):
    """gamma = (m^2 - w^2) / 2 and t -> 2t, where the factors' decay 4 beta becomes 2 beta."""
    m0, w0 = factors(START, 0.6)
    table = riemannian_flow(gradient, START, 2 * TIMES, "product", gamma=0.3, beta=2 * beta)
    np.testing.assert_allclose(table, product_flow(gradient, m0, w0, TIMES, beta=beta), atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("alpha", [0.0, 3.0, 50.0, -0.4])
def test_mirror_flow_is_the_riemannian_flow(alpha, beta):
    """Lemma 4.4 and App. B.1, across two sign flips."""
    flow = riemannian_flow(gradient, START, TIMES, "ham", alpha=alpha, beta=beta)
    np.testing.assert_allclose(mirror_flow(gradient, START, TIMES, alpha=alpha, beta=beta), flow, atol=2e-7)


def test_gd_flow_is_the_matrix_exponential():
    values, vectors = np.linalg.eigh(HESSIAN)
    decay = vectors * np.exp(-values * TIMES[-1]) @ vectors.T
    flow = riemannian_flow(gradient, START, TIMES, "gd")
    np.testing.assert_allclose(flow[-1], OPTIMUM + decay @ (START - OPTIMUM), atol=1e-8)


@pytest.mark.parametrize("signed", [True, False], ids=["HYP", "HYP*"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_ham_converges_to_its_flow_at_first_order(signed, beta):
    """Theorem 4.2 for GD, HYP and Theorem B.6 for GD, HYP*: the same flow, across two sign flips."""
    alpha, end = 5.0, 2.0
    flow = riemannian_flow(gradient, START, np.array([0, end]), "ham", alpha=alpha, beta=beta)[-1]
    assert (np.sign(flow) != np.sign(START)).sum() >= 2 - (beta > 0)
    lrs, errors = 2.0 ** -np.arange(6, 13), []
    for lr in lrs:
        theta = START
        for _ in range(round(end / lr)):
            theta = ham_step(theta, gradient(theta), lr=lr, alpha=alpha, beta=beta, signed=signed)
        errors.append(np.abs(theta - flow).max())
    assert errors[-1] < 2e-3
    assert order(errors, lrs) == pytest.approx(1, abs=0.15)


def test_hyp_and_hyp_star_differ_only_if_the_base_step_flips_the_sign():
    """App. D, Figure 3: HYP* increases |theta|, HYP decreases it."""
    theta, grad = np.array([0.3, 0.01, -0.01, -0.3]), np.ones(4)
    hyp_star, hyp = (ham_step(theta, grad, lr=0.1, alpha=5.0, signed=signed) for signed in (False, True))
    assert (hyp_star != hyp).tolist() == [False, True, False, False]
    after_gd = gd_step(theta, grad, lr=0.1)[1]
    assert hyp_star[1] == pytest.approx(after_gd * np.exp(0.5))
    assert hyp[1] == pytest.approx(after_gd * np.exp(-0.5))


def test_ham_step_is_the_optimizer_s_step():
    """`ham.HAM` on SGD equals `ham_step`."""
    weight = torch.nn.Parameter(torch.tensor(START))
    optimizer = torch.optim.SGD([{"params": [weight], "ham_alpha": 3.0, "ham_beta": 0.2}], lr=0.1)
    ham = HAM(optimizer, alpha=3.0, beta=0.2)
    weight.grad = torch.tensor(gradient(START))
    ham.optimizer.step()
    expected = ham_step(START, gradient(START), lr=0.1, alpha=3.0, beta=0.2)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-14)


@given(
    theta=st.floats(-1e3, 1e3),
    grad=st.floats(-1e3, 1e3),
    lr=st.floats(1e-6, 1.0),
    beta=st.floats(0, 10),
)
def test_exponential_step_never_changes_a_sign(theta, grad, lr, beta):
    """Corollary B.2; the result may underflow to 0."""
    with np.errstate(over="ignore", under="ignore"):
        after = exponential_step(np.float64(theta), np.float64(grad), lr=lr, beta=beta)
        assert after * np.sign(theta) >= 0
        assert hyperbolic_step(np.float64(0.0), np.float64(grad), lr=lr, alpha=200.0) == 0


def test_convergence_rates_hold_under_the_pl_inequality():
    """Theorems 4.1 and 4.3: f - f* is below exp(-2 sigma Lambda t): twice the stated rate."""
    gamma = 0.2
    bounds = {"gd": {}, "ham": {"alpha": 3.0}, "product": {"gamma": gamma}}
    times = np.linspace(0, 10, 21)
    for kind, parameters in bounds.items():
        rate = linear_rate(kind, LAMBDA, gamma=parameters.get("gamma"))
        assert rate == pytest.approx(2 * LAMBDA * (gamma if kind == "product" else 1))
        path = loss(riemannian_flow(gradient, START, times, kind, **parameters))
        assert (path <= loss(START) * np.exp(-rate * times) * (1 + 1e-7)).all()
    m0, w0 = factors(START, gamma)
    path = loss(product_flow(gradient, m0, w0, times))
    assert (
        path <= loss(START) * np.exp(-linear_rate("product", LAMBDA, gamma=gamma) * times) * (1 + 1e-7)
    ).all()


def test_convergence_rates_are_tight():
    """One weight that converges to 0: the final rate is 2 Lambda for GD and HAM, 2 gamma Lambda for m * w.

    So m * w slows down at zero and HAM does not, and the stated sigma Lambda is half of the true rate.
    """
    times, curvature = np.array([0.0, 6.0, 8.0]), 0.7
    for kind, parameters in {"gd": {}, "ham": {"alpha": 3.0}, "product": {"gamma": 0.2}}.items():
        path = riemannian_flow(lambda x: curvature * x, np.array([0.01]), times, kind, **parameters)[:, 0]
        measured = -2 * np.log(path[2] / path[1]) / (times[2] - times[1])
        assert measured == pytest.approx(
            linear_rate(kind, curvature, gamma=parameters.get("gamma")), rel=2e-3
        )


@pytest.mark.parametrize("start", [2.0, -1.5])
def test_a_flow_depends_on_the_time_since_its_start_alone(start):
    """Also where gamma shrinks with the weight decay."""
    m0, w0 = factors(START, 1.0)
    flows = (
        lambda times: riemannian_flow(gradient, START, times, "product", gamma=0.3, beta=0.4),
        lambda times: riemannian_flow(gradient, START, times, "ham", alpha=2.0, beta=0.4),
        lambda times: product_flow(gradient, m0, w0, times, beta=0.2),
        lambda times: mirror_flow(gradient, START, times, alpha=2.0, beta=0.4),
        lambda times: factor_flow(gradient, m0, w0, times, beta=0.2)[0],
    )
    for flow in flows:
        np.testing.assert_allclose(flow(TIMES + start), flow(TIMES), atol=1e-8)


def test_without_beta_there_is_no_weight_decay():
    m0, w0 = factors(START, 1.0)
    grad, times = gradient(START), TIMES[:3]
    for call in (
        lambda **beta: riemannian_flow(gradient, START, times, "ham", alpha=2.0, **beta),
        lambda **beta: mirror_flow(gradient, START, times, alpha=2.0, **beta),
        lambda **beta: product_flow(gradient, m0, w0, times, **beta),
        lambda **beta: np.stack(factor_flow(gradient, m0, w0, times, **beta)),
        lambda **beta: product_closed_form(m0, w0, grad, 0.5, **beta),
        lambda **beta: hyperbolic_step(START, grad, lr=0.1, alpha=2.0, **beta),
        lambda **beta: ham_step(START, grad, lr=0.1, alpha=2.0, **beta),
        lambda **beta: exponential_step(START, grad, lr=0.1, **beta),
        lambda **beta: np.stack(factor_step(m0, w0, grad, lr=0.1, **beta)),
    ):
        np.testing.assert_array_equal(call(), call(beta=0.0))
        assert np.abs(call(beta=0.1) - call()).max() > 1e-3


def test_steps_by_hand():
    """theta = 0.5, gradient 2, lr = 0.1: GD ends at 0.3; from 0.1 it ends at -0.1."""
    assert gd_step(0.5, 2.0, lr=0.1) == pytest.approx(0.3)
    assert hyperbolic_step(-0.5, 2.0, lr=0.1, alpha=3.0, beta=0.5) == pytest.approx(-0.5 * np.exp(0.55))
    before = hyperbolic_step(-0.5, 2.0, lr=0.1, alpha=3.0, beta=0.5, signs_of=np.float64(1.0))
    assert before == pytest.approx(-0.5 * np.exp(-0.65))
    assert ham_step(0.1, 2.0, lr=0.1, alpha=3.0) == pytest.approx(-0.1 * np.exp(0.6))
    assert ham_step(0.1, 2.0, lr=0.1, alpha=3.0, signed=True) == pytest.approx(-0.1 * np.exp(-0.6))
    assert exponential_step(0.5, 2.0, lr=0.1, beta=0.5) == pytest.approx(0.5 * np.exp(-0.6))
    assert factor_step(2.0, 3.0, 0.5, lr=0.1, beta=0.25) == (pytest.approx(1.75), pytest.approx(2.75))


def test_small_values_of_a_flow_are_exact_too():
    path = integrate(lambda t, state: -state, [1.0, 2.0], [0, 10, 20])
    expected = np.exp([0, -10, -20])[:, None] * [1, 2]
    np.testing.assert_allclose(path, expected, rtol=1e-7, atol=2e-12)


def test_a_flow_that_leaves_its_domain_is_named_with_its_last_time(monkeypatch):
    import scipy.integrate

    failed = SimpleNamespace(success=False, message="too small a step")
    monkeypatch.setattr(scipy.integrate, "solve_ivp", lambda *args, **options: failed)
    message = r"^the flow could not be integrated to t = 2\.5: too small a step$"
    with pytest.raises(RuntimeError, match=message):
        integrate(lambda t, state: state, [1.0], [0, 1, 2.5])


def test_a_rate_needs_a_known_kind_and_its_gamma():
    with pytest.raises(ValueError, match="needs gamma="):
        linear_rate("product", 1.0)
    with pytest.raises(ValueError, match="kind must be one of"):
        linear_rate("adam", 1.0)


@pytest.mark.parametrize("alpha", [0.0, 2.0, 40.0])
def test_with_beta_the_flow_converges_to_the_minimizer_of_f_plus_beta_m(alpha):
    """App. B.1."""
    beta = 0.15

    def objective(theta):
        return loss(theta) + beta * on_manifold_regularizer(theta, "ham", alpha=alpha)

    def slope(theta):
        return gradient(theta) + beta * theta / inverse_metric(theta, "ham", alpha=alpha)

    minimizer = minimize(objective, OPTIMUM, jac=slope, method="BFGS", options={"gtol": 1e-10}).x
    end = riemannian_flow(gradient, START, np.array([0, 400.0]), "ham", alpha=alpha, beta=beta)[-1]
    np.testing.assert_allclose(end, minimizer, atol=1e-6)
    assert np.abs(end - OPTIMUM).max() > 1e-3


def test_m_times_w_with_decay_converges_to_the_lasso():
    """App. B.1 and spred: gamma_t -> 0 and M -> L1; decay 2 beta of the factors is an L1 penalty."""
    beta = 0.1
    m0, w0 = factors(START, 1.0)
    end = product_flow(gradient, m0, w0, np.array([0, 300.0]), beta=beta)[-1]
    lasso = minimize(
        lambda x: loss(x[:4] - x[4:]) + 2 * beta * x.sum(),
        np.full(8, 0.1),
        bounds=[(0, None)] * 8,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10},
    ).x
    np.testing.assert_allclose(end, lasso[:4] - lasso[4:], atol=1e-5)


@given(alpha=st.floats(0, 100), beta=st.floats(0, 1))
def test_decay_does_not_change_hams_metric(alpha, beta):
    """Remark 4.8: without a gradient, HAM's weights decay by exp(-beta t); the product's gamma decays too."""
    decayed = riemannian_flow(np.zeros_like, START, np.array([0, 1.0]), "ham", alpha=alpha, beta=beta)[-1]
    np.testing.assert_allclose(decayed, START * np.exp(-beta), atol=1e-8)
