"""What can be pruned: the weights of linear, convolution and attention layers."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_LAYERS = {_ConvNd: ("weight",), nn.Linear: ("weight",), nn.MultiheadAttention: _PROJECTIONS}


def prunable_weights(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """Qualified name -> weight, in the order of `model.named_modules()`; no biases, no norm layers.

    Args:
        model: any module; a weight shared by several layers appears once.
        exclude: globs of names to keep dense, such as "conv1.weight" or "head.*".

    Raises:
        ValueError: a glob that matches nothing, or nothing left to prune.
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        attributes = (a for kind, names in _LAYERS.items() if isinstance(module, kind) for a in names)
        for attribute in attributes:
            weight = getattr(module, attribute, None)
            if weight is not None and weight.requires_grad and id(weight) not in seen:
                seen.add(id(weight))
                found[f"{prefix}.{attribute}" if prefix else attribute] = weight
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"exclude={pattern!r} matches no prunable weight; names are like conv1.weight")
    kept = {n: w for n, w in found.items() if not any(fnmatchcase(n, pattern) for pattern in exclude)}
    if not kept:
        raise ValueError("nothing to prune: no linear or convolution weight is trainable and not excluded")
    return kept
