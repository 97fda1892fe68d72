"""The cost of a sparse network, counted as RigL does: parameters, bytes and FLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from .prunable import prunable_weights, weight_locations
from .scores import evaluation_mode
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
    model: nn.Module, kept: Mapping[str, int], input_shape: Sequence[int], include: Iterable[str] = ()
) -> Cost:
    """Count the cost of a model whose weight `name` keeps kept[name] entries; others are dense.

    Args:
        model: the model, unchanged; one forward pass on zeros (token 0 for embeddings) runs in eval mode.
        kept: name -> number of kept weights, as in {name: kept for name, kept, _ in sparsifier.counts()}.
        input_shape: shape of one input with a batch dimension of 1, such as (1, 3, 224, 224).
        include: globs of further prunable parameters, as given to `Sparsifier.attach`.

    Raises:
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
    model: nn.Module, weights: Mapping[str, Weight], input_shape: Sequence[int], include: Iterable[str] = ()
) -> dict[str, float]:
    """Name -> FLOPs of one input's forward pass in each layer with every weight; an embedding has none.

    Args:
        model: the model, unchanged; one forward pass on zeros (token 0 for embeddings) runs in eval mode.
        weights: name -> prunable weight of the model.
        input_shape: shape of one input with a batch dimension of 1, such as (1, 3, 224, 224).
        include: globs of further prunable parameters.
    """
    uses = _uses(model, input_shape, include)
    return {name: 2.0 * uses.get(name, 0) * weight.numel() for name, weight in weights.items()}


@torch.no_grad()
def _uses(model: nn.Module, input_shape: Sequence[int], include: Iterable[str]) -> dict[str, int]:
    """How often each entry of each weight is used for one input: output positions of its layer."""
    uses: dict[str, int] = {}

    def count_uses(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            uses[name] = uses.get(name, 0) + _uses_per_call(module, args, output)

        handles.append(module.register_forward_hook(hook))

    handles: list = []
    names: dict[int, str] = {}  # a weight of several layers has the name of the first
    for name, module, attribute in weight_locations(model, include):
        count_uses(names.setdefault(id(weight_of(module, attribute).parameters[0]), name), module)
        if attribute in ("in_proj_weight", "q_proj_weight"):  # out_proj itself is never called
            count_uses(f"{name.removesuffix(attribute)}out_proj.weight", module)
    for embedding in (m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)):
        handles.append(embedding.register_forward_pre_hook(lambda _, args: (args[0].long(), *args[1:])))
    parameter = next(model.parameters())
    try:
        with evaluation_mode(model):
            model(torch.zeros(input_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return uses


def _uses_per_call(module: nn.Module, args: tuple, output: Tensor | tuple) -> int:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):  # looked up, not multiplied
        return 0
    if isinstance(module, _ConvTransposeNd):  # the entire kernel is applied to each input
        return args[0].numel() // module.in_channels
    output = output[0] if isinstance(output, tuple) else output
    return output.numel() // getattr(module, "out_channels", output.shape[-1])
