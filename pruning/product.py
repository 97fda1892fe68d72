"""The pointwise product theta = m * w and its exact rebalancing (Sign-In, PILoT, spred)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rebalance(theta: Tensor, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """The factors (m, w) of theta with m * w = theta, m^2 - w^2 = scaling and m > 0 (Gadhikar et al., 2025).

    m = sqrt((scaling + sqrt(scaling^2 + 4 theta^2)) / 2), w = theta / m. A zero becomes (sqrt(scaling), 0);
    at theta = 0 a step of gradient descent on the factors is `scaling` times one on theta.

    Args:
        theta: weight of any shape.
        scaling: m^2 - w^2, positive.

    Returns:
        Two tensors of theta's shape and memory layout. Their product is theta to rounding.

    Raises:
        ValueError: scaling is not positive.
    """
    if not scaling > 0:
        raise ValueError(f"scaling must be positive, got {scaling:g}; Sign-In uses 1")
    half = scaling / 2  # halves, and hypot for the root: no overflow for any finite theta
    m = (half + torch.hypot(theta.new_full((), half), theta)).sqrt()
    return m, theta / m


class PointwiseProduct(nn.Module):
    """A parametrization (torch.nn.utils.parametrize) whose weight is m * w, initially `rebalance(theta)`."""

    def __init__(self, scaling: float = 1.0) -> None:
        super().__init__()
        self.scaling = scaling

    def forward(self, m: Tensor, w: Tensor) -> Tensor:
        """The weight."""
        return m * w

    def right_inverse(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of a weight."""
        return rebalance(theta, self.scaling)
