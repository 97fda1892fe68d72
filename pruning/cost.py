"""The cost of a sparse network, counted as RigL does: parameters, bytes and FLOPs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .batches import InputShape, arguments, inputs_of_shape
from .checks import warn_at_caller
from .prunable import prunable_weights, weight_locations
from .scores import evaluation_mode
from .shards import is_sharded
from .weights import Weight, weight_of


@dataclass(frozen=True)
class Cost:
    """A network's cost at given densities.

    Args:
        parameters: number of kept weights, and of all biases and norm parameters.
        megabytes: 4 bytes per parameter and one bit per entry of each layer that is not dense, / 10^6; a
            BatchNorm counts as the one bias per channel that it folds into (google-research/rigl's table).
        flops: FLOPs of one input's forward pass, kept weights of prunable layers; a multiply-add counts 2.
        dense_flops: FLOPs of the same with every weight.
    """

    parameters: int
    megabytes: float
    flops: float
    dense_flops: float

    @property
    def flops_ratio(self) -> float:
        """Sparse over dense FLOPs, RigL's "x"."""
        return self.flops / self.dense_flops


def cost(
    model: nn.Module, kept: Mapping[str, int], input_shape: InputShape, include: Iterable[str] = ()
) -> Cost:
    """Count the cost of a model whose weight `name` keeps kept[name] entries; others are dense.

    Args:
        model: the model, unchanged; one forward pass on zeros (token 0 for embeddings) runs in eval mode.
        kept: name -> number of kept weights, as in {name: kept for name, kept, _ in sparsifier.counts()}.
        input_shape: shape of one input with a batch dimension of 1, such as (1, 3, 224, 224); of
            a model with several inputs a tuple of shapes, or a dict from name to shape. A tensor in place of
            a shape is given to the model.
        include: globs of further prunable parameters, as given to `Sparsifier.attach`.

    Raises:
        TypeError: the model takes other inputs.
        ValueError: kept names a weight that the model does not have.
    """
    include = list(include)
    weights = prunable_weights(model, include=include)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    if unknown := kept.keys() - sizes.keys():
        raise ValueError(f"kept names {sorted(unknown)[0]}, which is not a prunable weight of the model")
    nonzero = {name: kept.get(name, size) for name, size in sizes.items()}
    prunable = {id(p) for weight in weights.values() for p in weight.parameters}
    others = sum(p.numel() for p in model.parameters() if id(p) not in prunable)
    parameters = others + sum(nonzero.values())
    bits = sum(mask_bits(nonzero[name], size) for name, size in sizes.items())
    folded = sum(m.weight.numel() for m in model.modules() if isinstance(m, _BatchNorm) and m.affine)
    dense = dense_flops(model, weights, input_shape, include)
    return Cost(
        parameters=parameters,
        megabytes=(4 * (parameters - folded) + ceil(bits / 8)) / 1e6,
        flops=sum(flops * nonzero[name] / sizes[name] for name, flops in dense.items()),
        dense_flops=sum(dense.values()),
    )


def mask_bits(kept: int, size: int) -> int:
    """Bits that store which entries of a layer are kept: one for each entry, none for a dense layer."""
    return size if kept < size else 0


def dense_flops(
    model: nn.Module, weights: Mapping[str, Weight], input_shape: InputShape, include: Iterable[str] = ()
) -> dict[str, float]:
    """Name -> FLOPs of one input's forward pass with every entry of each weight; an embedding has none.

    They are those of the matrix products and convolutions with the weight, wherever the model computes them.
    A weight that none of these takes as it is counts by the output positions of its layer.

    Args:
        model: the model, unchanged; one forward pass on zeros (token 0 for embeddings) runs in eval mode.
        weights: name -> prunable weight of the model.
        input_shape: see `cost`.
        include: globs of further prunable parameters.

    Raises:
        TypeError: the model takes other inputs.
    """
    products, uses = _count(model, input_shape, include)
    if unused := [name for name in weights if name not in products and name not in uses]:
        others = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        warn_at_caller(
            f"the forward pass used {', '.join(unused[:3])}{others} in no layer, matrix product or "
            "convolution, so their FLOPs count as 0: give inputs by which the model uses them, or add their "
            "FLOPs yourself"
        )
    return {
        name: 2.0 * products.get(name, uses.get(name, 0) * weight.numel()) for name, weight in weights.items()
    }


@torch.no_grad()
def _count(
    model: nn.Module, input_shape: InputShape, include: Iterable[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-adds in products with each weight, and how often each layer uses every entry of its weight.

    Both by name; a weight of several layers has the name of the first. The second are the output positions
    of the layers, for weights that a layer changes before it multiplies them, and for kernels that compute an
    entire layer.
    """
    parameter = next(model.parameters())

    def make(shape: Any) -> Tensor:
        if isinstance(shape, Tensor):
            return shape
        return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)

    args, kwargs = arguments(inputs_of_shape(input_shape, make))
    _check_arguments(model, args, kwargs)
    products, uses, handles, names = _Products(), dict[str, int](), list[Any](), dict[int, str]()

    def count_uses(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            uses[name] = uses.get(name, 0) + _uses_per_call(module, args, kwargs, output)

        handles.append(module.register_forward_hook(hook, with_kwargs=True))

    try:
        # cached: a computed weight is the same tensor everywhere
        with evaluation_mode(model), parametrize.cached():
            for name, module, attribute in weight_locations(model, include):
                name = names.setdefault(id(weight_of(module, attribute).parameters[0]), name)
                products.add(name, getattr(module, attribute))
                count_uses(name, module)
                if attribute in ("in_proj_weight", "q_proj_weight"):  # out_proj itself is never called
                    count_uses(f"{name.removesuffix(attribute)}out_proj.weight", module)
            for embedding in (m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)):
                handles.append(embedding.register_forward_pre_hook(_with_tokens, with_kwargs=True))
            with products:
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return products.multiply_adds, uses


def _check_arguments(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise TypeError where a forward pass does not take these inputs."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"the model does not take these inputs ({error}): give a shape, or an example tensor, for each, "
            "such as input_shape=((1, 3), (1, 5)) or a dict by name"
        ) from None


def _with_tokens(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of an embedding, whose first one, the ids, is an integer."""
    if args:
        return (args[0].long(), *args[1:]), kwargs
    return args, {**kwargs, "input": kwargs["input"].long()}


def _uses_per_call(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> int:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):  # looked up, not multiplied
        return 0
    if isinstance(module, _ConvTransposeNd):  # the entire kernel is applied to each input
        return (args[0] if args else kwargs["input"]).numel() // module.in_channels
    tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.ndim]
    if not tensors:
        return 0
    return tensors[0].numel() // (getattr(module, "out_channels", tensors[0].shape[-1]) or 1)


class _Products(TorchDispatchMode):
    """While active, counts the multiply-adds of matrix products and convolutions by the weight they take."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds: dict[str, int] = {}
        self._weights: dict[int, list[tuple[str, Tensor]]] = {}  # by their memory

    def add(self, name: str, weight: Tensor) -> None:
        """Count what takes this tensor or a view of it, such as one of the three parts of in_proj_weight."""
        if _has_memory(weight):
            self._weights.setdefault(weight.untyped_storage()._cdata, []).append((name, weight))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        operator = getattr(func, "overloadpacket", None)
        if operator is torch.ops.aten.convolution:
            positions = args[0] if args[6] else output  # a transposed one applies the kernel to each input
            self._add_to(args[:2], positions.numel() // positions.shape[1] * args[1].numel())
        elif operator in _MATRIX_PRODUCTS:
            first = _MATRIX_PRODUCTS[operator]
            self._add_to(args[first : first + 2], output.numel() * args[first].shape[-1])
        return output

    def _add_to(self, factors: Sequence[Tensor], count: int) -> None:
        for name in {name for factor in factors if (name := self._name_of(factor)) is not None}:
            self.multiply_adds[name] = self.multiply_adds.get(name, 0) + count

    def _name_of(self, tensor: Tensor) -> str | None:
        weights = self._weights.get(tensor.untyped_storage()._cdata, ()) if _has_memory(tensor) else ()
        for name, weight in weights:  # several where cuDNN keeps those of an LSTM together
            if 0 <= tensor.storage_offset() - weight.storage_offset() < weight.numel():
                return name
        return None


_MATRIX_PRODUCTS = {
    torch.ops.aten.mm: 0,
    torch.ops.aten.bmm: 0,
    torch.ops.aten.addmm: 1,
    torch.ops.aten.baddbmm: 1,
}
"""Operator -> the argument that is its first factor."""


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not is_sharded(tensor)
