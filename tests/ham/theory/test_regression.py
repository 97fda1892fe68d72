"""Theorem 4.5 and App. G.1: the limit of HAM, against convex solvers; the distances of Figures 6 to 8."""

import sys
from functools import cache

import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from ham.theory import (
    Regression,
    bregman,
    bregman_gradient,
    implicit_solution,
    mirror_flow,
    recorded_steps,
    regression,
    riemannian_flow,
    simulate,
    simulate_linear_regression,
)
from ham.theory.regression import NONZEROS, WRONG_SIGN, _continuation

SMALL = regression(dim=12, samples=5, seed=4, nonzeros=2)
SPARSE = regression(dim=12, samples=5, seed=4, nonzeros=1)  # the L1 solution is the truth


@cache
def distances(method, alpha=1000.0, lr=1e-4, steps=200_000, theta0=None):
    return simulate_linear_regression(method, alpha=alpha, lr=lr, steps=steps, theta0=theta0)


def test_data_are_drawn_as_stated():
    problem = regression()
    np.testing.assert_array_equal(problem.design, np.random.default_rng(0).standard_normal((40, 100)))
    np.testing.assert_array_equal(problem.truth, [1] * 5 + [0] * 95)
    theta = np.linspace(-1, 1, 100)
    by_hand = 2 / 40 * problem.design.T @ (problem.design @ theta - problem.target)
    np.testing.assert_allclose(problem.gradient(theta), by_hand)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("theta0", [0.0, 0.2])
def test_implicit_solution_minimizes_bregman_over_the_solutions(alpha, theta0):
    """Against a convex solver on the null space of Z, which does not use the dual."""
    start = np.full(12, theta0)
    solution = implicit_solution(SMALL.design, SMALL.target, alpha, start)
    np.testing.assert_allclose(SMALL.design @ solution, SMALL.target, atol=1e-10)
    null = np.linalg.svd(SMALL.design)[2][5:].T
    particular = np.linalg.pinv(SMALL.design) @ SMALL.target
    scale = max(alpha, 1.0)
    free = minimize(
        lambda free: scale * bregman(particular + null @ free, alpha, start),
        np.zeros(7),
        jac=lambda free: scale * null.T @ bregman_gradient(particular + null @ free, alpha, start),
        method="BFGS",
        options={"gtol": 1e-11, "maxiter": 5000},
    ).x
    np.testing.assert_allclose(solution, particular + null @ free, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 3.0, 100.0])
def test_flow_converges_to_the_implicit_solution(alpha):
    """Theorem 4.5, from zero and from another start."""
    for start in (np.zeros(12), np.linspace(-0.2, 0.3, 12)):
        times = np.array([0, 150.0])
        expected = implicit_solution(SMALL.design, SMALL.target, alpha, start)
        np.testing.assert_allclose(
            riemannian_flow(SMALL.gradient, start, times, "ham", alpha=alpha)[-1], expected, atol=1e-6
        )
        np.testing.assert_allclose(
            mirror_flow(SMALL.gradient, start, times, alpha=alpha)[-1], expected, atol=1e-6
        )


def test_the_solution_is_least_squares_for_alpha_0_and_tends_to_basis_pursuit_for_large_alpha():
    """Theorems 4.5 and 4.6: the distance to the L1 solution decreases with alpha."""
    np.testing.assert_allclose(
        implicit_solution(SMALL.design, SMALL.target, 0.0),
        np.linalg.pinv(SMALL.design) @ SMALL.target,
        atol=1e-12,
    )
    design, target = SPARSE.design, SPARSE.target
    split = linprog(np.ones(24), A_eq=np.hstack([design, -design]), b_eq=target).x
    pursuit = split[:12] - split[12:]
    np.testing.assert_allclose(pursuit, SPARSE.truth, atol=1e-9)
    gaps = [
        np.linalg.norm(implicit_solution(design, target, a) - pursuit) for a in (0, 1, 1e2, 1e4, 1e8, 1e16)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[4] < 1e-4 * gaps[0]
    assert gaps[5] < 1e-8


def test_the_solution_for_a_target_of_zero():
    """Its rounding errors are those of a start of size 1, and no reason to refuse it.

    Among the solutions it minimizes the Bregman function, whose gradient is therefore in the row space of Z.
    """
    start = np.full(12, 0.5)
    solution = implicit_solution(SMALL.design, np.zeros(5), 10.0, start)
    np.testing.assert_allclose(SMALL.design @ solution, np.zeros(5), atol=1e-12)
    dual = bregman_gradient(solution, 10.0, start)
    multipliers = np.linalg.lstsq(SMALL.design.T, dual, rcond=None)[0]
    np.testing.assert_allclose(SMALL.design.T @ multipliers, dual, atol=1e-9)
    assert np.abs(solution).max() > 0.1


def test_recorded_steps_by_hand():
    """0, a geometric sequence from 1 to the last step, and whole numbers once each."""
    np.testing.assert_array_equal(recorded_steps(8, 4), [0, 1, 2, 4, 8])
    np.testing.assert_array_equal(recorded_steps(1000, 4), [0, 1, 10, 100, 1000])
    np.testing.assert_array_equal(recorded_steps(3, 50), [0, 1, 2, 3])
    np.testing.assert_array_equal(recorded_steps(1), [0, 1])


def test_problems_without_a_solution_are_refused():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        implicit_solution(SMALL.design, SMALL.target, -1.0)
    dependent = np.vstack([SMALL.design[:1], SMALL.design[:1]])
    with pytest.raises(ValueError, match="full row rank"):
        implicit_solution(dependent, np.array([1.0, 2.0]), 1.0)
    with pytest.raises(RuntimeError, match="use a smaller alpha"):
        implicit_solution(SPARSE.design, SPARSE.target, 1e64)


@pytest.mark.parametrize(
    ("method", "alpha", "lr", "steps", "distance"),
    [
        ("gd", None, 1e-4, 200_000, 1.886),
        ("ham", 1000.0, 1e-4, 200_000, 0.590),
        ("ham_signed", 1000.0, 1e-4, 200_000, 0.591),
        ("ham", 1e4, 1e-5, 400_000, 0.247),
    ],
)
def test_distances_of_the_first_seed(method, alpha, lr, steps, distance):
    """Figures 6 and 8: HAM ends closer to the truth than GD, and closer with larger alpha."""
    path = distances(method, alpha, lr, steps)
    assert path.shape == recorded_steps(steps).shape
    assert path[0] == pytest.approx(np.sqrt(5))
    assert path[-1] == pytest.approx(distance, abs=6e-4)


def test_corrected_sign_is_slightly_better():
    """Figure 6: "the slight benefit"."""
    assert 0 < distances("ham_signed")[-1] - distances("ham")[-1] < 0.01


def test_hyperbolic_step_alone_fails_from_the_wrong_sign():
    """Figure 7; from zero it does not move at all. HAM converges from the same start."""
    assert distances("hyperbolic")[-1] > 5
    from_zero = distances("hyperbolic", steps=100, theta0=0.0)
    assert (from_zero == from_zero[0]).all()
    assert distances("ham", theta0=-1e-4)[-1] < 0.65


@pytest.mark.parametrize(("alpha", "lr", "steps"), [(1000.0, 1e-4, 200_000), (1e4, 1e-5, 400_000)])
def test_discrete_training_ends_near_the_implicit_solution(alpha, lr, steps):
    """Theorem 4.5 holds for the flow; steps with alpha lr = 0.1 differ from its distance by 2e-4."""
    problem = regression()
    expected = np.linalg.norm(implicit_solution(problem.design, problem.target, alpha) - problem.truth)
    assert distances("ham", alpha, lr, steps)[-1] == pytest.approx(expected, abs=5e-4)


def test_product_with_small_scaling_is_sparser():
    """Woodworth et al. (2020): with small m^2 - w^2 the solution is close to the L1 solution."""
    small, large = (
        simulate_linear_regression("product", alpha=None, lr=2e-3, steps=15_000, scaling=scaling)[-1]
        for scaling in (1e-3, 1.0)
    )
    assert small < 0.5 < 1.5 < large


def test_batched_settings_and_problems_equal_single_runs():
    record = [0, 1, 10, 300]
    problems = [regression(dim=12, samples=5, seed=seed) for seed in (0, 1)]
    for method in ("gd", "ham", "ham_signed", "hyperbolic", "product"):
        batched = simulate(
            method, problems, alphas=[10.0, 50.0], lrs=[1e-2, 2e-3], starts=[-1e-3, 0.01], record=record
        )
        assert batched.shape == (4, 2, 2)
        for seed in (0, 1):
            for setting, (alpha, lr, theta0) in enumerate([(10.0, 1e-2, -1e-3), (50.0, 2e-3, 0.01)]):
                single = simulate_linear_regression(
                    method,
                    alpha=alpha,
                    lr=lr,
                    steps=300,
                    dim=12,
                    samples=5,
                    seed=seed,
                    theta0=theta0,
                    record=record,
                )
                np.testing.assert_allclose(batched[:, seed, setting], single, rtol=1e-10)


def test_simulated_gd_equals_its_closed_form():
    values, vectors = np.linalg.eigh(2 / 5 * SMALL.design.T @ SMALL.design)
    shrunk = vectors * (1 - 1e-2 * values) ** 500 @ vectors.T @ -SMALL.truth
    distance = simulate("gd", [SMALL], alphas=[None], lrs=[1e-2], starts=[0.0], record=[500])
    assert distance[0, 0, 0] == pytest.approx(np.linalg.norm(shrunk), rel=1e-10)


def test_the_tolerance_does_not_change_the_result():
    settings = dict(alpha=100.0, lr=1e-3, steps=30_000, dim=12, samples=5)
    early, full = (simulate_linear_regression("ham", tolerance=t, **settings) for t in (1e-13, 0.0))
    np.testing.assert_allclose(early, full, rtol=0, atol=1e-10)


def test_the_defaults_are_those_of_the_paper_s_figures(monkeypatch):
    """100 weights, 40 samples, the first seed, from zero; and a factor's scale of 1."""
    assert (NONZEROS, WRONG_SIGN) == (5, -1e-4)
    asked = []

    def simulated(method, problems, **options):
        asked.append((method, problems, options))
        return np.array([[[1.0]], [[2.0]]])

    monkeypatch.setattr(sys.modules["ham.theory.regression"], "simulate", simulated)
    for method in ("ham", "hyperbolic"):
        assert simulate_linear_regression(method, alpha=9.0, lr=0.5, steps=1).tolist() == [1, 2]
    for (method, (problem,), options), start in zip(asked, (0.0, -1e-4), strict=True):
        assert (problem.design == regression(100, 40, 0).design).all()
        assert options.pop("record").tolist() == [0, 1]
        assert options == {
            **{"alphas": [9.0], "lrs": [0.5], "starts": [start], "scaling": 1.0, "tolerance": 1e-13}
        }, method
    assert len(recorded_steps(10**9)) == 200 + 1 - (200 - len(set(spaced(10**9, 200))))


def spaced(steps, count):
    return [round(steps ** (k / (count - 1))) for k in range(count)]


def test_simulate_has_a_scale_of_1_and_a_tolerance_by_default():
    problem = regression(dim=4, samples=2, nonzeros=1)
    settings = dict(alphas=[None], lrs=[0.01], starts=[0.1], record=[0, 3])
    expected = simulate("product", [problem], scaling=1.0, **settings)
    np.testing.assert_array_equal(simulate("product", [problem], **settings), expected)
    long = {**settings, "lrs": [0.1], "record": [0, 3000, 6000]}
    path = simulate("gd", [problem], **long)[:, 0, 0]
    assert path[1] == path[2] and np.isfinite(path).all()


def test_a_simulation_ends_once_the_gradient_is_below_the_tolerance(monkeypatch):
    steps = []
    module = sys.modules["ham.theory.regression"]
    take = module.gd_step
    monkeypatch.setattr(module, "gd_step", lambda *args, **lr: steps.append(1) or take(*args, **lr))
    settings = dict(alphas=[None], lrs=[0.1])
    problem = regression(dim=4, samples=2, nonzeros=1)
    path = simulate("gd", [problem], starts=[0.1], record=[1, 2000, 3000, 9000], **settings)[:, 0, 0]
    assert len(steps) == 2000 and len(set(path[1:])) == 1 and path[0] != path[1]
    steps.clear()
    zero = regression(dim=4, samples=2, nonzeros=0)
    simulate("gd", [zero], starts=[0.0], record=[0, 5], tolerance=0.0, **settings)
    assert len(steps) == 5, "no gradient is below a tolerance of 0"


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.01005, 0.039, 0.041, 1.0, 1000.0])
def test_alpha_is_reached_in_steps_of_a_factor_of_four_from_at_most_a_hundredth(alpha):
    strengths = _continuation(alpha)
    assert strengths[-1] == alpha and strengths[0] <= 0.01
    assert len(strengths) == 1 or strengths[0] > 0.0025
    np.testing.assert_allclose(strengths[1:] / strengths[:-1], 4)


def test_one_step_of_each_method_by_hand():
    """Z = (1, 2), truth (1, 0), y = 1, from (0.5, 0.5): the residual is 0.5 and the gradient (1, 2)."""
    problem = Regression(np.array([[1.0, 2.0]]), np.array([1.0, 0.0]), np.array([1.0]))
    assert problem.gradient(np.array([0.5, 0.5])).tolist() == [1, 2]
    settings = dict(alphas=[3.0], lrs=[0.1], starts=[0.5], record=[1])
    m = np.sqrt((1 + np.sqrt(2)) / 2)  # m^2 - w^2 = 1 and m w = 0.5
    w = 0.5 / m
    ends = {
        "gd": (0.4, 0.3),
        "ham": (0.4 * np.exp(-0.3), 0.3 * np.exp(-0.6)),
        "hyperbolic": (0.5 * np.exp(-0.3), 0.5 * np.exp(-0.6)),
        "product": ((m - 0.1 * w) * (w - 0.1 * m), (m - 0.2 * w) * (w - 0.2 * m)),
    }
    for method, (first, second) in ends.items():
        distance = simulate(method, [problem], **settings)[0, 0, 0]
        assert distance == pytest.approx(np.hypot(first - 1, second)), method


@pytest.mark.parametrize("method", ["gd", "product"])
def test_methods_without_alpha_need_none(method):
    problem = regression(dim=4, samples=2, nonzeros=1)
    simulate(method, [problem], alphas=[None], lrs=[0.01], starts=[0.0], record=[1])


@pytest.mark.parametrize("method", ["ham", "ham_signed", "hyperbolic"])
def test_an_alpha_of_zero_is_no_missing_one(method):
    problem = regression(dim=4, samples=2, nonzeros=1)
    settings = dict(lrs=[0.01], starts=[0.1], record=[1])
    path = simulate(method, [problem], alphas=[0.0], **settings)
    gd = simulate("gd", [problem], alphas=[None], **settings)
    assert (path == gd).all() == (method != "hyperbolic")
    with pytest.raises(ValueError, match=rf"^method '{method}' needs alpha= \(1000 in App\. G\.1\)$"):
        simulate(method, [problem], alphas=[1.0, None], lrs=[0.01] * 2, starts=[0.1] * 2, record=[1])


def test_a_solution_from_another_start_and_of_weights_of_any_size_has_its_residual_and_gradient():
    """The gradient of the Bregman function is in the row space of Z (KKT)."""
    for alpha in (1e-3, 0.01, 0.02, 4.0, 1e6):
        for scale in (1e-6, 1.0, 1e4):
            solution = implicit_solution(SMALL.design, scale * SMALL.target, alpha)
            residual = SMALL.design @ solution - scale * SMALL.target
            assert np.linalg.norm(residual) < 1e-8 * max(1, scale)
            dual = bregman_gradient(solution, alpha)
            multipliers = np.linalg.lstsq(SMALL.design.T, dual, rcond=None)[0]
            np.testing.assert_allclose(SMALL.design.T @ multipliers, dual, atol=1e-6 * np.abs(dual).max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "adam"}, "method must be one of gd, ham"),
        ({"alpha": None}, "'ham' needs alpha="),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_with_the_cure(changes, message):
    arguments = {"method": "ham", "alpha": 10.0, "lr": 1e-3, "steps": 5} | changes
    with pytest.raises(ValueError, match=message):
        simulate_linear_regression(arguments.pop("method"), **arguments)
