"""What HAM cannot work with, refused in one line."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer

_UNSUITABLE = (torch.optim.LBFGS, torch.optim.SparseAdam)


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside wrappers such as accelerate's; raises TypeError where there is none."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"HAM attaches to a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def check_hyperparameters(alpha: float, beta: float, clamp: float, max_weight_norm: float | None) -> None:
    """Raise ValueError on values without meaning."""
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
        raise ValueError("HAM is attached to this optimizer already: call remove() on the first one")
    if isinstance(optimizer, _UNSUITABLE):
        raise ValueError(
            f"HAM follows first-order dense steps, not {type(optimizer).__name__}: use SGD or AdamW"
        )
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise ValueError(
                f"{type(optimizer).__name__} keeps no learning rate in its groups: HAM needs group['lr']"
            )
        refuse_overwritten_gradients(group)


def refuse_overwritten_gradients(group: dict) -> None:
    """SGD's multi-tensor Nesterov step writes into p.grad when it has no weight decay to add out of place."""
    if not group.get("nesterov") or group.get("weight_decay") != 0 or "momentum" not in group:
        return
    if group.get("foreach") is False or group.get("fused"):
        return
    if group.get("foreach") or any(p.is_cuda for p in group["params"]):
        raise ValueError(
            "SGD(nesterov=True, weight_decay=0, foreach=True) overwrites the gradient that HAM reads: "
            "set foreach=False or fused=True"
        )
