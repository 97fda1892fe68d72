"""Inverse metrics, HAM's Bregman function and the regularizers they induce (Table 2, Lemma 4.4, Eq. 10).

Torch tensors give torch tensors (differentiable); anything else becomes a numpy array. With x = alpha |theta|
both functions are theta^2 times a smooth function of x. For small x it is computed from its series, because
the closed forms subtract nearly equal numbers there.
"""

from __future__ import annotations

from types import ModuleType
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)
KINDS = ("gd", "product", "ham")
_SERIES_BELOW, _TERMS = 0.05, 13  # 0.05^13 is below float64's rounding


def inverse_metric(
    theta: Array, kind: str, *, alpha: float | None = None, gamma: float | None = None
) -> Array:
    """1 for "gd", sqrt(theta^2 + gamma^2) for "product", 1 + alpha |theta| for "ham" (Table 2).

    "product" is m * w with gamma = (m^2 - w^2) / 2 and time scaled by 2: gradient flow on the factors has
    sqrt(4 theta^2 + (m^2 - w^2)^2) (`factor_inverse_metric`), which is twice this.

    Args:
        theta: any shape.
        kind: "gd", "product" or "ham".
        alpha: HAM's strength, required by "ham". If it is negative (nHAM), the result is <= 0, and not the
            inverse of a metric, for |theta| >= 1 / |alpha|.
        gamma: the product's scale, required by "product".

    Returns:
        An array of the shape and type of theta.

    Raises:
        ValueError: an unknown kind or a missing strength.
    """
    xp, theta = arrays(theta)
    alpha, gamma = strengths(kind, alpha, gamma)
    if kind == "ham":
        return 1 + alpha * abs(theta)
    if kind == "product":
        return xp.hypot(theta, xp.full_like(theta, gamma))
    return xp.ones_like(theta)


def factor_inverse_metric(m: Array, w: Array) -> Array:
    """m^2 + w^2 = sqrt(4 theta^2 + (m^2 - w^2)^2): theta = m w's inverse metric in gradient flow on m and w.

    At theta = 0 it is |m^2 - w^2|, the quantity of Figure 5 (App. F).
    """
    return m * m + w * w


def bregman(theta: Array, alpha: float, theta0: Array | float = 0.0) -> Array:
    """R_alpha(theta), whose Hessian is HAM's metric and whose gradient is zero at theta0 (Lemma 4.4).

        sum_i ((x_i + 1) ln(x_i + 1) - x_i) / alpha^2 - theta_i sign(theta0_i) ln(1 + x0_i) / alpha

    with x = alpha |theta|; x0 = alpha |theta0|; alpha = 0 is its limit, theta^2 / 2 - theta theta0.

    Args:
        theta: any shape; the sum is over the last axis.
        alpha: any number. A negative one (nHAM) restricts theta and theta0 to |theta| < 1 / |alpha|.
        theta0: the initialization, a number or an array that broadcasts with theta.

    Returns:
        One value per row: the shape of theta without the last axis.

    Raises:
        ValueError: alpha < 0 and |theta| >= 1 / |alpha|, where the function is undefined or not convex.
    """
    _, theta = arrays(theta)
    x = _check_domain(theta, alpha)
    return _total(theta * theta * _entropy(x) - theta * _dual(like(theta, theta0), alpha))


def bregman_gradient(theta: Array, alpha: float, theta0: Array | float = 0.0) -> Array:
    """sign(theta) ln(1 + alpha |theta|) / alpha - the same at theta0: the mirror map (Lemma 4.4)."""
    _, theta = arrays(theta)
    return _dual(theta, alpha) - _dual(like(theta, theta0), alpha)


def bregman_hessian(theta: Array, alpha: float) -> Array:
    """1 / (1 + alpha |theta|), the diagonal of R_alpha's Hessian: HAM's metric (Lemma 4.4)."""
    _, theta = arrays(theta)
    _check_domain(theta, alpha)
    return 1 / inverse_metric(theta, "ham", alpha=alpha)


def inverse_mirror_map(dual: Array, alpha: float, theta0: Array | float = 0.0) -> Array:
    """The theta with bregman_gradient(theta, alpha, theta0) = dual: sign(z) (exp(alpha |z|) - 1) / alpha.

    Negative alpha reaches all duals: theta then stays within 1 / |alpha|.
    """
    xp, dual = arrays(dual)
    z = dual + _dual(like(dual, theta0), alpha)
    return z if alpha == 0 else xp.sign(z) * xp.expm1(alpha * abs(z)) / alpha


def on_manifold_regularizer(
    theta: Array, kind: str, *, alpha: float | None = None, gamma: float | None = None
) -> Array:
    """M(theta) = sum_i integral of z g(z): weight decay beta makes the flow minimize f + beta M (Eq. 10).

    theta^2 / 2 for "gd", (x - ln(1 + x)) / alpha^2 with x = alpha |theta| for "ham". For "product" it is
    sqrt(theta^2 + gamma^2), as Eq. 10 prints it; the integral is gamma less, a constant for the flow.

    Args:
        theta: any shape; the sum is over the last axis.
        kind: "gd", "product" or "ham".
        alpha: HAM's strength, needed by "ham".
        gamma: the product's scale, needed by "product".

    Returns:
        Theta's shape without the last axis.

    Raises:
        ValueError: as `inverse_metric` and `bregman`.
    """
    _, theta = arrays(theta)
    alpha, gamma = strengths(kind, alpha, gamma)
    if kind == "product":
        return _total(inverse_metric(theta, "product", gamma=gamma))
    return _total(theta * theta * _decay(_check_domain(theta, alpha)))


def arrays(theta: Array) -> tuple[ModuleType, Array]:
    """The library of theta (torch or numpy), and theta as a floating-point array of that library."""
    if isinstance(theta, torch.Tensor):
        return torch, theta if theta.is_floating_point() else theta.to(torch.get_default_dtype())
    theta = np.asarray(theta)
    return np, theta if np.issubdtype(theta.dtype, np.floating) else theta.astype(np.float64)


def like(theta: Array, other: Array | float) -> Array:
    """`other` as an array of theta's library, dtype and device."""
    if isinstance(theta, torch.Tensor):
        return torch.as_tensor(other, dtype=theta.dtype, device=theta.device)
    return np.asarray(other, dtype=theta.dtype)


def strengths(kind: str, alpha: float | None, gamma: float | None) -> tuple[float, float]:
    """Alpha and gamma, 0 if the kind does not use them; ValueError if one that it uses is missing."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "ham" and alpha is None:
        raise ValueError(
            "kind 'ham' needs alpha=, the strength of the hyperbolic awareness (1000 in App. G.1)"
        )
    if kind == "product" and gamma is None:
        raise ValueError("kind 'product' needs gamma=, its inverse metric at zero")
    return (alpha if kind == "ham" else 0.0), (gamma if kind == "product" else 0.0)


def _check_domain(theta: Array, alpha: float) -> Array:
    """Return x = alpha |theta|; ValueError if an element is <= -1."""
    x = alpha * abs(theta)
    if alpha < 0 and bool((x <= -1).any()):
        raise ValueError(
            f"alpha = {alpha:g} needs |theta| < {-1 / alpha:g}: from there on 1 + alpha |theta| is not "
            "positive and the metric is undefined"
        )
    return x


def _dual(theta: Array, alpha: float) -> Array:
    """sign(theta) ln(1 + alpha |theta|) / alpha, or theta at alpha = 0."""
    xp, theta = arrays(theta)
    x = _check_domain(theta, alpha)
    return theta if alpha == 0 else xp.sign(theta) * xp.log1p(x) / alpha


def _entropy(x: Array) -> Array:
    """((1 + x) ln(1 + x) - x) / x^2, 1/2 at 0."""
    xp, safe = _away_from_zero(x)
    closed = ((1 + safe) * xp.log1p(safe) - safe) / (safe * safe)
    return xp.where(
        abs(x) < _SERIES_BELOW, _series(x, [1 / ((k + 1) * (k + 2)) for k in range(_TERMS)]), closed
    )


def _decay(x: Array) -> Array:
    """(x - ln(1 + x)) / x^2, 1/2 at 0."""
    xp, safe = _away_from_zero(x)
    closed = (safe - xp.log1p(safe)) / (safe * safe)
    return xp.where(abs(x) < _SERIES_BELOW, _series(x, [1 / (k + 2) for k in range(_TERMS)]), closed)


def _away_from_zero(x: Array) -> tuple[ModuleType, Array]:
    xp, x = arrays(x)
    return xp, xp.where(abs(x) < _SERIES_BELOW, xp.ones_like(x), x)


def _series(x: Array, coefficients: list[float]) -> Array:
    """sum_k coefficients[k] (-x)^k by Horner's rule; large x, for which it is not used, become 0."""
    xp, x = arrays(x)
    x = xp.where(abs(x) < _SERIES_BELOW, x, xp.zeros_like(x))
    value = xp.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = coefficient - x * value
    return value


def _total(values: Array) -> Array:
    """The sum over the last axis; a 0-dim array is returned unchanged."""
    return values.sum(-1) if values.ndim else values
