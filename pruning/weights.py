"""Prunable weights: how to find them, and how to read and write plain, product and computed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from .product import PointwiseProduct, rebalance

_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    _ConvNd: ("weight",),
    nn.Linear: ("weight",),
    nn.MultiheadAttention: _PROJECTIONS,
}

Parametrization = TypeVar("Parametrization", bound=nn.Module)


class Weight:
    """One prunable weight theta: here a plain parameter. A pruned entry of theta is +0.0.

    Attributes:
        parameters: the trained tensors behind theta, each of theta's shape.
        pruned_value: the value of each of them where theta is pruned.
    """

    pruned_value: tuple[float, ...] = (0.0,)

    def __init__(self, parameter: Tensor) -> None:
        self.parameters: tuple[Tensor, ...] = (parameter,)

    @property
    def shape(self) -> torch.Size:
        """Theta's shape."""
        return self.parameters[0].shape

    def numel(self) -> int:
        """Theta's number of entries."""
        return self.parameters[0].numel()

    @property
    def value(self) -> Tensor:
        """Theta, detached; for a plain weight it shares the parameter's memory."""
        return self.parameters[0].detach()

    @property
    def gradient(self) -> Tensor | None:
        """The gradient with respect to theta, pruned positions included, or None without a backward pass."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return self.gradient_from(gradients) if len(gradients) == len(self.parameters) else None

    def gradient_from(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient with respect to theta from those with respect to `parameters`."""
        return gradients[0]

    @torch.no_grad()
    def assign_(self, theta: Tensor, at: Tensor | None = None) -> None:
        """Set theta to this value, everywhere or only where `at` (bool, theta's shape) is True."""
        self._assign_factors_([theta], at)

    def _assign_factors_(self, values: Sequence[Tensor], at: Tensor | None) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value if at is None else torch.where(at, value, parameter))

    @torch.no_grad()
    def prune_(self, at: Tensor) -> None:
        """Prune the entries where `at` (bool, theta's shape) is True.

        By `masked_fill_`: a product with a mask would leave -0.0 and nan.
        """
        for parameter, value in zip(self.parameters, self.pruned_value, strict=True):
            parameter.masked_fill_(at, value)

    @torch.no_grad()
    def zero_gradient_(self, at: Tensor) -> None:
        """Set the gradients to +0.0 where `at` (bool, theta's shape) is True."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(at, 0.0)


class ProductWeight(Weight):
    """theta = m * w; a pruned entry is (sqrt(scaling), 0), where a step is `scaling` times a plain one.

    Args:
        m: first factor.
        w: second factor, of the same shape.
        scaling: m^2 - w^2 of a newly assigned theta.
    """

    def __init__(self, m: Tensor, w: Tensor, scaling: float = 1.0) -> None:
        self.parameters = (m, w)
        self.scaling = scaling
        self.pruned_value = (scaling**0.5, 0.0)

    @property
    def value(self) -> Tensor:
        """Theta = m * w, in new memory; its zeros are +0.0."""
        m, w = self.parameters
        return (m.detach() * w.detach()).add_(0.0)

    def gradient_from(self, gradients: Sequence[Tensor]) -> Tensor:
        """(m g_w + w g_m) / (m^2 + w^2), which is finite at m = 0 where g_w / m is not."""
        (m, w), (g_m, g_w) = (p.detach() for p in self.parameters), gradients
        return (m * g_w + w * g_m) / (m.square() + w.square()).clamp_(min=torch.finfo(m.dtype).tiny)

    @torch.no_grad()
    def assign_(self, theta: Tensor, at: Tensor | None = None) -> None:
        """Set theta to this value by balanced factors, everywhere or only where `at` is True."""
        self._assign_factors_(rebalance(theta, self.scaling), at)


class ComputedWeight(Weight):
    """A weight that a parametrization computes, such as STR's; it cannot be pruned by a mask."""

    def __init__(self, module: nn.Module, attribute: str) -> None:
        self._module, self._attribute = module, attribute
        self.parameters = tuple(_parametrizations(module, attribute).parameters(recurse=False))

    @property
    def value(self) -> Tensor:
        """Theta, computed at each access."""
        with torch.no_grad():
            return getattr(self._module, self._attribute).detach()

    @property
    def shape(self) -> torch.Size:
        """Theta's shape."""
        return self.value.shape

    def numel(self) -> int:
        """Theta's number of entries."""
        return self.value.numel()

    def gradient_from(self, gradients: Sequence[Tensor]) -> Tensor:
        """Raise ValueError: the parameters' gradients are zero at pruned entries."""
        raise ValueError(self._no_mask_error())

    def assign_(self, theta: Tensor, at: Tensor | None = None) -> None:
        """Raise ValueError."""
        raise ValueError(self._no_mask_error())

    def prune_(self, at: Tensor) -> None:
        """Raise ValueError."""
        raise ValueError(self._no_mask_error())

    def _no_mask_error(self) -> str:
        kinds = ", ".join(type(p).__name__ for p in _parametrizations(self._module, self._attribute))
        return f"a weight computed by {kinds} takes no mask: remove that parametrization first"


def prunable_weights(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, Weight]:
    """Qualified name -> weight of linear, convolution and attention layers; no biases, no norm layers.

    Args:
        model: any module; a weight shared by several layers appears once. Names are those of the plain model,
            "conv1.weight" with any parametrization, in the order of `model.named_modules()`.
        exclude: globs of names to keep dense, such as "conv1.weight" or "head.*".

    Raises:
        ValueError: a glob matches no weight, or no weight remains to prune.
    """
    weights: dict[str, Weight] = {}
    seen: set[int] = set()
    for name, module, attribute in weight_locations(model):
        weight = weight_of(module, attribute)
        identity = id(weight.parameters[0])
        if weight.parameters[0].requires_grad and identity not in seen:
            seen.add(identity)
            weights[name] = weight
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in weights):
            raise ValueError(f"exclude={pattern!r} matches no prunable weight; names are like conv1.weight")
    prunable = {n: w for n, w in weights.items() if not any(fnmatchcase(n, pattern) for pattern in exclude)}
    if not prunable:
        raise ValueError("nothing to prune: no linear or convolution weight is trainable and not excluded")
    return prunable


def weight_locations(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """(qualified name, module, attribute) of every weight of a prunable layer; shared weights repeat."""
    return [
        (f"{prefix}.{attribute}" if prefix else attribute, module, attribute)
        for prefix, module in model.named_modules()
        for kind, attributes in _LAYERS.items()
        if isinstance(module, kind)
        for attribute in attributes
        if getattr(module, attribute, None) is not None
    ]


def parametrize_(
    model: nn.Module, make: Callable[[], Parametrization], exclude: Iterable[str] = ()
) -> list[Parametrization]:
    """Register `make()` on every prunable weight and return the parametrizations in the order of the weights.

    A parametrization's own parameters get the device and the dtype of its weight.

    Raises:
        ValueError: a weight is shared between layers or parametrized already.
    """
    names = prunable_weights(model, exclude).keys()
    owners: dict[int, str] = {}
    selected = []
    for name, module, attribute in weight_locations(model):
        if parametrize.is_parametrized(module, attribute):
            raise ValueError(f"{name} is parametrized already: attach to the plain model, and once")
        parameter = getattr(module, attribute)
        if id(parameter) in owners:
            raise ValueError(f"{name} shares its weight with {owners[id(parameter)]}: untie them first")
        owners[id(parameter)] = name
        if name in names:
            selected.append((module, attribute))
    parametrizations = []
    for module, attribute in selected:
        weight = getattr(module, attribute)
        parametrization = make().to(device=weight.device, dtype=weight.dtype)
        parametrize.register_parametrization(module, attribute, parametrization)
        parametrizations.append(parametrization)
    return parametrizations


def weight_of(module: nn.Module, attribute: str) -> Weight:
    """The weight behind an attribute of a module, with any parametrization."""
    if not parametrize.is_parametrized(module, attribute):
        return Weight(getattr(module, attribute))
    steps = _parametrizations(module, attribute)
    if len(steps) == 1 and isinstance(steps[0], PointwiseProduct):
        return ProductWeight(steps.original0, steps.original1, steps[0].scaling)
    return ComputedWeight(module, attribute)


def _parametrizations(module: nn.Module, attribute: str) -> Any:
    return module.parametrizations[attribute]  # type: ignore[index]
