"""Table 2, Lemma 4.4, Theorem 4.6, Eq. 10, App. C: against mpmath, quadrature, automatic derivatives."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from ham.theory import (
    bregman,
    bregman_gradient,
    bregman_hessian,
    factor_inverse_metric,
    fisher_information,
    inverse_metric,
    inverse_mirror_map,
    mean_of,
    on_manifold_regularizer,
    weight_of,
)
from ham.theory.metrics import strengths

ALPHAS = [0.0, 1e-12, 1e-6, 1e-3, 0.3, 1.0, 200.0, 1e6, -1e-9, -0.2]
weights = st.one_of(st.just(0.0), st.floats(1e-12, 4.5), st.floats(-4.5, -1e-12))
alphas = st.one_of(st.floats(1e-12, 1e6), st.floats(-0.2, -1e-12), st.just(0.0))


def exact_bregman(theta, alpha, theta0=0.0):
    with mpmath.workdps(120):
        theta, alpha, theta0 = mpmath.mpf(theta), mpmath.mpf(alpha), mpmath.mpf(theta0)
        if alpha == 0:
            return float(theta**2 / 2 - theta * theta0)
        x = alpha * abs(theta)
        linear = theta * mpmath.sign(theta0) / alpha * mpmath.log(1 + alpha * abs(theta0))
        return float(((x + 1) * mpmath.log(x + 1) - x) / alpha**2 - linear)


def exact_regularizer(theta, alpha):
    with mpmath.workdps(120):
        x = mpmath.mpf(alpha) * abs(mpmath.mpf(theta))
        if x == 0:
            return theta**2 / 2
        return float((x - mpmath.log(1 + x)) / mpmath.mpf(alpha) ** 2)


def test_inverse_metrics_by_hand():
    theta = np.array([[-2.0, 0.0], [0.5, 3.0]])
    assert inverse_metric(theta, "gd").tolist() == [[1, 1], [1, 1]]
    assert inverse_metric(theta, "ham", alpha=4.0).tolist() == [[9, 1], [3, 13]]
    assert inverse_metric(np.array([3.0, 0.0]), "product", gamma=4.0).tolist() == [5, 4]


def test_torch_tensors_give_torch_tensors_and_numbers_give_numpy():
    for shape in [(), (0,), (3,), (2, 3, 4)]:
        theta = torch.zeros(shape, dtype=torch.float32)
        for out in (inverse_metric(theta, "ham", alpha=2.0), inverse_metric(theta, "product", gamma=1.0)):
            assert (out.shape, out.dtype) == (theta.shape, theta.dtype)
        assert inverse_metric(theta.numpy(), "gd").shape == shape
        for out in (bregman(theta, 3.0), on_manifold_regularizer(theta, "ham", alpha=3.0)):
            assert (tuple(out.shape), out.dtype) == (shape[:-1], torch.float32)
    assert bregman(2, 0.0) == 2.0
    assert bregman([[1, 2], [3, 4]], 0.0).tolist() == [2.5, 12.5]
    assert inverse_metric(torch.tensor([1, 2]), "ham", alpha=1.0).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("ham", "needs alpha="), ("product", "needs gamma="), ("flat", "kind must be one of gd")],
)
def test_a_missing_strength_is_named(kind, words):
    for function in (inverse_metric, on_manifold_regularizer):
        with pytest.raises(ValueError, match=words):
            function(np.ones(2), kind)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_bregman_and_regularizer_agree_with_high_precision(alpha):
    for theta in [-4.0, -0.7, 0.0, 1e-9, 1e-4, 0.049, 0.051, 0.3, 2.0]:
        for theta0 in (0.0, -0.5, 1e-5):
            expected = exact_bregman(theta, alpha, theta0)
            scale = abs(exact_bregman(theta, alpha)) + abs(expected)
            assert bregman(np.array([theta]), alpha, theta0) == pytest.approx(
                expected, rel=1e-13, abs=1e-13 * scale
            )
        expected = exact_regularizer(theta, alpha)
        actual = on_manifold_regularizer(np.array([theta]), "ham", alpha=alpha)
        assert actual == pytest.approx(expected, rel=2e-14, abs=0)


@given(theta=weights, theta0=weights, alpha=alphas)
def test_bregman_agrees_with_high_precision_everywhere(theta, theta0, alpha):
    expected = exact_bregman(theta, alpha, theta0)
    scale = abs(exact_bregman(theta, alpha)) + abs(expected)
    assert bregman(np.array([theta]), alpha, np.array([theta0])) == pytest.approx(
        expected, rel=1e-12, abs=1e-13 * scale
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_and_hessian_of_bregman_are_its_derivatives(alpha):
    """Lemma 4.4 by automatic differentiation of the value."""
    theta = torch.tensor([-4.0, -0.3, -0.04, 1e-3, 0.06, 0.8], dtype=torch.float64, requires_grad=True)
    theta0 = torch.tensor([0.4, -0.1, 0.0, 2.0, 1e-6, 0.8], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(bregman(theta, alpha, theta0), theta, create_graph=True)
    torch.testing.assert_close(gradient, bregman_gradient(theta, alpha, theta0), rtol=1e-11, atol=1e-14)
    (hessian,) = torch.autograd.grad(gradient.sum(), theta)
    torch.testing.assert_close(hessian, bregman_hessian(theta, alpha), rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(hessian, 1 / inverse_metric(theta, "ham", alpha=alpha), rtol=1e-8, atol=1e-13)


@given(theta0=weights, alpha=alphas)
def test_gradient_is_zero_at_the_initialization_which_is_the_minimum(theta0, alpha):
    assert bregman_gradient(np.array([theta0]), alpha, np.array([theta0])) == 0
    minimum = bregman(np.array([theta0]), alpha, theta0)
    around = theta0 + np.array([[-0.2], [-1e-3], [1e-3], [0.2]])
    assert (bregman(around, alpha, theta0) >= minimum - 1e-13 * (1 + abs(minimum))).all()


@given(theta=weights, theta0=weights, alpha=st.one_of(st.floats(1e-9, 1e4), st.floats(-0.2, -1e-9)))
def test_inverse_mirror_map_inverts_the_gradient(theta, theta0, alpha):
    dual = bregman_gradient(np.array([theta]), alpha, theta0)
    inverse = inverse_mirror_map(dual, alpha, theta0)
    np.testing.assert_allclose(inverse, theta, rtol=1e-10, atol=1e-12 * (1 + abs(theta0)))


@pytest.mark.parametrize("theta", [2.0, -2.0, 5.0, np.array([0.1, 2.5])])
def test_negative_alpha_names_the_domain_of_the_metric(theta):
    for call in (
        lambda: bregman(theta, -0.5),
        lambda: bregman(0.1, -0.5, theta),
        lambda: bregman_gradient(theta, -0.5),
        lambda: bregman_hessian(theta, -0.5),
        lambda: on_manifold_regularizer(theta, "ham", alpha=-0.5),
    ):
        with pytest.raises(ValueError, match=r"alpha = -0.5 needs \|theta\| < 2"):
            call()
    assert np.isfinite(bregman(1.999, -0.5))
    assert inverse_metric(np.array([4.0]), "ham", alpha=-0.5) == -1  # Table 2's formula
    assert np.all(np.abs(inverse_mirror_map(np.array([-1e3, 50.0]), -0.5)) <= 2)


@pytest.mark.parametrize("theta", [-1.3, -0.2, 0.4, 2.0])
def test_regularizers_are_the_integral_of_metric_times_weight(theta):
    """Definition B.7 by quadrature; for the product up to its constant, gamma."""
    for kind, words in [
        ("gd", {}),
        ("ham", {"alpha": 5.0}),
        ("product", {"gamma": 0.3}),
        ("ham", {"alpha": -0.4}),
    ]:
        integral = quad(lambda z: z / inverse_metric(z, kind, **words), 0, theta, epsabs=1e-13)[0]  # noqa: B023
        at, zero = (on_manifold_regularizer(np.array([x]), kind, **words) for x in (theta, 0.0))
        assert at - zero == pytest.approx(integral, rel=1e-10)
    assert on_manifold_regularizer(np.zeros(3), "product", gamma=0.5) == 1.5


def test_bregman_tends_to_half_the_squared_norm_for_small_alpha():
    """Theorem 4.6, first limit: h_1 = 2, its proof has 1; the error is alpha sum |theta|^3 / 6."""
    theta = np.array([0.3, -1.2, 2.0, 0.0])
    square, cube = np.sum(theta**2), np.sum(np.abs(theta) ** 3)
    for alpha in (1e-2, 1e-4, 1e-6):
        value = bregman(theta, alpha)
        assert 2 * value == pytest.approx(square, rel=alpha)
        assert (square / 2 - value) / alpha == pytest.approx(cube / 6, rel=2 * alpha + 1e-9)
    assert bregman(theta, 1e-9) != pytest.approx(square, rel=0.4)  # h_1 = 1 is off by a factor of 2


def test_bregman_tends_to_the_l1_norm_like_one_over_log_alpha():
    """Theorem 4.6, second limit: ln(alpha) (alpha R / ln(alpha) - |t|_1) tends to sum |t| (ln |t| - 1)."""
    theta = np.array([0.3, -1.2, 2.0, 0.0])
    norm = np.abs(theta).sum()
    nonzero = np.abs(theta[:3])
    limit = np.sum(nonzero * (np.log(nonzero) - 1))
    for alpha in (1e4, 1e8, 1e16, 1e64):
        error = alpha / np.log(alpha) * bregman(theta, alpha) - norm
        assert error * np.log(alpha) == pytest.approx(limit, abs=20 * np.log(alpha) / alpha + 1e-12)
    for alpha in (1e3, 1e6):
        assert alpha * on_manifold_regularizer(theta, "ham", alpha=alpha) == pytest.approx(
            norm, abs=3 * np.log(3 * alpha) / alpha
        )  # B.1: alpha M tends to L1 as well


@given(m=weights, w=weights)
def test_metric_of_the_factors_contains_four_theta_squared(m, w):
    """m^2 + w^2 = sqrt(4 theta^2 + (m^2 - w^2)^2), twice Table 2's with gamma = (m^2 - w^2) / 2."""
    rate, theta = factor_inverse_metric(np.array([m]), np.array([w])), np.array([m * w])
    np.testing.assert_allclose(rate, np.hypot(2 * theta, m * m - w * w), rtol=1e-12, atol=1e-300)
    table = inverse_metric(theta, "product", gamma=(m * m - w * w) / 2)
    np.testing.assert_allclose(rate, 2 * table, rtol=1e-12, atol=1e-300)


def test_gamma_of_the_introduction_eq_2_and_app_f_are_three_quantities():
    """With m = 2, w = 1: (m^2 - w^2)^2 = 4 u^2 v^2 = 9 is gamma^2, and the factors' rate is 5."""
    m, w = 2.0, 1.0
    u, v = (m + w) / np.sqrt(2), (m - w) / np.sqrt(2)
    introduction, eq2, app_f = (m**2 - w**2) ** 2, 4 * u**2 * v**2, m**2 - w**2
    assert introduction == pytest.approx(eq2)
    assert app_f == pytest.approx(np.sqrt(eq2))  # so Eq. 2's exp(-4 beta t) belongs to the root only
    rate = factor_inverse_metric(m, w)
    assert rate == pytest.approx(np.hypot(2 * m * w, app_f))
    for gamma in (introduction, eq2, app_f):
        assert rate != pytest.approx(np.hypot(m * w, gamma))
    assert u**2 - v**2 == pytest.approx(2 * m * w)  # the paper requires theta


@pytest.mark.parametrize("theta", [-3.0, -0.2, 0.05, 1.0])
def test_fisher_information_is_the_expected_squared_score(theta):
    """Eq. 11 by quadrature over the density, with a central difference for the score."""
    for kind in ("gd", "hyperbolic"):

        def log_density(x, at, kind=kind):
            return -((x - mean_of(np.float64(at), kind)) ** 2) / 2 - np.log(2 * np.pi) / 2

        def integrand(x):
            step = 1e-5 * abs(theta)
            score = (log_density(x, theta + step) - log_density(x, theta - step)) / (2 * step)
            return score**2 * np.exp(log_density(x, theta))

        center = float(mean_of(np.float64(theta), kind))
        expected = quad(integrand, center - 12, center + 12, epsabs=1e-12)[0]
        assert fisher_information(np.float64(theta), kind) == pytest.approx(expected, rel=1e-7)
        assert weight_of(mean_of(np.float64(theta), kind), np.sign(theta), kind) == pytest.approx(theta)
    slope = 0.5 / np.sqrt(abs(theta))  # of sqrt(|theta|), the mean that App. C names first
    assert slope**2 == pytest.approx(fisher_information(np.float64(theta), "hyperbolic") / 4)


@pytest.mark.parametrize("theta", [-3.0, -0.2, 0.05, 1.0])
def test_the_score_of_the_hyperbolic_step_has_the_opposite_sign_of_the_printed_one(theta):
    """App. C: d ln N(x; 2 sqrt|theta|, 1) / d theta = +sign(theta) (x - 2 sqrt|theta|) / sqrt|theta|."""
    at = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    for x in (-1.0, 0.5, 3.0):
        (score,) = torch.autograd.grad(-((x - mean_of(at, "hyperbolic")) ** 2) / 2, at)
        right = np.sign(theta) * (x - 2 * np.sqrt(abs(theta))) / np.sqrt(abs(theta))
        assert float(score) == pytest.approx(right, rel=1e-12) and right != 0


def test_training_starts_from_zero_unless_a_start_is_given():
    theta = np.array([0.3, -1.2])
    for function in (bregman, bregman_gradient, inverse_mirror_map):
        np.testing.assert_array_equal(function(theta, 2.0), function(theta, 2.0, 0.0))
        assert np.abs(function(theta, 2.0, 0.5) - function(theta, 2.0)).max() > 0.1


def test_strengths_that_a_kind_does_not_use_are_0():
    assert strengths("ham", 5.0, None) == strengths("ham", 5.0, 6.0) == (5.0, 0.0)
    assert strengths("product", None, 6.0) == strengths("product", 5.0, 6.0) == (0.0, 6.0)
    assert strengths("gd", None, None) == strengths("gd", 5.0, 6.0) == (0.0, 0.0)


def test_a_kind_without_a_mean_is_refused():
    for call in (
        lambda: mean_of(np.ones(1), "ham"),
        lambda: weight_of(np.ones(1), np.ones(1), "ham"),
        lambda: fisher_information(np.ones(1), "ham"),
    ):
        with pytest.raises(ValueError, match=r"^kind must be one of gd, hyperbolic, got 'ham'$"):
            call()


def test_means_and_their_weights_by_hand():
    """The mean of the hyperbolic step is 2 sqrt(|theta|)."""
    theta = np.array([-4.0, 9.0])
    assert mean_of(theta, "gd").tolist() == [-4, 9] and mean_of(theta, "hyperbolic").tolist() == [4, 6]
    assert weight_of(np.array([4.0, 6.0]), np.sign(theta), "hyperbolic").tolist() == [-4, 9]
    assert weight_of(theta, None, "gd").tolist() == [-4, 9]
    assert fisher_information(theta, "gd").tolist() == [1, 1]
    assert fisher_information(theta, "hyperbolic").tolist() == [0.25, pytest.approx(1 / 9)]


def test_fisher_information_of_the_hyperbolic_step_is_infinite_at_zero():
    assert fisher_information(np.zeros(1), "hyperbolic") == np.inf
    assert fisher_information(torch.zeros(1), "hyperbolic") == torch.inf
    with pytest.raises(ValueError, match="kind must be one of gd, hyperbolic"):
        fisher_information(np.ones(1), "ham")
