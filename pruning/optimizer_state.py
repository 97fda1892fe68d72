"""The optimizer's state of each weight: which tensors it has, and what happens to them when masks change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from .checks import layers_of
from .shards import local, sum_over_parts

if TYPE_CHECKING:
    from .masks import MaskSet

FIRST_MOMENTS = ("momentum_buffer", "exp_avg", "grad_avg")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum")


@torch.no_grad()
def reset_first_moments_(optimizer: Optimizer) -> None:
    """Zero the momentum of every parameter, pruned or not (AC/DC's --reset_momentum_after_recycling)."""
    for state in layers_of(optimizer)[-1].state.values():
        for key in FIRST_MOMENTS:
            if isinstance(state.get(key), Tensor):
                state[key].zero_()


@torch.no_grad()
def fill_second_moments_(optimizer: Optimizer, masks: MaskSet) -> None:
    """Set revived weights' second moments to the mean over their tensor's active entries.

    A tensor without active entries takes the mean over all tensors. Zero moments at a large step count would
    make Adam's first update of a revived weight sqrt(1 / (1 - beta2)) * (1 - beta1) = 3.16 learning rates, 17
    times a usual one.
    """
    sums: dict[tuple[str, int], list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
    for name, mask in masks.masks.items():
        for factor, parameter in enumerate(masks.weights[name].parameters):
            for key, state in elementwise_state(optimizer, parameter).items():
                if key in SECOND_MOMENTS:
                    state, on = local(state), local(mask)
                    total = torch.where(on, state, 0.0).sum(dtype=torch.float64)
                    total, active = (sum_over_parts([x], [mask])[0] for x in (total, on.count_nonzero()))
                    sums.setdefault((key, factor), []).append((state, on, total, active))
    for entries in sums.values():
        device = entries[0][0].device
        zero = torch.zeros((), device=device)
        sum_of_all = sum((e[2].to(device) for e in entries), start=zero.double())
        overall = sum_of_all / sum((e[3].to(device) for e in entries), start=zero.long()).clamp(min=1)
        for state, mask, total, active in entries:
            mean = torch.where(active > 0, total / active.clamp(min=1), overall.to(state.device))
            state.copy_(torch.where(mask, state, mean.to(state.dtype)))


def elementwise_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a parameter that has its shape, such as momenta; no step counts.

    For a DTensor also plain tensors of the shape of this rank's part.
    """
    state = layers_of(optimizer)[-1].state.get(parameter, {})
    shapes = (parameter.shape, local(parameter).shape)
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape in shapes}
