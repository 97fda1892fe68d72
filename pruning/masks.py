"""Hard masks on plain weights, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from .ranks import require_equal
from .weights import Weight

FIRST_MOMENTS = ("momentum_buffer", "exp_avg", "grad_avg")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum")


class MaskSet:
    """Which weights are off. While inactive every weight is on.

    A pruned weight is +0.0 in place, or (1, 0) where it is a product of two factors.

    Args:
        weights: qualified name -> weight, as from `prunable_weights`, or a plain tensor.
    """

    def __init__(self, weights: Mapping[str, Weight | Tensor]) -> None:
        self.weights = {n: Weight(w) if isinstance(w, Tensor) else w for n, w in weights.items()}
        self.pruned: dict[str, Tensor] = {}

    @property
    def active(self) -> bool:
        """Is any mask set?"""
        return bool(self.pruned)

    def set(self, kept: Mapping[str, Tensor]) -> None:
        """Take new masks, True where a weight stays on, one per weight and of its shape.

        Raises:
            ValueError: names or shapes differ from the weights'.
            RuntimeError: the ranks of torch.distributed have come to different masks.
        """
        if kept.keys() != self.weights.keys():
            raise ValueError(
                f"masks and weights differ in names: {sorted(kept.keys() ^ self.weights.keys())[:3]}"
            )
        for name, mask in kept.items():
            if mask.shape != self.weights[name].shape:
                raise ValueError(
                    f"the mask of {name} is {tuple(mask.shape)}, its weight {tuple(self.weights[name].shape)}"
                )
        self.pruned = {
            name: torch.empty_like(weight.parameters[0], dtype=torch.bool).copy_(kept[name]).logical_not_()
            for name, weight in self.weights.items()
        }
        require_equal(self.pruned.values(), "the masks")

    def kept(self) -> dict[str, Tensor]:
        """True where a weight is on, by name."""
        return {
            name: ~self.pruned[name] if self.active else torch.ones(weight.shape, dtype=torch.bool)
            for name, weight in self.weights.items()
        }

    def values(self) -> dict[str, Tensor]:
        """Theta by name, detached."""
        return {name: weight.value for name, weight in self.weights.items()}

    def clear(self) -> None:
        """Turn every weight on again; values stay as they are."""
        self.pruned = {}

    @torch.no_grad()
    def apply_to_weights_(self) -> None:
        """Put every pruned weight to rest."""
        for name, pruned in self.pruned.items():
            self.weights[name].zero_(pruned)

    @torch.no_grad()
    def apply_to_gradients_(self) -> None:
        """Write +0.0 into every pruned weight's gradient."""
        for name, pruned in self.pruned.items():
            self.weights[name].zero_gradient_(pruned)

    @torch.no_grad()
    def apply_to_optimizer_(self, optimizer: Optimizer) -> None:
        """Write +0.0 into every pruned weight's optimizer state, so that no step can move it."""
        for name, pruned in self.pruned.items():
            for parameter in self.weights[name].parameters:
                for state in elementwise_state(optimizer, parameter).values():
                    state.masked_fill_(pruned, 0.0)

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, kept, total) of each weight."""
        for name, weight in self.weights.items():
            off = int(self.pruned[name].count_nonzero()) if self.active else 0
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
    sums: dict[tuple[str, int], list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
    for name, pruned in masks.pruned.items():
        for place, parameter in enumerate(masks.weights[name].parameters):
            for key, state in elementwise_state(optimizer, parameter).items():
                if key in SECOND_MOMENTS:
                    total = state.masked_fill(pruned, 0.0).sum(dtype=torch.float64)
                    sums.setdefault((key, place), []).append(
                        (state, pruned, total, (~pruned).count_nonzero())
                    )
    for entries in sums.values():
        device = entries[0][0].device
        overall = sum(e[2].to(device) for e in entries) / sum(e[3].to(device) for e in entries).clamp(min=1)
        for state, pruned, total, active in entries:
            mean = torch.where(active > 0, total / active.clamp(min=1), overall.to(state.device))
            state.copy_(torch.where(pruned, mean.to(state.dtype), state))


def elementwise_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a parameter that has its shape, such as momenta; no step counts."""
    state = optimizer.state.get(parameter, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}
