"""Checks that a sparsifier, a model and an optimizer fit together, with errors of one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from math import isfinite
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from .shards import is_sharded
from .weights import ComputedWeight, Weight

_SENSIBLE_COVERAGE = 0.5

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


def check_counts(total_epochs: int, steps_per_epoch: int | None) -> None:
    """Raise ValueError unless both are positive integers, or `steps_per_epoch` is None."""
    for name, value in (("total_epochs", total_epochs), ("steps_per_epoch", steps_per_epoch)):
        if name == "steps_per_epoch" and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            cure = ": count the calls of optimizer.step()" if name == "steps_per_epoch" else ""
            raise ValueError(f"{name} must be positive and an integer, got {value!r}{cure}")


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


def check_positive_integer(name: str, value: Any, unit: str = "") -> None:
    """Raise ValueError with the option's name unless `value` is an integer of at least 1."""
    if check_integer(name, value) < 1:
        raise ValueError(f"{name} must be at least 1{unit}, got {value}")


def check_integer(name: str, value: Any) -> int:
    """The integer, also one of numpy. Raises ValueError with the option's name on anything else."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer, got {_shown(value)}")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """The number, also one of numpy. Raises ValueError unless it is one and finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {_shown(value)}")
    if not isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value if isinstance(value, int) else float(value)


def check_flag(name: str, value: Any) -> bool:
    """The flag. Raises ValueError unless it is True or False: a text such as "no" would be true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {_shown(value)}")
    return value


def check_globs(name: str, value: Any) -> list[str]:
    """The globs as a list, also of a single one. Raises ValueError on what is not text."""
    globs = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(glob, str) for glob in globs):
        raise ValueError(f'{name} must be a list of globs such as ["head.*"], got {_shown(value)}')
    return globs


_CHECKS = {"bool": check_flag, "int": check_integer, "float": check_number, "list[str]": check_globs}


def check_options(owner: Any) -> None:
    """Check every field of a dataclass by its declared type, and convert numbers of other packages.

    Raises:
        ValueError: a flag is not True or False, or a number is none or not finite; its name is in the error.
    """
    for field in fields(owner):
        declared = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        check, value = _CHECKS.get(declared.removesuffix(" | None")), getattr(owner, field.name)
        if check is not None and not (value is None and declared.endswith(" | None")):
            setattr(owner, field.name, check(field.name, value))


def _shown(value: Any) -> str:
    """A value in one line, for an error."""
    return " ".join(repr(value).split())


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
    if covered < _SENSIBLE_COVERAGE * total:
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


def warn_of_decay_in_ham(optimizer: Any) -> None:
    """Warn where HAM is attached to an optimizer, and would read gradients with a penalty in them."""
    if any(getattr(layer, "_ham", None) is not None for layer in layers_of(optimizer)):
        warn_at_caller(
            "HAM reads the gradients of the factors m and w with their decay in them: call "
            "sparsifier.hook(optimizer) in place of after_backward, add_decay and after_step, or set "
            "parameterization.decoupled_decay=True and register its remove_decay as a step post-hook"
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
            place = f"{name_of[id(module)]}.{attribute}".removeprefix(".")
            raise RuntimeError(f"{place} no longer shares the parameter of {name}, and has no mask: {cure}")
    for module, attribute, name in tied_places(model, weights):
        if (id(module), attribute) not in before:
            place = f"{name_of[id(module)]}.{attribute}".removeprefix(".")
            raise RuntimeError(f"{place} shares the parameter of {name} since attach: {cure}")


def check_optimizer(optimizer: Optimizer, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError unless the optimizer trains every tensor of `weights` that has requires_grad.

    Args:
        optimizer: the optimizer used for training.
        weights: pairs (name, trained tensor).
    """
    weights = list(weights)
    if sparse := [name for name, p in weights if p.grad is not None and p.grad.is_sparse]:
        raise ValueError(
            f"{sparse[0]} has sparse gradients, which cannot be masked: set sparse=False in its layer"
        )
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, tensor in weights if tensor.requires_grad and id(tensor) not in trained]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        shard = " and fully_shard(model)" if any(is_sharded(tensor) for _, tensor in weights) else ""
        raise ValueError(
            f"the optimizer does not train {missing[0]}{others}: create it after sparsifier.attach(model)"
            f"{shard}, from the model's parameters; freeze weights that should not be trained, and exclude "
            "those that another optimizer trains"
        )


def unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimizer inside wrappers such as accelerate's and SAM's.

    Raises:
        TypeError: there is no torch optimizer inside.
        ValueError: the optimizer does not run step hooks.
    """
    optimizer = layers_of(optimizer)[-1]
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"hook needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not runs_hooks(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} does not run the step hooks of torch.optim.Optimizer: call "
            "after_backward, add_decay and after_step around its step"
        )
    return optimizer


def layers_of(optimizer: Any) -> list[Any]:
    """The wrappers around an optimizer from the outside to the inside, then the optimizer itself."""
    layers = [optimizer]
    while (inner := _inside(layers[-1])) is not None and not any(inner is layer for layer in layers):
        layers.append(inner)
    return layers


def _inside(wrapper: Any) -> Optimizer | None:
    """The optimizer that a wrapper holds and whose hooks take the place of its own."""
    inner = getattr(wrapper, "base_optimizer", None)  # SAM's: its two-step API does not call SAM's own step
    if isinstance(inner, Optimizer) and _share_parameters(wrapper, inner):
        return inner
    if runs_hooks(wrapper):  # Lookahead, which moves weights after the step of the optimizer inside
        return None
    inner = getattr(wrapper, "optimizer", None)
    return inner if isinstance(inner, Optimizer) else None


def _share_parameters(wrapper: Any, inner: Optimizer) -> bool:
    groups = getattr(wrapper, "param_groups", inner.param_groups)
    own = {id(p) for group in groups for p in group["params"]}
    return any(id(p) in own for group in inner.param_groups for p in group["params"])


def runs_hooks(optimizer: Any) -> bool:
    """Return True for an optimizer whose step calls the hooks of torch.optim.Optimizer."""
    return isinstance(optimizer, Optimizer) and getattr(type(optimizer).step, "hooked", False)
