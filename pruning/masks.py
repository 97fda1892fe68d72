"""Hard masks on plain weights, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .deprecation import warn_renamed
from .ranks import assert_equal_across_ranks
from .weights import Weight

FIRST_MOMENTS = ("momentum_buffer", "exp_avg", "grad_avg")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum")


class MaskSet:
    """Which weights are on: one boolean mask per weight, True where it is kept.

    While inactive every weight is on. A pruned weight is +0.0 in place, or (1, 0) where it is a product of
    two factors.

    Args:
        weights: qualified name -> weight, as from `prunable_weights`, or a plain tensor.

    Attributes:
        masks: name -> mask, in the shape and memory layout of the weight; empty while inactive. Change them
            by `set` and `clear` only.
    """

    def __init__(self, weights: Mapping[str, Weight | Tensor]) -> None:
        self.weights = {n: Weight.of(w) if isinstance(w, Tensor) else w for n, w in weights.items()}
        self.masks: dict[str, Tensor] = {}
        self._off: dict[str, Tensor] = {}  # the inverted masks: inverting them at each step costs a pass

    @property
    def active(self) -> bool:
        """Is any mask set?"""
        return bool(self.masks)

    @property
    def pruned(self) -> dict[str, Tensor]:
        """Deprecated: name -> bool, True where a weight is pruned. Use `masks`, True where it is kept."""
        warn_renamed("MaskSet.pruned", "MaskSet.masks, which is True where a weight is kept")
        return dict(self._off)

    def set(self, masks: Mapping[str, Tensor]) -> None:
        """Replace the masks.

        Args:
            masks: name -> bool, True where a weight is kept, one per weight and of its shape. They are
                copied to the weight's device and memory layout.

        Raises:
            ValueError: names or shapes differ from the weights'.
            RuntimeError: the ranks of torch.distributed have different masks.
        """
        if masks.keys() != self.weights.keys():
            raise ValueError(
                f"masks and weights differ in names: {sorted(masks.keys() ^ self.weights.keys())[:3]}"
            )
        for name, mask in masks.items():
            if mask.shape != self.weights[name].shape:
                raise ValueError(
                    f"the mask of {name} is {tuple(mask.shape)}, its weight {tuple(self.weights[name].shape)}"
                )
        self.masks = {
            name: torch.empty_like(weight.parameters[0], dtype=torch.bool).copy_(masks[name])
            for name, weight in self.weights.items()
        }
        self._off = {name: ~mask for name, mask in self.masks.items()}
        assert_equal_across_ranks(self.masks.values(), "the masks")

    def kept(self) -> dict[str, Tensor]:
        """Name -> mask, True where a weight is on; all True while inactive."""
        return {
            name: self.masks[name].clone() if self.active else torch.ones(weight.shape, dtype=torch.bool)
            for name, weight in self.weights.items()
        }

    def values(self) -> dict[str, Tensor]:
        """Theta by name, detached."""
        return {name: weight.value for name, weight in self.weights.items()}

    def clear(self) -> None:
        """Turn every weight on again; values stay as they are."""
        self.masks, self._off = {}, {}

    def _pruned_positions(self) -> Iterator[tuple[Weight, Tensor]]:
        """Each weight with its inverted mask, which follows the weight where `model.to` has moved it."""
        for name, off in self._off.items():
            weight = self.weights[name]
            device = weight.parameters[0].device
            if off.device != device:
                if off.is_meta:
                    raise RuntimeError(
                        f"the mask of {name} was made on the meta device and has no content: attach the "
                        "sparsifier after model.to_empty(device=...)"
                    )
                off = self._off[name] = off.to(device)
                self.masks[name] = ~off
            yield weight, off

    @torch.no_grad()
    def apply_to_weights_(self) -> None:
        """Set every pruned weight to its pruned value."""
        for weight, off in self._pruned_positions():
            weight.prune_(off)

    @torch.no_grad()
    def apply_to_gradients_(self) -> None:
        """Set every pruned weight's gradient to +0.0."""
        for weight, off in self._pruned_positions():
            weight.zero_gradient_(off)

    @torch.no_grad()
    def apply_to_optimizer_(self, optimizer: Optimizer) -> None:
        """Set every pruned weight's optimizer state to +0.0, so that no step can move the weight."""
        for weight, off in self._pruned_positions():
            for parameter in weight.parameters:
                for state in elementwise_state(optimizer, parameter).values():
                    state.masked_fill_(off, 0.0)

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, weights that the mask keeps, total) of each weight."""
        for name, weight in self.weights.items():
            total = weight.numel()
            yield name, int(self.masks[name].count_nonzero()) if self.active else total, total

    def empty(self) -> list[str]:
        """The names of weights of which nothing is kept; one host sync. A mask on meta has no content."""
        masks = {name: mask for name, mask in self.masks.items() if not mask.is_meta}
        if not masks:
            return []
        device = next(iter(masks.values())).device
        kept = torch.stack([mask.any().to(device) for mask in masks.values()]).tolist()
        return [name for name, some in zip(masks, kept, strict=True) if not some]

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """{"kept": name -> mask}, without entries while inactive."""
        return {"kept": dict(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Version 0.4 and earlier wrote name -> pruned positions, without the key "kept"; these are inverted.

        Raises:
            ValueError: names or shapes differ from the weights'.
        """
        masks = state.get("kept")
        if not isinstance(masks, Mapping):  # an older state; a weight may be called "kept"
            masks = {name: ~pruned for name, pruned in state.items()}
        if masks:
            self.set(masks)
        else:
            self.clear()


@torch.no_grad()
def reset_first_moments_(optimizer: Optimizer) -> None:
    """Zero the momentum of every parameter, pruned or not (AC/DC's --reset_momentum_after_recycling)."""
    for state in optimizer.state.values():
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
                    total = torch.where(mask, state, 0.0).sum(dtype=torch.float64)
                    sums.setdefault((key, factor), []).append((state, mask, total, mask.count_nonzero()))
    for entries in sums.values():
        device = entries[0][0].device
        zero = torch.zeros((), device=device)
        sum_of_all = sum((e[2].to(device) for e in entries), start=zero.double())
        overall = sum_of_all / sum((e[3].to(device) for e in entries), start=zero.long()).clamp(min=1)
        for state, mask, total, active in entries:
            mean = torch.where(active > 0, total / active.clamp(min=1), overall.to(state.device))
            state.copy_(torch.where(mask, state, mean.to(state.dtype)))


def elementwise_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a parameter that has its shape, such as momenta; no step counts."""
    state = optimizer.state.get(parameter, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}
