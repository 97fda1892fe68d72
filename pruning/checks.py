"""Checks that a sparsifier, a model and an optimizer fit together, with errors of one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from .shards import is_sharded
from .weights import ComputedWeight, Weight

_MIN_COVERAGE = 0.5

Ties: TypeAlias = list[tuple[nn.Module, str, str]]
"""(module, attribute, name of the weight) of parameters that a weight elsewhere shares."""


class SparsityWarning(UserWarning):
    """A training that does not give the sparsity that a user expects."""


class NotAttachedError(RuntimeError, AttributeError):
    """A sparsifier is used before `attach`."""


def check_attached(model: Any, parameterization: Any, kind: type) -> None:
    """Raise TypeError unless these are a module and None or an instance of `kind`."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"attach needs a torch.nn.Module, got {type(model).__name__}: call attach(model, ...) or "
            "attach(model, optimizer, ...), with the model itself first"
        )
    if parameterization is not None and not isinstance(parameterization, kind):
        is_class = isinstance(parameterization, type)
        given = f"the class {parameterization.__name__}" if is_class else repr(parameterization)
        raise TypeError(
            f"parameterization must be an instance such as pruning.Product(), or None, got {given}"
        )


def check_separate(weights: Mapping[str, Weight]) -> None:
    """Raise ValueError where two weights are different parameters that start at the same place in memory."""
    places: dict[tuple[torch.device, int], str] = {}
    for name, weight in weights.items():
        for p in weight.parameters:
            if type(p.data) is not Tensor or p.layout is not torch.strided or p.device.type == "meta":
                continue
            if (first := places.setdefault((p.device, p.data_ptr()), name)) != name and p.data_ptr():
                raise ValueError(
                    f"{first} and {name} are two parameters in the same memory, and would get two masks: "
                    "make them one parameter, or exclude one"
                )


def check_before_parametrizing(model: nn.Module, method: str) -> None:
    """Raise ValueError where new parameters would not be trained: in DistributedDataParallel, or sharded."""
    check_not_sharded(model, method)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            f"{method} replaces parameters that DistributedDataParallel has registered already: attach to "
            "the model first, then wrap it"
        )


def check_not_sharded(model: nn.Module, method: str) -> None:
    """Raise ValueError where `fully_shard` has split parameters that a method replaces by its own."""
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise ValueError(
            f"{method} replaces parameters, and fully_shard has split these: use DistributedDataParallel, or "
            "a method that sets masks on plain weights, such as ACDC or RigL"
        )


def check_units_not_sharded(model: nn.Module, granularity: str) -> None:
    """Raise ValueError where `fully_shard` has split weights that are pruned in units of more than one."""
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise ValueError(
            f"granularity {granularity} does not work on weights that fully_shard has split: use "
            'granularity="element", or DistributedDataParallel'
        )


def check_not_sharded_yet(weights: Mapping[str, Weight], method: str) -> None:
    """Raise ValueError where `fully_shard` has split weights that a method scores on the entire network."""
    if any(is_sharded(parameter) for weight in weights.values() for parameter in weight.parameters):
        raise ValueError(
            f"{method} scores entire weights, and fully_shard has split these: call attach and initialize "
            "before fully_shard"
        )


def check_real(weights: Mapping[str, Weight], method: str) -> None:
    """Raise ValueError where a weight that a method scores is complex."""
    for name, weight in weights.items():
        if weight.parameters[0].is_complex():
            raise ValueError(
                f"{name} is complex and {method} scores real weights: exclude it, or choose SNIP"
            )


def check_takes_masks(weights: Mapping[str, Weight]) -> None:
    """Raise ValueError where a weight is computed, as by torch.nn.utils.parametrizations.weight_norm."""
    for name, weight in weights.items():
        if isinstance(weight, ComputedWeight):
            raise ValueError(f"{name}: {weight.no_mask_error()}, or exclude it")


def warn_of_low_coverage(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Warn where the prunable weights are less than half of the model's parameters."""
    covered = sum(p.numel() for weight in weights.values() for p in weight.parameters)
    total = sum(p.numel() for p in model.parameters() if not isinstance(p, UninitializedParameter))
    if covered < _MIN_COVERAGE * total:
        warn_at_caller(
            f"the prunable weights are {100 * covered / total:.0f} % of the model's parameters, and the "
            "sparsity counts only these: include others by attach(..., include=[globs]), unless they are "
            "frozen"
        )


def warn_of_empty_layers(names: Iterable[str]) -> None:
    """Warn if a layer keeps no weight: the network then ignores the layer's input."""
    if names := list(names):
        others = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warn_at_caller(
            f"all weights of {', '.join(names[:3])}{others} are pruned: lower the sparsity, exclude them, or "
            "prune layerwise"
        )


def warn_at_caller(message: str) -> None:
    """Warn at the line outside this package that led here."""
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, SparsityWarning, stacklevel=level)


def warn_of_new_layers(names: Sequence[str]) -> None:
    """Warn where weights have become prunable after `attach`, which masks and counts do not include."""
    several = len(names) > 1
    others, be = (f" and {len(names) - 1} more", "are") if several else ("", "is")
    they, them = ("they stay", "them") if several else ("it stays", "it")
    warn_at_caller(
        f"{names[0]}{others} joined the model after attach or {be} no longer frozen: {they} dense, and the "
        f"sparsity does not count {them}; attach after the last change of the model's layers, or exclude "
        f"{them}"
    )


def tied_places(model: nn.Module, weights: Mapping[str, Weight]) -> Ties:
    """(module, attribute, name of the weight) wherever another layer shares the parameter of a weight."""
    owned = {id(p): (name, weight) for name, weight in weights.items() for p in weight.parameters}
    return [
        (module, attribute, owned[id(p)][0])
        for module in model.modules()
        for attribute, p in module._parameters.items()
        if id(p) in owned and not owned[id(p)][1].is_at(module, attribute)
    ]


def check_model(model: nn.Module, weights: Mapping[str, Weight], ties: Ties | None = None) -> None:
    """Raise RuntimeError unless every weight still is a parameter of the model, parametrized as before.

    Args:
        model: the model that the sparsifier is attached to.
        weights: the prunable weights.
        ties: ties of the weights at `attach`, from `tied_places`; None: not compared.
    """
    owned = {id(p) for p in model.parameters()}
    layers = {id(module) for module in model.modules()}
    for name, weight in weights.items():
        if isinstance(weight.owner, ParametrizationList) and len(weight.owner) > 1:
            raise RuntimeError(
                f"{name} got another parametrization after attach: remove it, or attach after adding it and "
                "exclude that weight"
            )
        for tensor in weight.parameters:
            has_moved = isinstance(weight.owner, nn.Module) and id(weight.owner) not in layers
            if has_moved or not isinstance(tensor, nn.Parameter) or id(tensor) not in owned:
                raise RuntimeError(
                    f"{name} is no longer a parameter of the model: attach the sparsifier after the last "
                    "change of the model's layers"
                )
    if ties is not None:
        _check_ties(model, weights, ties)


def _check_ties(model: nn.Module, weights: Mapping[str, Weight], ties: Ties) -> None:
    cure = "tie weights before attach, and attach after the last change of the model's layers"
    firsts: dict[int, str] = {}
    for name, weight in weights.items():
        for p in weight.parameters:
            if (first := firsts.setdefault(id(p), name)) != name:
                raise RuntimeError(f"{first} and {name} became one parameter with two masks: {cure}")
    name_of = {id(module): prefix for prefix, module in model.named_modules()}
    before = {(id(module), attribute) for module, attribute, _ in ties}
    for module, attribute, name in ties:
        if id(module) in name_of and firsts.get(id(module._parameters.get(attribute))) != name:
            shared_name = f"{name_of[id(module)]}.{attribute}".removeprefix(".")
            raise RuntimeError(
                f"{shared_name} no longer shares the parameter of {name}, and has no mask: {cure}"
            )
    for module, attribute, name in tied_places(model, weights):
        if (id(module), attribute) not in before:
            shared_name = f"{name_of[id(module)]}.{attribute}".removeprefix(".")
            raise RuntimeError(f"{shared_name} shares the parameter of {name} since attach: {cure}")
