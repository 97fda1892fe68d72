"""The optimizer's state of each weight: its tensors, and how they change with the masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from .checks import warn_at_caller
from .shards import local, sum_over_parts

if TYPE_CHECKING:
    from .masks import MaskSet

FIRST_MOMENTS = ("momentum_buffer", "exp_avg", "grad_avg")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum")
_OTHERS = (  # no moments; Adafactor's last two have the shape of a weight with one row or column
    *("acc_delta", "prev", "step_size", "ax", "slow_params", "lookahead_slow_buff"),
    *("row_var", "col_var"),
)


def holders_of_state(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer and those inside it, as ZeroRedundancyOptimizer, Lookahead and accelerate have one.

    A wrapper's own state may be empty, or a copy of what the inner one has, which comes later in the list.
    """
    holders = [optimizer]
    for holder in holders:
        inner = [value for value in getattr(holder, "__dict__", {}).values() if isinstance(value, Optimizer)]
        holders += [value for value in inner if all(value is not other for other in holders)]
    return holders


def share_state(one: Optimizer, other: Optimizer) -> bool:
    """Return True for the same optimizer, perhaps in wrappers, and for shared parameter groups."""
    both = [
        {id(part) for holder in holders_of_state(optimizer) for part in (holder, *_groups(holder))}
        for optimizer in (one, other)
    ]
    return not both[0].isdisjoint(both[1])


def has_state(optimizer: Optimizer) -> bool:
    """Return True if the optimizer, or one inside it, already has state."""
    return any(_state(holder) for holder in holders_of_state(optimizer))


def _state(optimizer: Optimizer) -> Mapping[Tensor, Any]:
    """Parameter -> its state; ZeroRedundancyOptimizer loads None where another rank has it."""
    return getattr(optimizer, "state", {})  # a wrapper need not be a complete optimizer


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return getattr(optimizer, "param_groups", [])


def is_split_by_parameters(optimizer: Optimizer) -> bool:
    """Return True if each rank has the state of only some parameters, as with ZeroRedundancyOptimizer."""
    return _group_of(optimizer) is not None


def _group_of(optimizer: Optimizer) -> Any:
    """The process group over which ZeroRedundancyOptimizer splits the state; None for others."""
    holder: Any
    for holder in holders_of_state(optimizer):
        if type(holder).__name__ == "ZeroRedundancyOptimizer" and holder.world_size > 1:
            return holder.process_group
    return None


@torch.no_grad()
def reset_first_moments_(optimizer: Optimizer) -> None:
    """Zero the momentum of every parameter, pruned or not (AC/DC's --reset_momentum_after_recycling).

    Raises:
        ValueError: the state is quantized.
    """
    for holder in holders_of_state(optimizer):
        for state in filter(None, _state(holder).values()):
            for key in FIRST_MOMENTS:
                if isinstance(state.get(key), Tensor):
                    _check_not_quantized(holder, key, state[key])
                    state[key].zero_()


def warn_of_unknown_momentum(optimizer: Optimizer, parameters: Iterable[Tensor], reset: str) -> bool:
    """Warn if parameters have elementwise state under names of which none is a known momentum.

    Args:
        optimizer: the optimizer whose momentum should be reset.
        parameters: parameters of the pruned weights.
        reset: the operation that needs the reset, for the message.

    Returns:
        True if it has warned.
    """
    known = {*FIRST_MOMENTS, *SECOND_MOMENTS, *_OTHERS}
    for parameter in parameters:
        names = elementwise_state(optimizer, parameter).keys()
        if names.isdisjoint(FIRST_MOMENTS) and (unknown := sorted(names - known)):
            warn_at_caller(
                f"{type(optimizer).__name__} has the state {', '.join(unknown)}, and none with the name of a "
                f"momentum ({', '.join(FIRST_MOMENTS)}): {reset} leaves it unchanged, use an optimizer of "
                "torch.optim"
            )
            return True
    return False


@torch.no_grad()
def fill_second_moments_(optimizer: Optimizer, masks: MaskSet) -> None:
    """Set revived weights' second moments to the mean over their tensor's active entries.

    A tensor without active entries takes the mean over all tensors. Zero moments at a large step count would
    make Adam's first update of a revived weight sqrt(1 / (1 - beta2)) * (1 - beta1) = 3.16 learning rates, 17
    times a usual one.
    """
    entries: list[tuple[tuple[int, int], Tensor, Tensor, Tensor, Tensor]] = []
    for name, mask in masks.masks.items():
        for factor, parameter in enumerate(masks.weights[name].parameters):
            for key, state in elementwise_state(optimizer, parameter).items():
                if key in SECOND_MOMENTS:
                    state, on = local(state), local(mask)
                    total = torch.where(on, state, 0.0).sum(dtype=torch.float64)
                    total, active = (sum_over_parts([x], [mask])[0] for x in (total, on.count_nonzero()))
                    entries.append(((SECOND_MOMENTS.index(key), factor), state, on, total, active))
    group = _group_of(optimizer)
    if not entries and group is None:
        return
    device = next(iter(masks.masks.values())).device
    factors = max(len(weight.parameters) for weight in masks.weights.values())
    sums = torch.zeros(2, len(SECOND_MOMENTS), factors, dtype=torch.float64, device=device)
    for index, _, _, total, active in entries:
        sums[0][index] += total.to(device)
        sums[1][index] += active.to(device)
    if group is not None:
        distributed.all_reduce(sums, group=group)
    overall = sums[0] / sums[1].clamp(min=1)
    for index, state, mask, total, active in entries:
        mean = torch.where(active > 0, total / active.clamp(min=1), overall[index].to(state.device))
        state.copy_(torch.where(mask, state, mean.to(state.dtype)))


def elementwise_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a parameter that has its shape, such as momenta; no step counts.

    For a DTensor also plain tensors of the shape of this rank's part. Empty on ranks that do not hold it.

    Raises:
        ValueError: the state is quantized.
    """
    state: dict[str, Tensor] = {}
    shapes = (parameter.shape, local(parameter).shape)
    for holder in holders_of_state(optimizer):
        for key, value in (_state(holder).get(parameter) or {}).items():
            if key != "step" and isinstance(value, Tensor) and value.shape in shapes:
                _check_not_quantized(holder, key, value)
                state[key] = value
    return state


def _check_not_quantized(optimizer: Optimizer, key: str, state: Tensor) -> None:
    """Raise ValueError for integer state, whose 0 is a code that may stand for any value."""
    if not (state.is_floating_point() or state.is_complex() or state.dtype == torch.bool):
        raise ValueError(
            f"{type(optimizer).__name__} keeps {key!r} in {state.dtype} codes, which cannot be set to zero: "
            "use an optimizer with floating-point state for the pruned weights"
        )
