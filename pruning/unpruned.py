"""The values of weights before `attach` pruned them: a state that is loaded next may keep others of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .masks import MaskSet
from .shards import local


class _Copy(NamedTuple):
    """A trained tensor, the value of its pruned entries, and its values before `attach`, on the CPU."""

    tensor: Tensor
    pruned_value: float
    values: Tensor

    def is_as_attach_left_it(self) -> bool:
        """True if every entry has its value of before or is pruned; False also for nan."""
        now = local(self.tensor).detach().cpu()
        return bool(((now == self.values) | (now == self.pruned_value)).all())


class Unpruned:
    """Copies on the CPU of all weights, held from `attach` to the first step or the first loaded state.

    Args:
        masks: not applied yet.
    """

    def __init__(self, masks: MaskSet) -> None:
        self._copies = [
            _Copy(p, value, local(p).detach().to("cpu", copy=True))
            for weight in masks.weights.values()
            for p, value in zip(weight.parameters, weight.pruned_value, strict=True)
            if not p.is_meta
        ]
        self._versions: list[int] = []

    def note_versions(self) -> None:
        """Store the versions of the tensors, with the masks applied."""
        self._versions = [local(copy.tensor)._version for copy in self._copies]

    @torch.no_grad()
    def restore_(self) -> bool:
        """Set the tensors that nothing has written since `note_versions` to their copies.

        Values are compared too: torch counts no write through `p.data`.

        Returns:
            False if there is no such tensor.
        """
        unchanged = [
            copy
            for copy, version in zip(self._copies, self._versions, strict=True)
            if local(copy.tensor)._version == version and copy.is_as_attach_left_it()
        ]
        for copy in unchanged:
            local(copy.tensor).copy_(copy.values)
        return bool(unchanged)

    def lacks_values(self, masks: MaskSet) -> bool:
        """True if the weights are as `attach` left them, and the masks keep some that it has pruned.

        DistributedDataParallel causes this: it sends the weights to all ranks after `attach`.
        """
        copies = {id(copy.tensor): copy for copy in self._copies}
        kept_lost = False
        for name, weight in masks.weights.items():
            for p in weight.parameters:
                if id(p) not in copies or not (copy := copies[id(p)]).is_as_attach_left_it():
                    return False
                lost = local(p).detach().cpu() != copy.values
                kept_lost = kept_lost or bool((lost & local(masks.masks[name]).cpu()).any())
        return kept_lost
