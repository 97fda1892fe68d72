"""Sharpness-aware minimization (Foret et al., 2021) as a context manager around the second backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


@contextmanager
def perturbed(
    params: Iterable[Tensor], *, rho: float, adaptive: bool = False, freeze_bn: nn.Module | None = None
) -> Iterator[None]:
    """Weights at theta + rho * g / |g| inside the block, restored bit for bit after it (Foret et al., Eq. 2).

    The gradients are cleared on entry: a second backward pass in the block leaves SAM's gradient in `p.grad`
    for the base step and for HAM. The ascent follows the `p.grad` found on entry. Under
    DistributedDataParallel that is the gradient averaged over the ranks; run the first backward pass inside
    `ddp.no_sync()` for an ascent per rank (m-sharpness, the original).

    Args:
        params: the weights to perturb, each once; those without a gradient are not perturbed. For float16 and
            bfloat16 the ascent is computed in float32, so that its length does not overflow or vanish.
        rho: radius of the ascent in the norm over all `params`, 0.05 in the original.
        adaptive: True to scale the ascent by theta^2 (ASAM, Kwon et al., 2021).
        freeze_bn: a module whose norm layers keep their running statistics inside the block, see
            `frozen_running_statistics`; batch statistics still normalize.

    Raises:
        ValueError: rho is negative, or no parameter has a gradient.
    """
    if rho < 0:
        raise ValueError(f"rho must not be negative, got {rho}")
    active = list(dict.fromkeys(p for p in params if p.grad is not None))  # each once
    if not active:
        raise ValueError("no parameter has a gradient: run a backward pass before perturbed()")
    saved = _ascend_(active, rho, adaptive)
    try:
        with frozen_running_statistics(freeze_bn) if freeze_bn is not None else nullcontext():
            yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(active, saved)


@torch.no_grad()
def _ascend_(params: list[Tensor], rho: float, adaptive: bool) -> list[Tensor]:
    """Move to the perturbed point, clear the gradients and return the weights to restore."""
    saved = [torch.empty_like(p) for p in params]
    torch._foreach_copy_(saved, params)
    grads = [_in_float32(p.grad) for p in params if p.grad is not None]  # all of them
    directions = torch._foreach_mul(torch._foreach_abs(params), grads) if adaptive else grads
    device = params[0].device
    norm = torch.linalg.vector_norm(torch.stack([n.to(device) for n in torch._foreach_norm(directions)]))
    scale = rho / (norm + 1e-12)
    for ps, ds in _launches(params, directions):
        factor = scale.to(ps[0].device, ds[0].dtype)
        if adaptive:  # the directions are our own memory
            torch._foreach_mul_(ds, factor)
            torch._foreach_mul_(ds, torch._foreach_abs(ps))
        torch._foreach_add_(ps, ds if adaptive else torch._foreach_mul(ds, factor))
    for p in params:
        p.grad = None
    return saved


def _in_float32(grad: Tensor) -> Tensor:
    """The gradient, in float32 where it has fewer bits: there 1e-12 is 0 and rho / |g| may be infinite."""
    return grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad


def _launches(params: list[Tensor], directions: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Tensors to compute with together: those of a device and dtype, but one at a time in a CPU's cache."""
    groups: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
    for p, direction in zip(params, directions, strict=True):
        key = id(p) if p.device.type == "cpu" else (p.device, p.dtype)
        for group, tensor in zip(groups.setdefault(key, ([], [])), (p, direction), strict=True):
            group.append(tensor)
    yield from groups.values()


@contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Norm layers compute what they compute outside, but do not update running statistics and counters.

    In training BatchNorm normalizes by the batch; its flag `track_running_stats` decides only about updates.
    In other layers, such as InstanceNorm, that flag also decides which statistics normalize: they update
    copies of their statistics, which are dropped afterwards.

    Args:
        model: a module; all norm layers in it that have running statistics are frozen.
    """
    layers = [m for m in model.modules() if _has_running_statistics(m)]
    batch_norms = [m for m in layers if isinstance(m, _BatchNorm) and m.track_running_stats]
    others = [m for m in layers if not isinstance(m, _BatchNorm)]
    saved = [(m, dict(m._buffers), m.__dict__.get("momentum")) for m in others]
    for norm in batch_norms:
        norm.track_running_stats = False
    for layer, buffers, _ in saved:
        layer._buffers.update({name: b.clone() for name, b in buffers.items() if b is not None})
        if isinstance(layer, _InstanceNorm):
            layer.momentum = 0.0  # the copies do not change either, for evaluation inside the block
    try:
        yield
    finally:
        for norm in batch_norms:
            norm.track_running_stats = True
        for layer, buffers, momentum in saved:
            layer._buffers.update(buffers)
            if isinstance(layer, _InstanceNorm):
                layer.momentum = momentum


def _has_running_statistics(module: nn.Module) -> bool:
    return any(module._buffers.get(name) is not None for name in ("running_mean", "running_var"))
