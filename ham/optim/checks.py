"""Checks of the optimizer and the hyperparameters, with errors of one line."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer

_UNSUITABLE = (torch.optim.LBFGS, torch.optim.SparseAdam)


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside wrappers such as accelerate's; raises TypeError for other objects."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"HAM attaches to a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def check_hyperparameters(alpha: float, beta: float, clamp: float, max_weight_norm: float | None) -> None:
    """Raise ValueError on values out of range."""
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and not negative, got {beta}")
    if not clamp > 0:
        raise ValueError(f"clamp must be positive, got {clamp}; the paper uses 5")
    if max_weight_norm is not None and not max_weight_norm > 0:
        raise ValueError(f"max_weight_norm must be positive or None, got {max_weight_norm}")


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError on optimizers whose step HAM cannot follow."""
    if getattr(optimizer, "_ham", None) is not None:
        raise ValueError("HAM is already attached to this optimizer: call remove() on the first one")
    if isinstance(optimizer, _UNSUITABLE):
        raise ValueError(
            f"HAM needs an optimizer with first-order dense steps, not {type(optimizer).__name__}: "
            "use SGD or AdamW"
        )
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise ValueError(
                f"{type(optimizer).__name__} keeps no learning rate in its groups: HAM needs group['lr']"
            )
        check_gradient_preserved(group)


def check_gradient_preserved(group: dict) -> None:
    """Raise ValueError where the step overwrites p.grad: SGD's multi-tensor Nesterov without weight decay.

    With weight decay that step works on a copy of the gradient.
    """
    if not group.get("nesterov") or group.get("weight_decay") != 0 or "momentum" not in group:
        return
    if group.get("foreach") is False or group.get("fused"):
        return
    if group.get("foreach") or any(p.is_cuda for p in group["params"]):
        raise ValueError(
            "SGD(nesterov=True, weight_decay=0, foreach=True) overwrites the gradient that HAM reads: "
            "set foreach=False or fused=True"
        )
