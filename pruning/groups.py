"""Optimizer groups: a weight decay for chosen parameters, and one learning rate for all groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def split_by_weight_decay(params: Iterable[Any], decays: Mapping[Tensor, float]) -> list[dict[str, Any]]:
    """Optimizer groups, split where their parameters need different weight decays.

    Args:
        params: parameters or groups, as an optimizer takes them; every other key of a group is kept.
        decays: parameter -> its weight decay; the others keep the decay of their group.
    """
    params = list(params)
    groups = params if params and isinstance(params[0], dict) else [{"params": params}]
    decay_of = {id(p): decay for p, decay in decays.items()}
    result = []
    for group in groups:
        parts: dict[float | None, list[Any]] = {None: []}
        members = group["params"]
        for p in [members] if isinstance(members, Tensor) else members:
            tensor = p[1] if isinstance(p, tuple) else p  # torch takes (name, parameter) too
            parts.setdefault(decay_of.get(id(tensor)), []).append(p)
        for decay, part in parts.items():
            if part or len(parts) == 1:
                result.append({**group, "params": part, **({} if decay is None else {"weight_decay": decay})})
    return result


def set_learning_rate_(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group, in place where it is a tensor, as of a captured CUDA graph."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
