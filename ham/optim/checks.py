"""Checks of the optimizer and the hyperparameters, with errors of one line."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ham.c_code import CompilerError

from . import cpu_step
from .hyperbolic import COMPILED_FAILS, DTYPES, IMPLEMENTATIONS

LearningRate = Callable[[dict], float | Tensor]
"""Parameter group -> the rate of the base step that was just taken."""

_UNSUITABLE = (torch.optim.LBFGS, torch.optim.SparseAdam)
_HOOKS = (
    "defaults",
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside wrappers such as accelerate's, Lookahead's and SAM's.

    Raises:
        TypeError: `optimizer` is not a torch optimizer.
    """
    return layers_of(optimizer)[-1]


def layers_of(optimizer: Optimizer) -> list[Optimizer]:
    """The wrappers around a torch optimizer from the outside to the inside, then the optimizer itself.

    Raises:
        TypeError: `optimizer` is not a torch optimizer.
    """
    layers = [optimizer]
    while (inner := _inner_optimizer(layers[-1])) is not None and not any(inner is layer for layer in layers):
        layers.append(inner)
    if not isinstance(layers[-1], Optimizer):
        raise TypeError(f"HAM attaches to a torch.optim.Optimizer, got {type(layers[-1]).__name__}")
    return layers


def _inner_optimizer(wrapper: Any) -> Optimizer | None:
    """The optimizer that a wrapper holds."""
    for name in ("optimizer", "_base_optimizer"):  # timm's Lookahead has the second
        if isinstance(inner := getattr(wrapper, name, None), Optimizer):
            return inner
    inner = getattr(wrapper, "base_optimizer", None)  # SAM's: its two-step API does not call SAM's own step
    return inner if isinstance(inner, Optimizer) and _share_parameters(wrapper, inner) else None


def _share_parameters(wrapper: Any, inner: Optimizer) -> bool:
    groups = getattr(wrapper, "param_groups", inner.param_groups)
    own = {id(p) for group in groups for p in group["params"]}
    return any(id(p) in own for group in inner.param_groups for p in group["params"])


def as_number(value: Any) -> Any:
    """A number of another package, or in a tensor, as a float; other values are returned unchanged."""
    is_number = _is_one_number(value) if isinstance(value, Tensor) else isinstance(value, Real)
    return float(value) if is_number else value


def _is_one_number(value: Tensor) -> bool:
    return value.numel() == 1 and not value.is_complex()


def _describe(value: Any) -> str:
    """A value in one line, for an error."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return " ".join(repr(value).split())


def may_act(group: dict) -> bool:
    """Return True unless alpha and beta of the group are known to be 0 without waiting for a device."""
    return may_differ_from_0(group["ham_alpha"]) or may_differ_from_0(group["ham_beta"])


def may_differ_from_0(value: float | Tensor) -> bool:
    """Return True unless the value is known to be 0 without waiting for a device."""
    if isinstance(value, Tensor) and (value.device.type != "cpu" or torch.compiler.is_compiling()):
        return True
    return bool(value != 0)


def check_hyperparameters(
    alpha: float, beta: float, clamp: float, max_weight_norm: float | None, implementation: str | None
) -> None:
    """Raise TypeError if a value is not a number, ValueError if it is out of range."""
    numbers = {"alpha": alpha, "beta": beta, "clamp": clamp, "max_weight_norm": max_weight_norm}
    for name, value in numbers.items():
        if not (isinstance(value, Real) or (value is None and name == "max_weight_norm")):
            raise TypeError(f"{name} must be a number, got {_describe(value)}")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and not negative, got {beta}")
    if not clamp > 0:
        raise ValueError(f"clamp must be positive, got {clamp}; the paper uses 5")
    if max_weight_norm is not None and not max_weight_norm > 0:
        raise ValueError(f"max_weight_norm must be positive or None, got {max_weight_norm}")
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {implementation!r}"
        )


def check_flags(**flags: bool) -> None:
    """Raise TypeError on a value that is neither True nor False: text such as "no" would be True."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {_describe(value)}")


def check_implementation(optimizer: Optimizer, implementation: str | None) -> None:
    """Raise ValueError where no weight is on a device of the implementation, or a C compiler is missing."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    devices = {p.device.type for p in params}
    if implementation == "compiled":
        for dtype in {p.dtype for p in params if p.device.type == "cpu"} & {*DTYPES}:
            try:
                cpu_step.load(dtype)
            except CompilerError as error:
                raise ValueError(COMPILED_FAILS.format(error)) from None
    if implementation == "triton" and devices == {"cpu"} and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "implementation='triton' is for CUDA weights: use 'fused', 'compiled', 'foreach' or None"
        )


def check_optimizer(optimizer: Optimizer, lr: LearningRate | None) -> None:
    """Raise ValueError on optimizers whose step HAM cannot follow, TypeError where `lr` is not a function."""
    if getattr(optimizer, "_ham", None) is not None:
        raise ValueError("HAM is already attached to this optimizer: call remove() on the first one")
    name = type(optimizer).__name__
    if isinstance(optimizer, _UNSUITABLE):
        raise ValueError(f"HAM needs an optimizer with first-order dense steps, not {name}: use SGD or AdamW")
    if not all(hasattr(optimizer, attribute) for attribute in _HOOKS):
        raise ValueError(
            f"{name} has no hooks, because it does not call Optimizer.__init__: attach HAM to an optimizer "
            "that does, such as torch.optim.AdamW"
        )
    if lr is not None and not callable(lr):
        raise TypeError(f"lr must be a function of a parameter group, or None for group['lr'], got {lr!r}")
    for group in optimizer.param_groups:
        if "lr" not in group and lr is None:
            raise ValueError(
                f"{name} keeps no learning rate in its groups: pass lr=..., a function of the group, to HAM"
            )
        check_group(group, optimizer, lr)


def check_group(group: dict, optimizer: Optimizer, lr: LearningRate | None) -> None:
    """Raise ValueError if the group has no rate or unusable values, or if the step overwrites p.grad."""
    if lr is None and group["lr"] is None:
        name = type(optimizer).__name__
        raise ValueError(
            f"{name} has lr=None in a group: give it a rate, or pass lr=..., a function of the group, to HAM"
        )
    if group.get("differentiable"):
        raise ValueError("HAM's step is not differentiable: set differentiable=False in the optimizer")
    for key in ("ham_alpha", "ham_beta") if not torch.compiler.is_compiling() else ():
        _check_value(key, group.get(key))
    if isinstance(optimizer, torch.optim.SGD):
        check_gradient_preserved(group)


def _check_value(key: str, value: Any) -> None:
    """Raise ValueError unless a group's alpha or beta is a number in its range, in a tensor or not, or None.

    The value of a tensor on a device is not read, because that would wait for the device.
    """
    if isinstance(value, Tensor) and _is_one_number(value):
        if value.device.type != "cpu":
            return
        value = value.item()
    if value is None:
        return
    if not isinstance(value, Real):
        raise ValueError(f"{key} of a group must be a number or a tensor with one, got {_describe(value)}")
    if not (math.isfinite(value) and (value >= 0 or key == "ham_alpha")):
        positive = "" if key == "ham_alpha" else " and not negative"
        raise ValueError(f"{key} of a group must be finite{positive}, got {value}")


def rate_of(group: dict, lr: LearningRate | None) -> float | Tensor:
    """The rate of the base step: `lr(group)`, by default group["lr"].

    Raises:
        ValueError: `lr` asks for a key that the group lacks, or returns a value that is not a finite number.
    """
    if lr is None:
        return group["lr"]
    try:
        rate = lr(group)
    except KeyError as error:
        raise ValueError(
            f"HAM's lr= function reads group[{error}], which this optimizer does not set: its keys are "
            f"{', '.join(str(key) for key in group if key != 'params')}"
        ) from error
    if isinstance(rate, Tensor) and rate.numel() == 1:
        return rate.detach().reshape(())
    if isinstance(rate, Real) and math.isfinite(rate) and rate >= 0:
        return rate if isinstance(rate, int | float) else float(rate)  # numpy's numbers
    raise ValueError(f"HAM's lr= function must return a finite number >= 0, or a 0-dim tensor, got {rate!r}")


def is_zero(rate: float | Tensor | None) -> bool:
    """Return True if the rate is known to be 0 without waiting for a device."""
    if torch.compiler.is_compiling() or (isinstance(rate, Tensor) and rate.device.type != "cpu"):
        return False
    return rate is not None and float(rate) == 0


def initializes_state(optimizer: Optimizer) -> bool:
    """Return True in the step by which torch.distributed.checkpoint creates an optimizer's state.

    That step has rate 0 and gradients 0 in every group. A host sync, only while every rate is 0.
    """
    groups = optimizer.param_groups
    if not all(is_zero(group.get("lr")) for group in groups):
        return False
    return not any(_has_values(p.grad) for group in groups for p in group["params"] if p.grad is not None)


def _has_values(gradient: Tensor) -> bool:
    """Return True if an entry of `gradient` is not 0, on any rank."""
    total = gradient.detach().abs().sum()
    return bool((total.full_tensor() if hasattr(total, "full_tensor") else total) != 0)


def check_gradient_preserved(group: dict) -> None:
    """Raise ValueError where the step overwrites p.grad: SGD's multi-tensor Nesterov without weight decay.

    With weight decay that step works on a copy of the gradient.
    """
    if not group.get("nesterov") or group.get("weight_decay") != 0:
        return
    if group.get("foreach") is False or group.get("fused"):
        return
    if group.get("foreach") or any(p.is_cuda for p in group["params"]):
        raise ValueError(
            "SGD(nesterov=True, weight_decay=0, foreach=True) overwrites the gradient that HAM reads: "
            "set foreach=False or fused=True"
        )


def outer_stacklevel() -> int:
    """The `stacklevel` with which the caller warns at the line outside torch and ham that led here."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("ham.", "torch.")):
        frame, level = frame.f_back, level + 1
    return level
