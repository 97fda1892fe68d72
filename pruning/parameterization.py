"""Parameterizations of a weight: the weight itself, or the product m * w with Sign-In's resets and decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .deprecation import warn_renamed
from .optimizer_state import (
    FIRST_MOMENTS,
    elementwise_state,
    is_split_by_parameters,
    warn_of_unknown_momentum,
)
from .options import check_options
from .product import PointwiseProduct
from .prunable import parametrize_, prunable_weights
from .registry import register_in
from .weights import ProductWeight

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
    """Every weight is itself; the base class of other parameterizations. Fields are hyperparameters only.

    Attributes:
        decoupled_decay: keep the gradients without decay for `remove_decay`, so that HAM, whose hook runs
            later, reads gradients without decay. `Sparsifier.hook` sets it where the optimizer has HAM; a
            loop that calls `add_decay` itself sets it, and registers `remove_decay` as a step post-hook.
    """

    trains_factors: ClassVar[bool] = False
    """True if the weights are trained as products m * w."""

    decoupled_decay = False  # without annotations: these are not hyperparameters
    _saved_gradients = tuple[tuple[Tensor, Tensor], ...]()

    def __post_init__(self) -> None:
        """Raise ValueError on values of another type than a field's."""
        check_options(self)

    @property
    def changes_at_epochs(self) -> bool:
        """True if `on_epoch_start` changes the weights, so that a loop must call it."""
        return False

    @property
    def has_penalty(self) -> bool:
        """True if `add_decay` adds a penalty."""
        return False

    def attach(
        self,
        model: nn.Module,
        *,
        total_epochs: int,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
    ) -> None:
        """Parametrize the model's prunable weights, before the sparsifier looks for them.

        Args:
            model: the model, changed in place.
            total_epochs: number of epochs of the entire training.
            include: globs of further parameters, see `prunable_weights`.
            exclude: globs of weights that are not parametrized.
        """

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise ValueError where the parameterization cannot work with the optimizer."""

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Called at the start of epoch `epoch`, counted from 0."""

    def add_decay(self) -> None:
        """Add the gradient of the parameterization's penalty to the gradients of its parameters."""

    @property
    def separate_decay(self) -> bool:
        """Deprecated: `decoupled_decay`."""
        warn_renamed("separate_decay", "decoupled_decay")
        return self.decoupled_decay

    @separate_decay.setter
    def separate_decay(self, value: bool) -> None:
        warn_renamed("separate_decay", "decoupled_decay")
        self.decoupled_decay = value

    def save_gradients(self, parameters: Iterable[Tensor]) -> None:
        """With `decoupled_decay`, copy the gradients that `add_decay` is about to change."""
        if self.decoupled_decay:
            kept = [(p, p.grad.clone()) for p in parameters if p.grad is not None]
            self._saved_gradients = (*self._saved_gradients, *kept)

    def remove_decay(self, *_: object) -> None:
        """With `decoupled_decay`, restore the gradients from before `add_decay`, except cleared ones.

        It may be registered as a step post-hook; HAM then runs after it.
        """
        for parameter, gradient in self._saved_gradients:
            if parameter.grad is not None:
                parameter.grad = gradient
        self._saved_gradients = ()

    remove_decay.restores_gradients = True  # type: ignore[attr-defined]

    def weight_decays(self) -> dict[Tensor, float]:
        """Parameter -> weight decay, for those whose decay the parameterization sets."""
        return {}


@register_parameterization("product")
@dataclass
class Product(Plain):
    """theta = m * w on every prunable weight (Jacobs & Burkholz, 2025); with resets it is Sign-In.

    Sign-In (Gadhikar et al., 2025) rebalances to m^2 - w^2 = `scaling` at intervals with theta fixed, which
    keeps the inverse metric at theta = 0 from vanishing. The optimizer's weight decay does not act on the
    factors (see `Sparsifier.param_groups`); the penalties below replace it.

    Args:
        scaling: m^2 - w^2 at the start and after a reset.
        frobenius: decay of the product: `frobenius` * theta is added to theta's gradient before the chain
            rule.
        decay: decay of the factors: `decay` * m is added to the gradient of m, `decay` * w to that of w. It
            acts as an L1 penalty on theta.
        reset_every: epochs between resets; 0: never. Sign-In's own interval is not published.
        reset_until: fraction of all epochs after which no reset happens.
        carry_momentum: True to give the new factors the momentum of the product; False zeroes their momentum.
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
        super().__post_init__()
        if not self.scaling > 0:
            raise ValueError(f"scaling must be positive, got {self.scaling:g}; Sign-In uses 1")
        for name in ("frobenius", "decay", "reset_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name):g}")
        if not 0 <= self.reset_until <= 1:
            raise ValueError(
                f"reset_until must be a fraction of the epochs in [0, 1], got {self.reset_until:g}"
            )

    @property
    def changes_at_epochs(self) -> bool:
        """True if there are resets."""
        return self.reset_every > 0

    @property
    def has_penalty(self) -> bool:
        """True if one of the two penalties is positive."""
        return self.frobenius > 0 or self.decay > 0

    def attach(
        self,
        model: nn.Module,
        *,
        total_epochs: int,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
    ) -> None:
        """Split every prunable weight into balanced factors. Raises ValueError where weights are shared."""
        parametrize_(model, lambda: PointwiseProduct(self.scaling), exclude, include)
        weights = prunable_weights(model, exclude, include)
        self.weights = [w for w in weights.values() if isinstance(w, ProductWeight)]
        self._has_warned = False
        self._last_reset = Fraction(repr(float(self.reset_until))) * total_epochs  # exact: .58 of 100 is 58

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise ValueError where the two momenta that a reset combines are on different ranks."""
        if self.changes_at_epochs and self.carry_momentum and is_split_by_parameters(optimizer):
            raise ValueError(
                "ZeroRedundancyOptimizer keeps the momenta of the two factors on different ranks: set "
                "Product(carry_momentum=False), or use another optimizer"
            )

    def is_reset_epoch(self, epoch: int) -> bool:
        """Return True if the factors are rebalanced at the start of this epoch."""
        due = self.reset_every > 0 and epoch > 0 and epoch % self.reset_every == 0
        return due and epoch <= self._last_reset

    def resets(self, epoch: int) -> bool:
        """Deprecated: `is_reset_epoch`."""
        warn_renamed("Product.resets", "Product.is_reset_epoch")
        return self.is_reset_epoch(epoch)

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Rebalance the factors where a reset is due."""
        if self.is_reset_epoch(epoch):
            for weight in self.weights:
                rebalance_(weight, optimizer, carry_momentum=self.carry_momentum)
            factors = [factor for weight in self.weights for factor in weight.parameters]
            self._has_warned = self._has_warned or warn_of_unknown_momentum(
                optimizer, factors, "the reset of Product"
            )

    @torch.no_grad()
    def add_decay(self) -> None:
        """g_m += w * frobenius * theta + decay * m, g_w += m * frobenius * theta + decay * w."""
        pairs = [weight.parameters for weight in self.weights]
        pairs = [(m, w) for m, w in pairs if m.grad is not None and w.grad is not None]
        self.save_gradients(factor for pair in pairs for factor in pair)
        in_one_launch = pairs and pairs[0][0].device.type != "cpu"  # a CPU's cache holds one layer
        for group in [pairs] if in_one_launch else ([pair] for pair in pairs):
            self._add_decay_to(*map(list, zip(*group, strict=True)))

    def _add_decay_to(self, ms: list[Tensor], ws: list[Tensor]) -> None:
        grads_m, grads_w = [m.grad for m in ms], [w.grad for w in ws]
        if self.frobenius > 0:
            penalties = torch._foreach_mul(ms, ws)
            torch._foreach_mul_(penalties, self.frobenius)
            torch._foreach_addcmul_(grads_m, ws, penalties)
            torch._foreach_addcmul_(grads_w, ms, penalties)
        if self.decay > 0:
            torch._foreach_add_(grads_m, ms, alpha=self.decay)
            torch._foreach_add_(grads_w, ws, alpha=self.decay)

    def weight_decays(self) -> dict[Tensor, float]:
        """Zero on the factors."""
        return {parameter: 0.0 for weight in self.weights for parameter in weight.parameters}


@torch.no_grad()
def rebalance_(weight: ProductWeight, optimizer: Optimizer, *, carry_momentum: bool = True) -> None:
    """Rebalance the factors of one weight and transform their momenta accordingly.

    The product's velocity V = (m v_w + w v_m) / (m^2 + w^2) is preserved: v_m = V w', v_w = V m'. Adam's
    second moments do not change. Zeroed momenta would change the next step of the product by 85 to 97 %;
    with transformed ones only the metric m^2 + w^2 changes, by about as much as the balance had drifted.
    """
    m, w = weight.parameters
    states = [elementwise_state(optimizer, p) for p in (m, w)]
    if not carry_momentum:
        for state, key in product(states, FIRST_MOMENTS):
            if key in state:
                state[key].zero_()
    velocities = {
        key: weight.gradient_from([states[0][key], states[1][key]])
        for key in FIRST_MOMENTS
        if carry_momentum and all(key in state for state in states)
    }
    weight.assign_(weight.value)
    for key, velocity in velocities.items():
        for state, other in zip(states, (w, m), strict=True):
            torch.mul(velocity, other, out=state[key])
