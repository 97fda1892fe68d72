"""Hard masks on weights, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .deprecation import warn_renamed
from .optimizer_state import elementwise_state
from .ranks import assert_equal_across_ranks
from .shards import (
    count_nonzero,
    is_sharded,
    local,
    may_be_sharded,
    place_like,
    reshard_,
    sharded_like,
    sum_over_parts,
)
from .weights import Weight


class MaskSet:
    """Which weights are on: one boolean mask per weight, True where it is kept.

    While inactive every weight is on. A pruned weight is +0.0 in place, or (1, 0) where it is a product of
    two factors.

    Args:
        weights: qualified name -> weight, as from `prunable_weights`, or a plain tensor.
        model: the model that has the weights, if `fully_shard` may split them.
    """

    def __init__(self, weights: Mapping[str, Weight | Tensor], model: nn.Module | None = None) -> None:
        self._weights = {n: Weight.of(w) if isinstance(w, Tensor) else w for n, w in weights.items()}
        self._model = model
        self._masks: dict[str, Tensor] = {}
        self._multipliers: dict[str, Tensor] = {}  # the masks as integers, see `zero_pruned_`; once needed
        # dtypes -> bits of the values of pruned entries that are not 0; once needed
        self._fills: dict[tuple[torch.dtype, ...], list[Tensor]] = {}

    @property
    def weights(self) -> dict[str, Weight]:
        """Name -> weight; where `fully_shard` splits them, each rank holds its part after this access."""
        if self._model is not None:
            reshard_(self._model)
        return self._weights

    @property
    def masks(self) -> dict[str, Tensor]:
        """Name -> mask, in the shape, layout and memory format of the weight; empty while inactive.

        Change them only by `set` and `clear`.
        """
        if self._masks:
            for name, weight in self.weights.items():
                self._follow(name, weight)
        return self._masks

    @property
    def active(self) -> bool:
        """True if any mask is set."""
        return bool(self._masks)

    @property
    def pruned(self) -> dict[str, Tensor]:
        """Deprecated: name -> bool, True where a weight is pruned. Use `masks`, True where it is kept."""
        warn_renamed("MaskSet.pruned", "MaskSet.masks, which is True where a weight is kept")
        return {name: ~mask for name, mask in self._masks.items()}

    def set(self, masks: Mapping[str, Tensor]) -> None:
        """Replace the masks.

        Args:
            masks: name -> bool, True where a weight is kept, one per weight and of its shape. They are
                copied to the weight's device and memory layout. For a weight that is split over ranks, pass
                the entire mask, the same on every rank, or a DTensor.

        Raises:
            ValueError: names or shapes differ from the weights'.
            RuntimeError: the ranks of torch.distributed have different masks.
        """
        weights = self.weights
        if masks.keys() != weights.keys():
            missing, unknown = sorted(weights.keys() - masks.keys()), sorted(masks.keys() - weights.keys())
            reason = f"no mask for {missing[:3]}" if missing else f"{unknown[:3]} are not prunable weights"
            raise ValueError(f"masks and weights differ in names: {reason}; pass one mask per name in kept()")
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(
                    f"the mask of {name} must be a bool tensor, got {kind}: use (scores > threshold)"
                )
            if mask.shape != weights[name].shape:
                raise ValueError(
                    f"the mask of {name} must have its weight's shape {tuple(weights[name].shape)}, got "
                    f"{tuple(mask.shape)}"
                )
        self._masks = {name: _placed(masks[name], w.parameters[0]) for name, w in weights.items()}
        self._multipliers, self._fills = {}, {}
        self._check_equal(masks)

    def _check_equal(self, given: Mapping[str, Tensor]) -> None:
        """Compare only masks that every rank holds in full; the parts of a DTensor differ."""
        placed = {n: given[n] if is_sharded(mask) else mask for n, mask in self._masks.items()}
        compared = [mask for mask in placed.values() if not is_sharded(mask)]
        if compared:
            device = next(iter(self._masks.values())).device
            assert_equal_across_ranks(compared, "the masks", device=device)

    def kept(self) -> dict[str, Tensor]:
        """Name -> mask, True where a weight is on; all True while inactive. DTensors where weights are."""
        if self.active:
            return {name: mask.clone() for name, mask in self.masks.items()}
        firsts = {name: weight.parameters[0] for name, weight in self.weights.items()}
        shapes = {name: weight.shape for name, weight in self._weights.items()}
        ones = {n: torch.ones(shapes[n], dtype=torch.bool, device=p.device) for n, p in firsts.items()}
        return {name: place_like(mask, firsts[name]) for name, mask in ones.items()}

    def values(self) -> dict[str, Tensor]:
        """Theta by name, detached."""
        return {name: weight.value for name, weight in self.weights.items()}

    def clear(self) -> None:
        """Turn every weight on again; values do not change."""
        self._masks, self._multipliers, self._fills = {}, {}, {}

    def _follow(self, name: str, weight: Weight) -> None:
        """Move the mask to the weight if `model.to` has moved or `fully_shard` has split the weight."""
        mask, reference = self._masks[name], weight.parameters[0]
        if mask.device == reference.device and is_sharded(mask) == is_sharded(reference):
            return
        if mask.is_meta:
            raise RuntimeError(
                f"the mask of {name} was made on the meta device and has no values: attach the "
                "sparsifier after model.to_empty(device=...)"
            )
        self._masks[name] = _placed(mask, reference)
        self._multipliers.pop(name, None)

    def _trained_tensors(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """(trained tensor, this rank's part of the mask for `zero_pruned_`, value of a pruned entry)."""
        may_split = may_be_sharded()
        for name, mask in list(self._masks.items()):
            weight = self._weights[name]
            parameters = weight.parameters
            if mask.device != parameters[0].device or may_split:
                self._follow(name, weight)
            dtype = _INTEGERS.get(parameters[0].element_size(), torch.bool)
            multiplier = self._multipliers.get(name)
            if multiplier is None or multiplier.dtype != dtype:
                multiplier = self._multipliers[name] = local(self._masks[name]).to(dtype)
                self._fills = {}
            for parameter, value in zip(parameters, weight.pruned_value, strict=True):
                yield parameter, multiplier, value

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy and a pickle, without what can be computed from the masks."""
        return {**self.__dict__, "_multipliers": {}, "_fills": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; a pickle of an earlier version lacks the last two attributes."""
        self.__dict__.update({**state, "_multipliers": {}, "_fills": {}})

    @torch.no_grad()
    def apply_to_weights_(self) -> None:
        """Set every pruned weight to its pruned value."""
        trained = list(self._trained_tensors())
        zero_pruned_([(parameter, multiplier) for parameter, multiplier, _ in trained])
        filled = [entry for entry in trained if entry[2]]  # the first factors of products
        if filled:
            # float16 and bfloat16 differ in bits, not in size
            dtypes = tuple([p.dtype for p, _, _ in filled])
            if dtypes not in self._fills:
                self._fills = {dtypes: [(1 - multiplier) * _bits_of(v, p) for p, multiplier, v in filled]}
            bits = [local(p).detach().view(multiplier.dtype) for p, multiplier, _ in filled]
            torch._foreach_add_(bits, self._fills[dtypes])  # +0.0 has no bits

    @torch.no_grad()
    def apply_to_gradients_(self) -> None:
        """Set every pruned weight's gradient to +0.0.

        Raises:
            ValueError: a gradient is sparse.
        """
        gradients = [
            (p.grad, multiplier) for p, multiplier, _ in self._trained_tensors() if p.grad is not None
        ]
        if any(gradient.is_sparse for gradient, _ in gradients):
            raise ValueError(
                "a weight has sparse gradients, which cannot be masked: set sparse=False in its layer"
            )
        zero_pruned_(gradients)

    @torch.no_grad()
    def apply_to_optimizer_(self, optimizer: Optimizer) -> None:
        """Set every pruned weight's optimizer state to +0.0, so that no step can move the weight.

        Raises:
            ValueError: the optimizer keeps quantized state, which has no exact zero.
        """
        zero_pruned_(
            [
                (state, multiplier)
                for parameter, multiplier, _ in self._trained_tensors()
                for state in elementwise_state(optimizer, parameter).values()
            ]
        )

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, weights that the mask keeps, total) of each weight."""
        totals = {name: weight.numel() for name, weight in self.weights.items()}
        kept = count_nonzero(list(self.masks.values())) if self.active else list(totals.values())
        yield from ((name, count, totals[name]) for name, count in zip(totals, kept, strict=True))

    def empty(self) -> list[str]:
        """The names of weights of which nothing is kept; one host sync. A mask on meta has no content."""
        masks = {name: mask for name, mask in self.masks.items() if not mask.is_meta}
        if not masks:
            return []
        device = next(iter(masks.values())).device
        kept = sum_over_parts((local(mask).any().long() for mask in masks.values()), masks.values())
        counts = torch.stack([count.to(device) for count in kept]).tolist()
        return [name for name, count in zip(masks, counts, strict=True) if not count]

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """{"kept": name -> mask}, without entries while inactive; DTensors where weights are."""
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


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element -> dtype


def _bits_of(value: float, like: Tensor) -> int:
    """The bits of a number in the dtype of a tensor, as an integer."""
    dtype = _INTEGERS[like.element_size()]
    return int(torch.tensor(value, dtype=like.dtype, device="cpu").view(dtype))


@torch.no_grad()
def zero_pruned_(tensors: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Set entries to +0.0, in a few launches for any number of tensors.

    The bits of a number are multiplied as an integer: by 1 they stay, by 0 they become those of +0.0. A
    product of numbers would leave -0.0 and nan.

    Args:
        tensors: pairs of a tensor and a mask of its shape, 0 where the tensor is set to +0.0, else 1. Tensors
            whose mask has integers of another size than their elements are set one by one.
    """
    pairs = [(local(tensor).detach(), multiplier) for tensor, multiplier in tensors]
    equal = [(t, m) for t, m in pairs if t.element_size() == m.element_size() and m.dtype != torch.bool]
    if equal:
        torch._foreach_mul_([t.view(m.dtype) for t, m in equal], [m for _, m in equal])
    if len(equal) < len(pairs):
        for tensor, multiplier in pairs:
            if tensor.element_size() != multiplier.element_size() or multiplier.dtype == torch.bool:
                tensor.masked_fill_(multiplier == 0, 0)


def _placed(mask: Tensor, reference: Tensor) -> Tensor:
    """A copy of the mask in the layout, on the device and in the memory format of a weight's tensor."""
    part = torch.empty_like(local(reference), dtype=torch.bool)
    part.copy_(local(place_like(mask, reference)))
    return sharded_like(part, reference) if is_sharded(reference) else part
