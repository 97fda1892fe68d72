"""The values of weights before `attach` pruned them: a state that is loaded next may keep others of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .masks import MaskSet
from .shards import local


class Unpruned:
    """Copies on the CPU of all weights, held from `attach` to the first step or the first loaded state.

    Args:
        masks: not applied yet.
    """

    def __init__(self, masks: MaskSet) -> None:
        tensors = [p for weight in masks.weights.values() for p in weight.parameters if not p.is_meta]
        self._copies = [(p, local(p).detach().to("cpu", copy=True)) for p in tensors]
        self._versions: list[int] = []

    def note_versions(self) -> None:
        """Remember the tensors as they are, with the masks applied."""
        self._versions = [local(p)._version for p, _ in self._copies]

    @torch.no_grad()
    def restore_(self) -> bool:
        """Set to its copy what nothing has written since `note_versions`. False: there is nothing such."""
        unchanged = [
            (p, copy)
            for (p, copy), version in zip(self._copies, self._versions, strict=True)
            if local(p)._version == version
        ]
        for p, copy in unchanged:
            local(p).copy_(copy)
        return bool(unchanged)

    def lacks_values(self, masks: MaskSet) -> bool:
        """Do the weights have the values that `attach` left, and keep the masks some that it has pruned?

        So it is where DistributedDataParallel has sent the weights to all ranks since `attach`.
        """
        copies = {id(p): copy for p, copy in self._copies}
        kept_lost = False
        for p, pruned_value, mask in _tensors(masks):
            if id(p) not in copies:
                return False
            now, before = local(p).detach().cpu(), copies[id(p)]
            if not bool(((now == before) | (now == pruned_value)).all()):
                return False
            kept_lost = kept_lost or bool(((now != before) & local(mask).cpu()).any())
        return kept_lost


def _tensors(masks: MaskSet) -> Iterable[tuple[Tensor, float, Tensor]]:
    """(trained tensor, value of a pruned entry, mask) of all weights."""
    kept = masks.masks
    for name, weight in masks.weights.items():
        for p, value in zip(weight.parameters, weight.pruned_value, strict=True):
            yield p, value, kept[name]
