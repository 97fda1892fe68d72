"""Optimizer groups in which chosen parameters have a weight decay of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def split_by_weight_decay(params: Iterable[Any], decays: Mapping[Tensor, float]) -> list[dict[str, Any]]:
    """Optimizer groups, split where their parameters need different weight decays.

    Args:
        params: what an optimizer takes, parameters or groups; every other key of a group is kept.
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
