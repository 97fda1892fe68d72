"""One ReLU neuron that must flip signs (App. E): student a relu(w z), teacher, Eq. 12, four sign cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .flows import integrate
from .metrics import Array, arrays, inverse_metric, on_manifold_regularizer

SIGN_CASES = ((1, 1), (-1, 1), (1, -1), (-1, -1))  # of (a, w) at the start; the teacher's are (1, 1)


@dataclass(frozen=True)
class Neuron:
    """f(a, w) = sum_i (y_i - a relu(w z_i))^2 / 2d, with the sufficient statistics of the data (App. E).

    Attributes:
        positive: mean of max(0, z)^2, the paper's C.
        negative: mean of max(0, -z)^2.
        target: teacher_a teacher_w, with teacher_w > 0.
    """

    positive: float
    negative: float
    target: float = 1.0

    @classmethod
    def from_inputs(cls, z: np.ndarray, target: float = 1.0) -> Neuron:
        """The problem with inputs z, one number per sample."""
        return cls(float(np.mean(np.maximum(z, 0) ** 2)), float(np.mean(np.maximum(-z, 0) ** 2)), target)

    def loss(self, a: Array, w: Array) -> Array:
        """f; for w < 0 the student is active on the samples for which the teacher is not."""
        xp, w = arrays(w)
        product = a * w
        same_side = self.positive * (product - self.target) ** 2
        other_side = self.positive * self.target**2 + self.negative * product**2
        return xp.where(w > 0, same_side, other_side) / 2

    def gradient(self, a: float, w: float) -> tuple[float, float]:
        """df/da and df/dw; the derivative of relu at 0 is 0, as in torch."""
        if w > 0:
            error = self.positive * (a * w - self.target)
        elif w < 0:
            error = self.negative * a * w
        else:
            error = 0.0
        return error * w, error * a


def neuron_flow(
    neuron: Neuron,
    a0: float,
    w0: float,
    times: np.ndarray,
    kind: str,
    strengths: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """The student's Riemannian gradient flow (Eq. 12 for "ham").

        da = -g^-1(a) df/da dt,   dw = -g^-1(w) df/dw dt

    Args:
        neuron: the objective.
        a0: initial outer weight.
        w0: initial inner weight; the start is balanced if |a0| = |w0|.
        times: increasing.
        kind: "gd", "ham" or "product".
        strengths: strengths of a and w: (alpha_1, alpha_2) for "ham", (gamma_1, gamma_2) for "product".

    Returns:
        a and w, one row per time.
    """

    def field(_: float, state: np.ndarray) -> np.ndarray:
        slopes = neuron.gradient(*state)
        rates = [inverse_metric(x, kind, alpha=s, gamma=s) for x, s in zip(state, strengths, strict=True)]
        return -np.array(rates) * slopes

    return integrate(field, np.array([a0, w0]), times)


def balance(a: Array, w: Array, strengths: tuple[float, float] = (0.0, 0.0)) -> Array:
    """M_alpha1(a) - M_alpha2(w), which Eq. 12 conserves; (a^2 - w^2) / 2 at alpha = 0 (Lemma E.1).

    It is conserved because a df/da = w df/dw. M decreases in alpha, so a balanced start with
    alpha_1 > alpha_2 has a negative balance: a can cross zero and w cannot (Theorem E.2 in one line).
    """
    _, a = arrays(a)
    _, w = arrays(w)
    first, second = strengths
    return on_manifold_regularizer(a[..., None], "ham", alpha=first) - on_manifold_regularizer(
        w[..., None], "ham", alpha=second
    )


def learned_cases(
    neuron: Neuron,
    kind: str,
    strengths: tuple[float, float] = (0.0, 0.0),
    *,
    size: float = 0.5,
    time: float = 200.0,
    tolerance: float = 1e-6,
) -> dict[tuple[int, int], bool]:
    """Whether the flow from |a| = |w| = size learns, for each sign case (Lemma E.1, Theorem E.2)."""
    result = {}
    for signs in SIGN_CASES:
        path = neuron_flow(neuron, signs[0] * size, signs[1] * size, np.array([0.0, time]), kind, strengths)
        result[signs] = bool(neuron.loss(*path[-1]) < tolerance)
    return result


def in_learning_region(a: Array, w: Array) -> Array:
    """Gamma_0 of Theorem E.2's proof for a positive target: a > -w, w > 0 (the paper prints a < -w)."""
    return (a > -w) & (w > 0)


def multidimensional_gap(w: np.ndarray, alpha: float) -> tuple[float, float, float]:
    """The three sides of Eq. 13 for inner weights w, balanced with |a| = |w|_2.

    The first is at least the third; the printed middle lies between them only if alpha |w|_1 >= sqrt(n).
    """
    n, l1 = w.size, float(np.abs(w).sum())
    outer = alpha * float(np.linalg.norm(w)) + 1
    return outer, (alpha * l1 + 1) / np.sqrt(n), alpha * l1 / n + 1
