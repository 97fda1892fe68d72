"""Under-determined linear regression with a sparse truth (Theorem 4.5, App. G.1, Figures 6 to 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .flows import factor_step, gd_step, ham_step, hyperbolic_step
from .metrics import bregman_gradient, inverse_metric, inverse_mirror_map

METHODS = ("gd", "ham", "ham_signed", "hyperbolic", "product")
NONZEROS = 5  # entries of the truth, as in Pesme et al. (2021); the paper only says "sparse"
WRONG_SIGN = -1e-4  # Figure 7: the truth's entries are 1


@dataclass(frozen=True)
class Regression:
    """f(theta) = |Z theta - y|^2 / d, y = Z truth: `design` Z is (d, n), `truth` (n,), `target` y (d,)."""

    design: np.ndarray
    truth: np.ndarray
    target: np.ndarray

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """2/d Z^T (Z theta - y)."""
        return 2 / len(self.target) * self.design.T @ (self.design @ theta - self.target)


def regression(dim: int = 100, samples: int = 40, seed: int = 0, nonzeros: int = NONZEROS) -> Regression:
    """App. G.1's data: standard normal Z from default_rng(seed); the truth is `nonzeros` ones, then zeros."""
    design = np.random.default_rng(seed).standard_normal((samples, dim))
    truth = np.zeros(dim)
    truth[:nonzeros] = 1
    return Regression(design, truth, design @ truth)


def recorded_steps(steps: int, count: int = 200) -> np.ndarray:
    """The steps recorded by default: 0, about `count` geometrically spaced steps, and `steps`."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    grid = np.geomspace(1, steps, count).round().astype(np.int64)
    return np.unique(np.concatenate([[0], grid, [steps]]))


def simulate_linear_regression(
    method: str,
    *,
    alpha: float | None,
    lr: float,
    steps: int,
    dim: int = 100,
    samples: int = 40,
    seed: int = 0,
    theta0: float | None = None,
    scaling: float = 1.0,
    record: Sequence[int] | None = None,
    tolerance: float = 1e-13,
) -> np.ndarray:
    """|theta_k - truth|_2 over the steps of discrete training (App. G.1).

    Args:
        method: "gd"; "ham" (GD, HYP*); "ham_signed" (GD, HYP); "hyperbolic" (HYP* alone); "product" (gradient
            descent on m and w).
        alpha: HAM's strength; unused by "gd" and "product".
        lr: the learning rate.
        steps: number of steps.
        dim: n.
        samples: d.
        seed: seed of the data.
        theta0: initial value of every weight. None: 0, or -1e-4 for "hyperbolic", which cannot leave 0.
        scaling: initial m^2 - w^2, for "product".
        record: steps after which the distance is recorded, increasing, 0 for the start; None:
            `recorded_steps(steps)`.
        tolerance: once no entry of the gradient is larger, the remaining distances are set to the current
            one; with 1e-13 they would change by less than 1e-10.

    Returns:
        One distance per recorded step, float64.

    Raises:
        ValueError: an unknown method, or an alpha that is missing.
    """
    if theta0 is None:
        theta0 = WRONG_SIGN if method == "hyperbolic" else 0.0
    distances = simulate(
        method, [regression(dim, samples, seed)], alphas=[alpha], lrs=[lr], starts=[theta0],
        record=recorded_steps(steps) if record is None else record, scaling=scaling, tolerance=tolerance,
    )  # fmt: skip
    return distances[:, 0, 0]


def simulate(
    method: str,
    problems: Sequence[Regression],
    *,
    alphas: Sequence[float | None],
    lrs: Sequence[float],
    starts: Sequence[float],
    record: Sequence[int],
    scaling: float = 1.0,
    tolerance: float = 1e-13,
) -> np.ndarray:
    """Simulate several settings, zip(alphas, lrs, starts), on several problems of one shape together.

    The gradient has Gram form, 2/d (Z^T Z theta - Z^T y): one matrix product for all settings.

    Returns:
        Distances to the truth, (recorded steps, problems, settings); arguments as in
        `simulate_linear_regression`.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if None in alphas and method not in ("gd", "product"):
        raise ValueError(f"method {method!r} needs alpha= (1000 in App. G.1)")
    truth = np.stack([p.truth for p in problems])[..., None]
    gram = np.stack([2 / len(p.target) * p.design.T @ p.design for p in problems])
    gram_truth = gram @ truth
    lr, alpha = np.array(lrs), np.array([a or 0.0 for a in alphas])
    theta = np.broadcast_to(np.asarray(starts, dtype=np.float64), (*truth.shape[:2], len(lrs))).copy()
    factors = _factors(theta, scaling) if method == "product" else None

    distances = np.full((len(record), *theta.shape[::2]), np.nan)
    step = 0
    for row, recorded in enumerate(record):
        for _ in range(step, recorded):
            grad = gram @ theta - gram_truth
            if factors is not None:
                factors = factor_step(*factors, grad, lr=lr)
                theta = factors[0] * factors[1]
            else:
                theta = _step(method, theta, grad, lr, alpha)
        step = recorded
        distances[row] = np.linalg.norm(theta - truth, axis=1)
        if np.abs(gram @ theta - gram_truth).max() < tolerance:
            distances[row:] = distances[row]
            break
    return distances


def _step(method: str, theta: np.ndarray, grad: np.ndarray, lr: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """One step of a method without factors."""
    if method == "gd":
        return gd_step(theta, grad, lr=lr)
    if method == "hyperbolic":
        return hyperbolic_step(theta, grad, lr=lr, alpha=alpha)
    return ham_step(theta, grad, lr=lr, alpha=alpha, signed=method == "ham_signed")


def implicit_solution(
    design: np.ndarray,
    target: np.ndarray,
    alpha: float,
    theta0: np.ndarray | float = 0.0,
    tolerance: float = 1e-12,
) -> np.ndarray:
    """The minimizer of R_alpha over Z theta = y: the limit of HAM's flow (Theorem 4.5). Newton on the dual.

    KKT: grad R_alpha(theta) = Z^T multipliers and Z theta = y. The dual is concave and smooth. alpha > 0 is
    reached by continuation from smaller values: far from the solution, the exponential in theta overflows.

    Raises:
        ValueError: alpha is negative, or Z does not have full row rank.
        RuntimeError: Newton's method does not converge, because of rounding for alpha around 1e30.
    """
    if alpha < 0:
        raise ValueError(
            f"alpha must not be negative, got {alpha:g}: R_alpha would not be a Bregman function"
        )
    theta0 = np.broadcast_to(np.asarray(theta0, dtype=np.float64), design.shape[1])
    if np.linalg.matrix_rank(design) < len(design):
        raise ValueError("Z must have full row rank: remove samples that are linear combinations of others")
    theta = theta0 + design.T @ np.linalg.solve(design @ design.T, target - design @ theta0)  # alpha = 0
    if alpha == 0:
        return theta
    for strength in _continuation(alpha):
        dual = bregman_gradient(theta, strength, theta0)
        multipliers = np.linalg.lstsq(design.T, dual, rcond=None)[0]
        try:
            theta = _newton(design, target, strength, theta0, multipliers, tolerance)
        except np.linalg.LinAlgError as error:
            raise RuntimeError(
                f"Newton's system is singular at alpha = {strength:.1e}: use a smaller alpha"
            ) from error
    return theta


def _continuation(alpha: float) -> np.ndarray:
    """Rising strengths, each four times the one before: the first is at most 0.01, the last alpha."""
    count = max(0, np.ceil(np.log(alpha * 100) / np.log(4)))
    return alpha / 4.0 ** np.arange(count, -1, -1)


def _newton(
    design: np.ndarray,
    target: np.ndarray,
    alpha: float,
    theta0: np.ndarray,
    multipliers: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    """Newton's method with backtracking on the dual problem of `implicit_solution`; returns theta."""

    def evaluate(value: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        with np.errstate(over="ignore", invalid="ignore"):
            theta = inverse_mirror_map(design.T @ value, alpha, theta0)
            residual = design @ theta - target
            return theta, residual, float(np.linalg.norm(residual))

    theta, residual, size = evaluate(multipliers)
    goal = tolerance * max(1.0, float(np.linalg.norm(target)))
    for _ in range(200):
        if size < goal:
            return theta
        hessian = (design * inverse_metric(theta, "ham", alpha=alpha)) @ design.T
        direction = np.linalg.solve(hessian, residual)
        length = 1.0
        while length > 1e-12:  # Newton's direction decreases the residual, which is the dual's gradient
            new = evaluate(multipliers - length * direction)
            if new[2] < size:
                break
            length /= 2
        else:
            break
        multipliers = multipliers - length * direction
        theta, residual, size = new
    if size > 1e3 * goal:
        raise RuntimeError(f"Newton's method stopped at a residual of {size:.1e}: use a smaller alpha")
    return theta


def _factors(theta: np.ndarray, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """(m, w) with m w = theta and m^2 - w^2 = scaling, as in `pruning.product.rebalance`."""
    m = np.sqrt((scaling + np.sqrt(scaling**2 + 4 * theta**2)) / 2)
    return m, theta / m
