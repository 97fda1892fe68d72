"""Which parameters HAM acts on, and parameter groups that say so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from torch import nn

_NORM = re.compile(r"(Batch|Layer|Group|Instance|RMS)Norm", re.IGNORECASE)
_OF_A_PARAMETRIZATION = re.compile(r"(^|\.)parametrizations\.\w+\.\d+\.")

Rule = Callable[[str, nn.Module, nn.Parameter], bool]
"""A rule answers for (qualified name, owning module, parameter)."""


def not_norm(name: str, module: nn.Module, param: nn.Parameter) -> bool:
    """All layers except BatchNorm and LayerNorm and their kin, told apart by module type (App. G).

    Nor a parametrization's own parameters (torch.nn.utils.parametrize), such as the thresholds of STR: they
    are no weights of the network. The weights that it transforms are in.
    """
    norm = any(_NORM.search(cls.__name__) for cls in type(module).__mro__)
    return not norm and not _OF_A_PARAMETRIZATION.search(name)


def ndim2(name: str, module: nn.Module, param: nn.Parameter) -> bool:
    """Two and more dimensions: the rule of the authors' wrapper (biases out, position embeddings in)."""
    return param.ndim >= 2


def everything(name: str, module: nn.Module, param: nn.Parameter) -> bool:
    """Every parameter."""
    return True


_RULES: dict[str, Rule] = {"not_norm": not_norm, "ndim2": ndim2, "everything": everything}


def owned_parameters(
    model: nn.Module, *, frozen: bool = False
) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Each parameter once, with its qualified name and owning module; frozen ones only if asked for."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if (frozen or param.requires_grad) and id(param) not in seen:
                seen.add(id(param))
                yield (f"{prefix}.{name}" if prefix else name), module, param


def as_rule(select: str | Rule, model: nn.Module) -> Rule:
    """A rule from its name (not_norm, ndim2, everything), a glob of names ("*.weight") or a function.

    Raises:
        ValueError: the glob matches no trainable parameter of `model`.
    """
    if callable(select):
        return select
    if select in _RULES:
        return _RULES[select]
    if not any(fnmatchcase(name, select) for name, _, _ in owned_parameters(model)):
        raise ValueError(
            f"{select!r} matches no parameter and is no rule ({', '.join(_RULES)}): see named_parameters()"
        )
    return lambda name, module, param: fnmatchcase(name, select)


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    select: str | Rule = not_norm,
    decay: str | Rule = everything,
) -> list[dict]:
    """Parameter groups for any torch optimizer, sorted by "does HAM act" and "is it decayed".

    Args:
        model: every trainable parameter of it lands in exactly one group.
        weight_decay: of the decayed groups; 0 in the others.
        select: where HAM acts. `not_norm` (the paper), `ndim2` (the authors' wrapper), a glob of names or
            your own rule.
        decay: where weight decay acts; default everywhere, as in the paper's code base.

    Returns:
        Groups with the keys params, weight_decay, ham_alpha, ham_beta and ham_chosen. `ham_alpha` and
        `ham_beta` are None where `HAM` shall fill in its own values and 0 where it shall not act;
        `ham_chosen` says that the group speaks for all its parameters.

    Raises:
        ValueError: a pattern that matches nothing, or a model without trainable parameters.
    """
    selects, decays = as_rule(select, model), as_rule(decay, model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, module, param in owned_parameters(model):
        groups.setdefault((selects(name, module, param), decays(name, module, param)), []).append(param)
    if not groups:
        raise ValueError("the model has no trainable parameter; set requires_grad before building groups")
    return [
        {
            "params": params,
            "weight_decay": weight_decay if decayed else 0.0,
            "ham_alpha": None if selected else 0.0,
            "ham_beta": None if selected else 0.0,
            "ham_chosen": True,
        }
        for (selected, decayed), params in sorted(groups.items(), reverse=True)
    ]
