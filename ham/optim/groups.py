"""Selection of the parameters that HAM acts on, and parameter groups that store the selection."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

_NORM = re.compile(r"(Batch|Layer|Group|Instance|RMS)Norm", re.IGNORECASE)
_PARAMETRIZATION = re.compile(r"(^|\.)parametrizations\.\w+\.\d+\.")

ParamFilter = Callable[[str, nn.Module, nn.Parameter], bool]
"""(qualified name, owning module, parameter) -> True if the parameter is selected."""

Selection = str | ParamFilter | Sequence[str]
"""A filter, its name (not_norm, ndim2, everything), a glob of parameter names, or a list of both."""


def not_norm(name: str, module: nn.Module, param: nn.Parameter) -> bool:
    """Return True for parameters of all layers except normalization layers, by module type (App. G).

    Return False also for a parametrization's own parameters (torch.nn.utils.parametrize), such as the
    thresholds of STR: they are not weights of the network. A weight that it transforms is selected by its
    layer.
    """
    norm = any(_NORM.search(cls.__name__) for cls in type(module).__mro__)
    return not norm and not _PARAMETRIZATION.search(name)


def ndim2(name: str, module: nn.Module, param: nn.Parameter) -> bool:
    """Return True for parameters of two or more dimensions, as in the authors' wrapper: not for biases."""
    return param.ndim >= 2


def everything(name: str, module: nn.Module, param: nn.Parameter) -> bool:
    """Return True for every parameter."""
    return True


_FILTERS: dict[str, ParamFilter] = {"not_norm": not_norm, "ndim2": ndim2, "everything": everything}


def owned_parameters(
    model: nn.Module, *, frozen: bool = False
) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Each parameter once, with its qualified name and owning module; frozen ones only with `frozen`.

    The original of a parametrized weight (torch.nn.utils.parametrize) belongs to the layer that has the
    weight.
    """
    seen: set[int] = set()
    layers: dict[int, nn.Module] = {}  # id of what keeps the original of a weight -> its layer
    for prefix, module in model.named_modules():
        if is_parametrized(module):
            layers |= {id(originals): module for originals in module.parametrizations.values()}
        for name, param in module.named_parameters(recurse=False):
            if (frozen or param.requires_grad) and id(param) not in seen:
                seen.add(id(param))
                yield (f"{prefix}.{name}" if prefix else name), layers.get(id(module), module), param


def as_filter(select: Selection, model: nn.Module) -> ParamFilter:
    """A filter from its name (not_norm, ndim2, everything), a glob ("*.weight"), a list or a function.

    A list selects what at least one of its entries selects.

    Raises:
        ValueError: a glob matches no trainable parameter of `model`, or the list is empty.
        TypeError: `select` is none of these, or `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}: pass the model itself, not its "
            "parameters"
        )
    if callable(select):
        return select
    if isinstance(select, list | tuple | set) and all(isinstance(entry, str) for entry in select):
        if not select:
            raise ValueError("the list of names is empty: pass names, or a function that returns False")
        filters = [as_filter(entry, model) for entry in select]
        return lambda name, module, param: any(selects(name, module, param) for selects in filters)
    if not isinstance(select, str):
        raise TypeError(f"select and decay must be a name, a glob, a list or a function, got {select!r}")
    if select in _FILTERS:
        return _FILTERS[select]
    if not any(fnmatchcase(name, select) for name, _, _ in owned_parameters(model)):
        raise ValueError(
            f"{select!r} matches no parameter and is not one of {', '.join(_FILTERS)}: see named_parameters()"
        )
    return lambda name, module, param: fnmatchcase(name, select)


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    select: Selection = not_norm,
    decay: Selection = everything,
) -> list[dict]:
    """Parameter groups for any torch optimizer, by whether HAM acts and whether weight decay does.

    Args:
        model: the model; each of its trainable parameters is in exactly one group.
        weight_decay: weight decay of the decayed groups; 0 in the others.
        select: the parameters that HAM acts on: `not_norm` (the paper), `ndim2` (the authors' wrapper), a
            glob of names, a list of both, or a function of (qualified name, owning module, parameter).
        decay: the parameters that weight decay acts on; by default all, as in the paper's code base.

    Returns:
        Groups with the keys params, weight_decay, ham_alpha, ham_beta and ham_explicit. `ham_alpha` and
        `ham_beta` are None where `HAM` fills in its own values and 0 where it does not act; `ham_explicit`
        is True: the values hold for all parameters of the group.

    Raises:
        ValueError: a pattern matches no parameter, the model has no trainable parameters, or `weight_decay`
            is negative.
        TypeError: `model` is not a module, or `select` or `decay` is not a selection.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
    selects, decays = as_filter(select, model), as_filter(decay, model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, module, param in owned_parameters(model):
        groups.setdefault((selects(name, module, param), decays(name, module, param)), []).append(param)
    if not groups:
        raise ValueError("the model has no trainable parameter: set requires_grad before building groups")
    return [
        {
            "params": params,
            "weight_decay": weight_decay if decayed else 0.0,
            "ham_alpha": None if selected else 0.0,
            "ham_beta": None if selected else 0.0,
            "ham_explicit": True,
        }
        for (selected, decayed), params in sorted(groups.items(), reverse=True)
    ]
