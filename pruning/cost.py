"""What a sparse network costs, counted as RigL does: parameters, bytes and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from .weights import places, prunable_weights


@dataclass(frozen=True)
class Cost:
    """A network's cost at given densities.

    Args:
        parameters: kept weights, and all biases and norm parameters.
        megabytes: 4 bytes per parameter and one bit per entry of each layer that is not dense, / 10^6
            (google-research/rigl's table; running statistics of norms are not counted).
        flops: of one input's forward pass, a multiply-add counting 2, in prunable layers; kept weights only.
        dense_flops: the same with every weight.
    """

    parameters: int
    megabytes: float
    flops: float
    dense_flops: float

    @property
    def flops_ratio(self) -> float:
        """Sparse over dense FLOPs, RigL's "x"."""
        return self.flops / self.dense_flops


def cost(model: nn.Module, kept: Mapping[str, int], input_shape: Sequence[int]) -> Cost:
    """Count the cost of a model whose weight `name` keeps kept[name] entries; others are dense.

    Args:
        model: left as it is; one forward pass on zeros is made in eval mode.
        kept: name -> number of kept weights, as in {name: kept for name, kept, _ in sparsifier.counts()}.
        input_shape: with a batch dimension of 1, such as (1, 3, 224, 224).
    """
    weights = prunable_weights(model)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    nonzero = {name: kept.get(name, size) for name, size in sizes.items()}
    prunable = {id(p) for weight in weights.values() for p in weight.parameters}
    others = sum(p.numel() for p in model.parameters() if id(p) not in prunable)
    parameters = others + sum(nonzero.values())
    bits = sum(size for name, size in sizes.items() if nonzero[name] < size)
    uses = _uses(model, input_shape)
    dense = {name: 2.0 * uses.get(name, 0) * size for name, size in sizes.items()}
    return Cost(
        parameters=parameters,
        megabytes=(4 * parameters + ceil(bits / 8)) / 1e6,
        flops=sum(flops * nonzero[name] / sizes[name] for name, flops in dense.items()),
        dense_flops=sum(dense.values()),
    )


@torch.no_grad()
def _uses(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """How often each entry of each weight is used for one input: output positions of its layer."""
    uses: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            output = output[0] if isinstance(output, tuple) else output
            width = module.out_channels if hasattr(module, "out_channels") else output.shape[-1]
            uses[name] = uses.get(name, 0) + output.numel() // width

        handles.append(module.register_forward_hook(hook))

    handles: list = []
    modes = {module: module.training for module in model.modules()}
    for name, module, _ in places(model):
        watch(name, module)
        if isinstance(module, nn.MultiheadAttention):  # it uses out_proj.weight without calling out_proj
            watch(f"{name.rpartition('.')[0]}.out_proj.weight".lstrip("."), module)
    parameter = next(model.parameters())
    try:
        model.eval()
        model(torch.zeros(input_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return uses
