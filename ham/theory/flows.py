"""Gradient flows and discrete steps of GD, HAM and m * w (Eqs. 1-4, Eq. 9, section 3, App. B).

The flows need scipy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .metrics import (
    Array,
    arrays,
    bregman_gradient,
    inverse_metric,
    inverse_mirror_map,
    strengths,
)

Gradient = Callable[[np.ndarray], np.ndarray]


def riemannian_flow(
    gradient: Gradient,
    theta0: np.ndarray,
    times: np.ndarray,
    kind: str,
    *,
    alpha: float | None = None,
    gamma: float | None = None,
    beta: float = 0.0,
) -> np.ndarray:
    """Riemannian gradient flow with weight decay beta (Eq. 9; for "ham" Theorem 4.2's Eq. 4).

        d theta = -g^-1(theta) grad f(theta) dt - beta theta dt

    The product's gamma shrinks as gamma exp(-beta t): weight decay shrinks m^2 - w^2 as fast as theta.

    Args:
        gradient: gradient of f, from and to an array of theta0's shape.
        theta0: the weights at times[0], one-dimensional.
        times: increasing.
        kind: "gd", "product" or "ham", with `alpha` or `gamma` as in `inverse_metric`.
        alpha: HAM's strength.
        gamma: the product's scale at the first time.
        beta: weight decay.

    Returns:
        One row per time.
    """
    alpha, gamma = strengths(kind, alpha, gamma)

    def field(t: float, theta: np.ndarray) -> np.ndarray:
        scale = gamma * np.exp(-beta * (t - times[0]))
        return -inverse_metric(theta, kind, alpha=alpha, gamma=scale) * gradient(theta) - beta * theta

    return integrate(field, theta0, times)


def mirror_flow(
    gradient: Gradient, theta0: np.ndarray, times: np.ndarray, *, alpha: float, beta: float = 0.0
) -> np.ndarray:
    """HAM's flow as a mirror flow (App. B.1).

        d grad R_alpha(theta) = -(grad f(theta) + beta theta / (1 + alpha |theta|)) dt

    Integrates the dual variable; arguments and result are as in `riemannian_flow`.
    """

    def field(_: float, dual: np.ndarray) -> np.ndarray:
        theta = inverse_mirror_map(dual, alpha)
        return -gradient(theta) - beta * theta / inverse_metric(theta, "ham", alpha=alpha)

    return inverse_mirror_map(integrate(field, bregman_gradient(theta0, alpha), times), alpha)


def factor_flow(
    gradient: Gradient, m0: np.ndarray, w0: np.ndarray, times: np.ndarray, *, beta: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient flow on the factors m and w with weight decay beta (above Eq. 1).

        dm = -w grad f(m w) dt - 2 beta m dt,   dw = -m grad f(m w) dt - 2 beta w dt

    Returns:
        m, w and the integral of grad f(m w) up to each time, one row per time.
    """
    n = len(m0)

    def field(_: float, state: np.ndarray) -> np.ndarray:
        m, w = state[:n], state[n : 2 * n]
        g = gradient(m * w)
        return np.concatenate([-w * g - 2 * beta * m, -m * g - 2 * beta * w, g])

    states = integrate(field, np.concatenate([m0, w0, np.zeros(n)]), times)
    return states[:, :n], states[:, n : 2 * n], states[:, 2 * n :]


def product_closed_form(
    m0: Array, w0: Array, integral: Array, time: Array | float, beta: float = 0.0
) -> Array:
    """Closed form of theta in the factors' flow, given I, the integral of grad f (Eq. 1).

        theta_t = u0^2 exp(-2 I - 4 beta t) - v0^2 exp(2 I - 4 beta t)

    u0 = (m0 + w0) / 2 and v0 = (m0 - w0) / 2; with the paper's division by sqrt(2) the result is 2 theta.
    """
    xp, integral = arrays(integral)
    u, v = (m0 + w0) / 2, (m0 - w0) / 2
    shrink = -4 * beta * time
    return u * u * xp.exp(shrink - 2 * integral) - v * v * xp.exp(shrink + 2 * integral)


def product_flow(
    gradient: Gradient, m0: np.ndarray, w0: np.ndarray, times: np.ndarray, *, beta: float = 0.0
) -> np.ndarray:
    """The factors' flow in terms of theta = m w: Eq. 2, corrected so that it follows from Eq. 1.

        d theta = -sqrt(4 theta^2 + s_t^2) grad f dt - 4 beta theta dt,   s_t = (m0^2 - w0^2) exp(-4 beta t)

    The printed equation lacks the minus and the 4 in front of theta^2, and has 2 beta instead of 4 beta.

    Returns:
        theta, one row per time.
    """
    scaling = m0**2 - w0**2

    def field(t: float, theta: np.ndarray) -> np.ndarray:
        rate = np.hypot(2 * theta, scaling * np.exp(-4 * beta * (t - times[0])))
        return -rate * gradient(theta) - 4 * beta * theta

    return integrate(field, m0 * w0, times)


def gd_step(theta: Array, grad: Array, *, lr: float) -> Array:
    """Gradient descent: theta - lr grad (GD)."""
    return theta - lr * grad


def hyperbolic_step(
    theta: Array, grad: Array, *, lr: float, alpha: float, beta: float = 0.0, signs_of: Array | None = None
) -> Array:
    """HYP* with s = theta, HYP with s the weights before the base step (sections 3 and 3.1).

        theta <- theta exp(-lr (alpha sign(s) grad + beta))

    Args:
        theta: the weights after the base step.
        grad: the gradient that the base step saw.
        lr: the learning rate.
        alpha: strength of the hyperbolic awareness.
        beta: strength of the multiplicative weight decay.
        signs_of: s; None: theta.
    """
    xp, theta = arrays(theta)
    sign = xp.sign(theta if signs_of is None else signs_of)
    return theta * xp.exp(-(lr * alpha) * (sign * grad) - lr * beta)


def ham_step(
    theta: Array, grad: Array, *, lr: float, alpha: float, beta: float = 0.0, signed: bool = False
) -> Array:
    """GD, then HYP* (Algorithm 1). With `signed`: GD, then HYP ("HAM signed" in App. G.1)."""
    after_gd = gd_step(theta, grad, lr=lr)
    return hyperbolic_step(after_gd, grad, lr=lr, alpha=alpha, beta=beta, signs_of=theta if signed else None)


def exponential_step(theta: Array, grad: Array, *, lr: float, beta: float = 0.0) -> Array:
    """Eq. 3, theta exp(-lr (2 sign(theta) grad + 4 beta)): descent on m and w to first order."""
    return hyperbolic_step(theta, grad, lr=lr, alpha=2, beta=4 * beta)


def factor_step(m: Array, w: Array, grad: Array, *, lr: float, beta: float = 0.0) -> tuple[Array, Array]:
    """Gradient descent on m and w, `grad` with respect to m * w (the flow above Eq. 1, discretized)."""
    return m - lr * (w * grad + 2 * beta * m), w - lr * (m * grad + 2 * beta * w)


def linear_rate(kind: str, pl_constant: float, *, gamma: Array | float | None = None) -> float:
    """The r with f(theta_t) - f* <= exp(-r t) (f(theta_0) - f*) under the PL-inequality (Theorems 4.1, 4.3).

    df = -grad f g^-1 grad f dt <= -2 sigma Lambda (f - f*) dt with sigma the smallest inverse metric: 1 for
    GD and HAM (alpha >= 0), min gamma for m * w. The paper states sigma Lambda, a valid and looser rate.

    Args:
        kind: "gd", "product" or "ham".
        pl_constant: Lambda in Definition A.2.
        gamma: Table 2's gamma for "product", or |m^2 - w^2|, a lower bound of the factors' metric, for
            their flow.
    """
    if kind != "product":
        strengths(kind, 0.0, None)
        return 2 * pl_constant
    if gamma is None:
        raise ValueError("kind 'product' needs gamma=, its inverse metric at zero")
    return 2 * pl_constant * float(np.min(gamma))


def integrate(
    field: Callable[[float, np.ndarray], np.ndarray],
    start: np.ndarray,
    times: np.ndarray,
    rtol: float = 1e-10,
) -> np.ndarray:
    """The solution of d state = field(t, state) dt, one row per time.

    Raises:
        RuntimeError: the integrator failed, for example because the flow left its domain.
    """
    from scipy.integrate import solve_ivp

    start = np.asarray(start, dtype=np.float64)
    times = np.asarray(times, dtype=np.float64)
    solution = solve_ivp(
        field, (times[0], times[-1]), start, method="LSODA", t_eval=times, rtol=rtol, atol=rtol * 1e-3
    )
    if not solution.success:
        raise RuntimeError(f"the flow could not be integrated to t = {times[-1]:g}: {solution.message}")
    return solution.y.T
