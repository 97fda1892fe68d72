"""GD and the hyperbolic step as natural gradients: their metrics as Fisher information (App. C)."""

from __future__ import annotations

import numpy as np

from .metrics import Array, arrays

KINDS = ("gd", "hyperbolic")


def mean_of(theta: Array, kind: str) -> Array:
    """Mean of the unit-variance normal variable that a weight parameterizes: theta, or 2 sqrt(|theta|)."""
    xp, theta = arrays(theta)
    _check(kind)
    return theta if kind == "gd" else 2 * xp.sqrt(abs(theta))


def weight_of(mean: Array, sign: Array, kind: str) -> Array:
    """Inverse of `mean_of`: mean, or sign mean^2 / 4; the mean does not contain the sign."""
    _check(kind)
    return mean if kind == "gd" else sign * mean * mean / 4


def fisher_information(theta: Array, kind: str) -> Array:
    """1 for "gd", 1 / |theta| for "hyperbolic", infinite at 0: the mean's squared slope (Eq. 11)."""
    xp, theta = arrays(theta)
    _check(kind)
    if kind == "gd":
        return xp.ones_like(theta)
    with np.errstate(divide="ignore"):
        return 1 / abs(theta)


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
