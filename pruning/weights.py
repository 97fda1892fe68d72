"""What can be pruned, and what a prunable weight is: a tensor, a product m * w, or computed otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from .product import PointwiseProduct, rebalance

_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_LAYERS = {_ConvNd: ("weight",), nn.Linear: ("weight",), nn.MultiheadAttention: _PROJECTIONS}


class Weight:
    """One prunable weight theta: here a plain parameter. Pruned means theta = +0.0, at its resting place.

    Attributes:
        parameters: the trained tensors behind theta, each of theta's shape.
        rest: the value of each of them where theta is pruned.
    """

    rest: tuple[float, ...] = (0.0,)

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
        """Theta, detached; for a plain weight the very memory of the parameter."""
        return self.parameters[0].detach()

    @property
    def gradient(self) -> Tensor | None:
        """The gradient with respect to theta, pruned positions included, or None without a backward pass."""
        gradients = [p.grad for p in self.parameters]
        return None if any(g is None for g in gradients) else self.gradient_from(gradients)

    def gradient_from(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient with respect to theta from those with respect to `parameters`."""
        return gradients[0]

    @torch.no_grad()
    def write_(self, theta: Tensor, at: Tensor | None = None) -> None:
        """Make theta this value, everywhere or `at` the entries that are True."""
        self._put_([theta], at)

    def _put_(self, values: Sequence[Tensor], at: Tensor | None) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value if at is None else torch.where(at, value, parameter))

    @torch.no_grad()
    def zero_(self, pruned: Tensor) -> None:
        """Put pruned entries (True) to rest. `masked_fill_`: a product with a mask leaves -0.0 and nan."""
        for parameter, value in zip(self.parameters, self.rest, strict=True):
            parameter.masked_fill_(pruned, value)

    @torch.no_grad()
    def zero_gradient_(self, pruned: Tensor) -> None:
        """Write +0.0 into the gradients of pruned entries."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0.0)


class ProductWeight(Weight):
    """theta = m * w; a pruned entry rests at (sqrt(scaling), 0), where a step is `scaling` times a plain one.

    Args:
        m: first factor.
        w: second factor, of the same shape.
        scaling: m^2 - w^2 of a newly written theta.
    """

    def __init__(self, m: Tensor, w: Tensor, scaling: float = 1.0) -> None:
        self.parameters = (m, w)
        self.scaling = scaling
        self.rest = (scaling**0.5, 0.0)

    @property
    def value(self) -> Tensor:
        """Theta = m * w, in memory of its own; +0.0 wherever it is zero."""
        m, w = self.parameters
        return (m.detach() * w.detach()).add_(0.0)

    def gradient_from(self, gradients: Sequence[Tensor]) -> Tensor:
        """(m g_w + w g_m) / (m^2 + w^2), which is finite at m = 0 where g_w / m is not."""
        (m, w), (g_m, g_w) = (p.detach() for p in self.parameters), gradients
        return (m * g_w + w * g_m) / (m.square() + w.square()).clamp_(min=torch.finfo(m.dtype).tiny)

    @torch.no_grad()
    def write_(self, theta: Tensor, at: Tensor | None = None) -> None:
        """Make theta this value, in balance; factors of other entries than those `at` True stay."""
        self._put_(rebalance(theta, self.scaling), at)


class ComputedWeight(Weight):
    """A weight that a parametrization computes, such as STR's; it cannot be pruned by a mask."""

    def __init__(self, module: nn.Module, attribute: str) -> None:
        self._module, self._attribute = module, attribute
        self.parameters = tuple(module.parametrizations[attribute].parameters(recurse=False))

    @property
    def value(self) -> Tensor:
        """Theta, computed anew."""
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
        """Refused: what reaches the parameters says nothing of pruned entries."""
        raise ValueError(self._refusal())

    def write_(self, theta: Tensor, at: Tensor | None = None) -> None:
        """Refused."""
        raise ValueError(self._refusal())

    def zero_(self, pruned: Tensor) -> None:
        """Refused."""
        raise ValueError(self._refusal())

    def _refusal(self) -> str:
        kinds = ", ".join(type(p).__name__ for p in self._module.parametrizations[self._attribute])
        return f"a weight computed by {kinds} takes no mask: remove that parametrization first"


def prunable_weights(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, Weight]:
    """Qualified name -> weight of linear, convolution and attention layers; no biases, no norm layers.

    Args:
        model: any module; a weight shared by several layers appears once. Names are those of the plain model,
            "conv1.weight" whatever parametrizes it, in the order of `model.named_modules()`.
        exclude: globs of names to keep dense, such as "conv1.weight" or "head.*".

    Raises:
        ValueError: a glob that matches nothing, or nothing left to prune.
    """
    found: dict[str, Weight] = {}
    seen: set[int] = set()
    for name, module, attribute in places(model):
        weight = weight_of(module, attribute)
        identity = id(weight.parameters[0])
        if weight.parameters[0].requires_grad and identity not in seen:
            seen.add(identity)
            found[name] = weight
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"exclude={pattern!r} matches no prunable weight; names are like conv1.weight")
    kept = {n: w for n, w in found.items() if not any(fnmatchcase(n, pattern) for pattern in exclude)}
    if not kept:
        raise ValueError("nothing to prune: no linear or convolution weight is trainable and not excluded")
    return kept


def places(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """(qualified name, module, attribute) of every weight of a prunable layer, shared ones each time."""
    return [
        (f"{prefix}.{attribute}" if prefix else attribute, module, attribute)
        for prefix, module in model.named_modules()
        for kind, attributes in _LAYERS.items()
        if isinstance(module, kind)
        for attribute in attributes
        if getattr(module, attribute, None) is not None
    ]


def parametrize_(
    model: nn.Module, make: Callable[[], nn.Module], exclude: Iterable[str] = ()
) -> list[nn.Module]:
    """Register `make()` on every prunable weight; returns the parametrizations, in the order of the weights.

    A parametrization's own parameters are put on the device of its weight, in the weight's dtype.

    Raises:
        ValueError: a weight is shared between layers or parametrized already.
    """
    wanted = prunable_weights(model, exclude)
    owners: dict[int, str] = {}
    chosen = []
    for name, module, attribute in places(model):
        if parametrize.is_parametrized(module, attribute):
            raise ValueError(f"{name} is parametrized already: attach to the plain model, and once")
        parameter = getattr(module, attribute)
        if id(parameter) in owners:
            raise ValueError(f"{name} shares its weight with {owners[id(parameter)]}: untie them first")
        owners[id(parameter)] = name
        if name in wanted:
            chosen.append((module, attribute))
    made = []
    for module, attribute in chosen:
        weight = getattr(module, attribute)
        made.append(make().to(device=weight.device, dtype=weight.dtype))
        parametrize.register_parametrization(module, attribute, made[-1])
    return made


def weight_of(module: nn.Module, attribute: str) -> Weight:
    """The weight behind an attribute of a module, whatever parametrizes it."""
    if not parametrize.is_parametrized(module, attribute):
        return Weight(getattr(module, attribute))
    steps = module.parametrizations[attribute]
    if len(steps) == 1 and isinstance(steps[0], PointwiseProduct):
        return ProductWeight(steps.original0, steps.original1, steps[0].scaling)
    return ComputedWeight(module, attribute)
