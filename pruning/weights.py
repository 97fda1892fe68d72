"""One prunable weight of a model: how to read and write plain, product and computed ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .product import PointwiseProduct, rebalance
from .shards import as_numbers, is_sharded, local, may_be_sharded, place_like, sum_over_parts


class Weight:
    """One prunable weight theta: here a plain parameter. A pruned entry of theta is +0.0.

    The tensors are looked up in their module at each access: a module may replace them at any time, as
    `load_state_dict(assign=True)` and `fully_shard` do. Weights that `fully_shard` splits are DTensors, and
    so are their values and gradients. Tensors to write are in the weight's layout, or entire on every rank.

    Args:
        owner: the object whose attributes hold the tensors, such as a layer.
        names: names of these attributes.

    Attributes:
        pruned_value: the value of each of `parameters` where theta is pruned.
        input_dim: the dimension of theta that the inputs are summed over; None: unknown.
        groups: number of groups of a convolution; 1 for other layers.
        padding_idx: row of an embedding that is never trained; None if there is none.
    """

    pruned_value: tuple[float, ...] = (0.0,)
    input_dim: int | None = 1
    groups: int = 1
    padding_idx: int | None = None

    def __init__(self, owner: Any, *names: str) -> None:
        self.owner, self.names = owner, names

    @classmethod
    def of(cls, *tensors: Tensor, **options: Any) -> Self:
        """The weight behind tensors that no module holds."""
        holder = SimpleNamespace(**{f"tensor{i}": tensor for i, tensor in enumerate(tensors)})
        return cls(holder, *vars(holder), **options)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The trained tensors behind theta, each of theta's shape."""
        owner = self.owner
        return tuple([getattr(owner, name) for name in self.names])  # at each step: a list is faster

    @property
    def shape(self) -> torch.Size:
        """Theta's shape."""
        return self.parameters[0].shape

    def is_at(self, module: nn.Module, attribute: str) -> bool:
        """Return True if this attribute of the module is one of `parameters`."""
        return module is self.owner and attribute in self.names

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
            part, value = local(parameter), local(place_like(value, parameter))
            where = None if at is None else local(place_like(at, parameter))
            part.copy_(value if where is None else torch.where(where, value, part))

    @torch.no_grad()
    def prune_(self, at: Tensor) -> None:
        """Prune the entries where `at` (bool, theta's shape) is True.

        By `masked_fill_`: a product with a mask would leave -0.0 and nan.
        """
        for parameter, value in zip(self.parameters, self.pruned_value, strict=True):
            _fill_(parameter, at, value)


class ProductWeight(Weight):
    """theta = m * w; a pruned entry is (sqrt(scaling), 0), where a step is `scaling` times a plain one.

    Args:
        owner: the object that holds the factors.
        names: names of its attributes: the first factor m and the second factor w, of the same shape.
        scaling: m^2 - w^2 of a newly assigned theta.
    """

    def __init__(self, owner: object, *names: str, scaling: float = 1.0) -> None:
        super().__init__(owner, *names)
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
        self.owner = _parametrizations(module, attribute)
        self.names = tuple(name for name, _ in self.owner.named_parameters(recurse=False))

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
        raise ValueError(self.no_mask_error())

    def assign_(self, theta: Tensor, at: Tensor | None = None) -> None:
        """Raise ValueError."""
        raise ValueError(self.no_mask_error())

    def prune_(self, at: Tensor) -> None:
        """Raise ValueError."""
        raise ValueError(self.no_mask_error())

    def no_mask_error(self) -> str:
        """The reason why the weight cannot be masked, and the cure."""
        kinds = ", ".join(type(p).__name__ for p in _parametrizations(self._module, self._attribute))
        return f"a weight computed by {kinds} cannot be masked: remove that parametrization first"


def weight_of(module: nn.Module, attribute: str) -> Weight:
    """The weight behind an attribute of a module, with any parametrization."""
    if not parametrize.is_parametrized(module, attribute):
        return Weight(module, attribute)
    steps = _parametrizations(module, attribute)
    if len(steps) == 1 and isinstance(steps[0], PointwiseProduct):
        return ProductWeight(steps, "original0", "original1", scaling=steps[0].scaling)
    return ComputedWeight(module, attribute)


def _fill_(tensor: Tensor, at: Tensor, value: float) -> None:
    part = local(tensor)
    part.masked_fill_(at if part is tensor else local(place_like(at, tensor)), value)


class NonzeroCounts:
    """The number of nonzero entries of each weight, over all ranks.

    Where weights are split, the ranks add up their counts at `refresh`, and `read` needs no communication
    until a weight changes: then a single rank may read.
    """

    def __init__(self) -> None:
        self._versions: tuple[tuple[int, int], ...] = ()
        self._counts: list[Tensor] = []

    def refresh(self, weights: Iterable[Weight]) -> None:
        """Count entries of split weights; every rank calls it. No host sync on a GPU."""
        weights = list(weights)
        self._versions = _versions(weights)
        self._counts = _count_nonzero(weights) if self._versions else []

    def read(self, weights: Iterable[Weight]) -> list[int]:
        """The current counts of the weights; every rank calls it if they have changed since `refresh`."""
        weights = list(weights)
        if not self._versions or self._versions != _versions(weights):
            self.refresh(weights)
        return as_numbers(self._counts or _count_nonzero(weights))


def _versions(weights: Sequence[Weight]) -> tuple[tuple[int, int], ...]:
    """Values that change whenever a weight changes; empty if no weight is split."""
    if not may_be_sharded():
        return ()
    tensors = [p for weight in weights for p in weight.parameters]
    return tuple((id(p), local(p)._version) for p in tensors) if any(map(is_sharded, tensors)) else ()


def _count_nonzero(weights: Sequence[Weight]) -> list[Tensor]:
    own = (local(weight.value).count_nonzero() for weight in weights)
    return sum_over_parts(own, [weight.parameters[0] for weight in weights])


def _parametrizations(module: nn.Module, attribute: str) -> Any:
    return module.parametrizations[attribute]  # type: ignore[index]
