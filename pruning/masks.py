"""Hard masks on plain weights, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

FIRST_MOMENTS = ("momentum_buffer", "exp_avg", "grad_avg")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum")


class MaskSet:
    """Which weights are off. While inactive every weight is on.

    A pruned weight is +0.0 in place: it is written with `masked_fill_`, because multiplying by a mask leaves
    -0.0 and turns inf into nan.

    Args:
        weights: qualified name -> weight, as from `prunable_weights`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = dict(weights)
        self.pruned: dict[str, Tensor] = {}

    @property
    def active(self) -> bool:
        """Is any mask set?"""
        return bool(self.pruned)

    def set(self, kept: Mapping[str, Tensor]) -> None:
        """Take new masks, True where a weight stays on, one per weight and of its shape."""
        if kept.keys() != self.weights.keys():
            raise ValueError(
                f"masks and weights differ in names: {sorted(kept.keys() ^ self.weights.keys())[:3]}"
            )
        for name, mask in kept.items():
            if mask.shape != self.weights[name].shape:
                raise ValueError(
                    f"the mask of {name} is {tuple(mask.shape)}, its weight {tuple(self.weights[name].shape)}"
                )
        layouts = {name: torch.empty_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        self.pruned = {name: layouts[name].copy_(mask).logical_not_() for name, mask in kept.items()}

    def clear(self) -> None:
        """Turn every weight on again; values stay as they are."""
        self.pruned = {}

    @torch.no_grad()
    def apply_to_weights_(self) -> None:
        """Write +0.0 into every pruned weight."""
        for name, pruned in self.pruned.items():
            self.weights[name].masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def apply_to_gradients_(self) -> None:
        """Write +0.0 into every pruned weight's gradient."""
        for name, pruned in self.pruned.items():
            if self.weights[name].grad is not None:
                self.weights[name].grad.masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def apply_to_optimizer_(self, optimizer: Optimizer) -> None:
        """Write +0.0 into every pruned weight's optimizer state, so that no step can move it."""
        for name, pruned in self.pruned.items():
            for state in _elementwise_state(optimizer, self.weights[name]).values():
                state.masked_fill_(pruned, 0.0)

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, kept, total) of each weight."""
        for name, weight in self.weights.items():
            off = int(self.pruned[name].sum()) if self.active else 0
            yield name, weight.numel() - off, weight.numel()

    def state_dict(self) -> dict[str, Tensor]:
        """The pruned positions by name; empty while inactive."""
        return dict(self.pruned)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave. Raises ValueError where names or shapes are others."""
        if not state:
            self.clear()
            return
        self.set({name: ~pruned for name, pruned in state.items()})


@torch.no_grad()
def reset_first_moments_(optimizer: Optimizer) -> None:
    """Zero the momentum of every parameter, pruned or not (AC/DC's --reset_momentum_after_recycling)."""
    for state in optimizer.state.values():
        for key in FIRST_MOMENTS:
            if isinstance(state.get(key), Tensor):
                state[key].zero_()


@torch.no_grad()
def fill_second_moments_(optimizer: Optimizer, masks: MaskSet) -> None:
    """Give revived weights the mean second moment of their tensor's active entries (of all, if it has none).

    Zero moments at a large step count make Adam's first update of a revived weight sqrt(1 / (1 - beta2)) * (1
    - beta1) = 3.16 learning rates, 17 times a usual one.
    """
    sums: dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
    for name, pruned in masks.pruned.items():
        for key, state in _elementwise_state(optimizer, masks.weights[name]).items():
            if key in SECOND_MOMENTS:
                total = state.masked_fill(pruned, 0.0).sum(dtype=torch.float64)
                sums.setdefault(key, []).append((state, pruned, total, (~pruned).sum()))
    for entries in sums.values():
        device = entries[0][0].device
        overall = sum(e[2].to(device) for e in entries) / sum(e[3].to(device) for e in entries).clamp(min=1)
        for state, pruned, total, active in entries:
            mean = torch.where(active > 0, total / active.clamp(min=1), overall.to(state.device))
            state.copy_(torch.where(pruned, mean.to(state.dtype), state))


def _elementwise_state(optimizer: Optimizer, weight: Tensor) -> dict[str, Tensor]:
    state = optimizer.state.get(weight, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == weight.shape}
