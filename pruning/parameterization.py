"""How a weight is parameterized: plainly, or as the product m * w with Sign-In's resets and decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .masks import FIRST_MOMENTS, elementwise_state
from .product import PointwiseProduct
from .registry import register_in
from .weights import ProductWeight, parametrize_, prunable_weights

Kind = TypeVar("Kind", bound="type[Plain]")

PARAMETERIZATIONS: dict[str, type[Plain]] = {}
"""Name -> class of every parameterization whose module was imported."""


def register_parameterization(name: str) -> Callable[[Kind], Kind]:
    """A class decorator that makes a parameterization available to configurations as `name`.

    configs/parameterization/<name>.yaml composes over <name>_schema, whose keys are the fields of the class.

    Raises:
        ValueError: another parameterization has that name.
    """
    return register_in(PARAMETERIZATIONS, name)


@register_parameterization("plain")
@dataclass
class Plain:
    """Every weight is itself; the base of other parameterizations. Fields are hyperparameters alone."""

    trains_factors: ClassVar[bool] = False
    """Are the weights trained as products m * w?"""

    def attach(self, model: nn.Module, *, total_epochs: int) -> None:
        """Parametrize the model's prunable weights, before the sparsifier looks for them."""

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Reset what the method resets at epoch `epoch`, counted from 0."""

    def add_decay(self) -> None:
        """Add the gradient of the parameterization's penalty to the gradients of its parameters."""

    separate_decay: ClassVar[bool] = False
    """Set it to True on an instance to keep the gradients without decay for `remove_decay`."""

    _clean: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def keep_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Keep what `add_decay` is about to change, where `separate_decay` is set."""
        if self.separate_decay:
            self._clean = [*self._clean, *((p, p.grad.clone()) for p in parameters)]

    def remove_decay(self) -> None:
        """Give back the gradients from before `add_decay`, where `separate_decay` is set."""
        for parameter, gradient in self._clean:
            parameter.grad = gradient
        self._clean = []

    def weight_decays(self) -> dict[Tensor, float]:
        """Parameters whose weight decay the optimizer must not choose -> what it is."""
        return {}


@register_parameterization("product")
@dataclass
class Product(Plain):
    """theta = m * w on every prunable weight (Jacobs & Burkholz, 2025); with resets it is Sign-In.

    Sign-In (Gadhikar et al., 2025) rebalances to m^2 - w^2 = `scaling` at intervals with theta fixed, which
    keeps the inverse metric at theta = 0 from vanishing. The optimizer's weight decay leaves the factors
    alone (`Sparsifier.param_groups` sees to it); the penalties below take its place.

    Args:
        scaling: m^2 - w^2 at the start and after a reset.
        frobenius: decay of the product: theta's gradient gets `frobenius` * theta before the chain rule.
        decay: decay of the factors: the gradient of m gets `decay` * m, that of w `decay` * w. It acts as an
            L1 penalty on theta.
        reset_every: epochs between resets; 0: never. Sign-In's own interval is not published.
        reset_until: share of all epochs after which no reset happens.
        carry_momentum: give the new factors the momentum of the product; else theirs is zeroed.
    """

    scaling: float = 1.0
    frobenius: float = 5e-5
    decay: float = 0.0
    reset_every: int = 0
    reset_until: float = 0.75
    carry_momentum: bool = True

    trains_factors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        if not self.scaling > 0:
            raise ValueError(f"scaling must be positive, got {self.scaling:g}; Sign-In uses 1")
        for name in ("frobenius", "decay", "reset_every"):
            if not getattr(self, name) >= 0:  # nor nan
                raise ValueError(f"{name} must not be negative, got {getattr(self, name):g}")
        if not 0 <= self.reset_until <= 1:
            raise ValueError(f"reset_until is a share of the epochs, in [0, 1], got {self.reset_until:g}")

    def attach(self, model: nn.Module, *, total_epochs: int) -> None:
        """Split every prunable weight into balanced factors. Raises ValueError where weights are shared."""
        parametrize_(model, lambda: PointwiseProduct(self.scaling))
        self.weights = [w for w in prunable_weights(model).values() if isinstance(w, ProductWeight)]
        self._last_reset = Fraction(repr(float(self.reset_until))) * total_epochs  # .58 of 100 is 58

    def resets(self, epoch: int) -> bool:
        """Are the factors rebalanced at the start of this epoch?"""
        due = self.reset_every > 0 and epoch > 0 and epoch % self.reset_every == 0
        return due and epoch <= self._last_reset

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Rebalance the factors where a reset is due."""
        if self.resets(epoch):
            for weight in self.weights:
                rebalance_(weight, optimizer, carry_momentum=self.carry_momentum)

    @torch.no_grad()
    def add_decay(self) -> None:
        """g_m += w * frobenius * theta + decay * m, g_w += m * frobenius * theta + decay * w."""
        for weight in self.weights:
            m, w = weight.parameters
            if m.grad is None or w.grad is None:
                continue
            self.keep_gradients((m, w))
            if self.frobenius > 0:
                pull = self.frobenius * (m * w)
                m.grad.addcmul_(w, pull)
                w.grad.addcmul_(m, pull)
            if self.decay > 0:
                m.grad.add_(m, alpha=self.decay)
                w.grad.add_(w, alpha=self.decay)

    def weight_decays(self) -> dict[Tensor, float]:
        """None on the factors."""
        return {parameter: 0.0 for weight in self.weights for parameter in weight.parameters}


@torch.no_grad()
def rebalance_(weight: ProductWeight, optimizer: Optimizer, *, carry_momentum: bool = True) -> None:
    """Rebalance the factors of one weight and turn their momenta with them.

    The product's velocity V = (m v_w + w v_m) / (m^2 + w^2) stays what it was: v_m = V w', v_w = V m'. Adam's
    second moments stay too. Zeroed momenta would change the next step of the product by 85 to 97 %; carried
    over, only the metric m^2 + w^2 changes, by about as much as the balance had drifted.
    """
    m, w = weight.parameters
    states = [elementwise_state(optimizer, p) for p in (m, w)]
    velocities = {
        key: weight.gradient_from([states[0][key], states[1][key]])
        for key in FIRST_MOMENTS
        if all(key in state for state in states)
    }
    weight.write_(weight.value)
    for key, velocity in velocities.items():
        for state, other in zip(states, (w, m), strict=True):
            if carry_momentum:
                torch.mul(velocity, other, out=state[key])
            else:
                state[key].zero_()
