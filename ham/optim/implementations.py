"""The hyperbolic step, computed in five ways: a slow reference, and fast paths equal to it.

Each takes weights and gradients of one device and dtype, a = -lr * alpha and b = -lr * beta (numbers, or
0-dim tensors on that device), and the rest of `ham.hyperbolic_step_`'s arguments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_BLOCK = 1 << 17  # elements; a block's weight, gradient and exponent (1.5 MiB in float32) stay in cache
_WORKS: dict[torch.device, bool] = {}  # where Triton's kernel has been tried


def fastest(device: torch.device, rate: float | Tensor) -> str:
    """Name of the implementation for weights on a device and a learning rate."""
    if torch.compiler.is_compiling():
        return "reference"  # the compiler fuses it
    if device.type == "cuda" and _triton_works(device):
        return "triton"
    return "fused" if device.type == "cpu" and not isinstance(rate, Tensor) else "foreach"


def _triton_works(device: torch.device) -> bool:
    """Does the kernel compile and give the formula's weights? Tried once per device, with a host sync."""
    if device not in _WORKS and not torch.cuda.is_current_stream_capturing():
        _WORKS[device] = find_spec("triton") is not None and _try_triton(device)
    return _WORKS.get(device, False)


def _try_triton(device: torch.device) -> bool:
    try:
        from .triton_step import agrees

        reason = "" if agrees(device) else "its result differs from the formula"
    except Exception as error:  # of any compiler or driver: the other kernels do not need it
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if reason:
        warnings.warn(
            f"HAM's Triton kernel does not work on {device} ({reason}): torch's multi-tensor kernels are "
            "used, with equal results; implementation='foreach' chooses them without this warning",
            stacklevel=2,
        )
    return not reason


def _reference_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    for p, g in zip(ps, gs, strict=True):
        _step_(p, g, a, b, clamp, mask_zero_grad, found_inf, clamped)


def _step_(p, g, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    """The formula on one tensor."""
    exponent = torch.clamp(torch.sign(p) * g * a + b, -clamp, clamp)
    _mask_(exponent, g, mask_zero_grad, found_inf)
    if clamped is not None:
        clamped.add_((exponent.abs() >= clamp).sum())
    p.mul_(torch.exp(exponent))


def _foreach_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    exponents = torch._foreach_sign(ps)
    torch._foreach_mul_(exponents, gs)
    torch._foreach_mul_(exponents, a)
    torch._foreach_add_(exponents, b)
    torch._foreach_clamp_min_(exponents, -clamp)
    torch._foreach_clamp_max_(exponents, clamp)
    if mask_zero_grad or found_inf is not None:
        for exponent, g in zip(exponents, gs, strict=True):
            _mask_(exponent, g, mask_zero_grad, found_inf)
    if clamped is not None:
        hits = torch._foreach_div(exponents, clamp)  # exactly +-1 at the bound, smaller elsewhere
        torch._foreach_trunc_(hits)
        clamped.add_(torch.stack(torch._foreach_norm(hits, 1)).sum().to(clamped.dtype))
    torch._foreach_exp_(exponents)
    torch._foreach_mul_(ps, exponents)


def _fused_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    """One pass over memory: all operations on one cache-sized block, then the next."""
    if ps[0].device.type != "cpu" or isinstance(a, Tensor):
        raise ValueError(
            "implementation='fused' is for CPU weights and a float learning rate; use 'foreach' or None"
        )
    buffer, shift = torch.empty(_BLOCK, dtype=ps[0].dtype), torch.tensor(b, dtype=ps[0].dtype)
    for p, g in zip(ps, gs, strict=True):
        flat = _flat_views(p, g)
        if flat is None:
            _reference_([p], [g], a, b, clamp, mask_zero_grad, found_inf, clamped)
            continue
        for p_block, g_block in zip(*(t.split(_BLOCK) for t in flat), strict=True):
            exponent = buffer[: p_block.numel()]
            torch.sign(p_block, out=exponent)
            torch.addcmul(shift, exponent, g_block, value=a, out=exponent)
            counts = clamped is not None and not _is_inside(exponent, clamp)
            if clamped is None or counts:
                exponent.clamp_(-clamp, clamp)
            _mask_(exponent, g_block, mask_zero_grad, found_inf)
            if counts:
                clamped.add_((exponent.abs() >= clamp).sum())
            p_block.mul_(exponent.exp_())


def _is_inside(exponent: Tensor, clamp: float) -> bool:
    """Is every exponent of a CPU tensor inside the bounds? One pass instead of the four that count."""
    low, high = exponent.aminmax()
    return low.item() > -clamp and high.item() < clamp  # False where one is nan


@cache
def _compiled_step() -> Callable[..., None]:
    """The formula for one tensor, compiled for any number of elements."""
    return torch.compile(_step_, dynamic=True)


def _compiled_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    options = {"dtype": ps[0].dtype, "device": ps[0].device}
    a, b = (x if isinstance(x, Tensor) else torch.full((), x, **options) for x in (a, b))
    for p, g in zip(ps, gs, strict=True):
        flat = _flat_views(p, g)
        step = _step_ if flat is None or p.numel() < 2 else _compiled_step()  # 0 and 1 would compile anew
        step(*(flat or (p, g)), a, b, clamp, mask_zero_grad, found_inf, clamped)


def _triton_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    from .triton_step import INTERPRETED, step_

    if ps[0].device.type != "cuda" and not INTERPRETED:
        raise ValueError("implementation='triton' is for CUDA weights; use 'compiled', 'fused' or None")
    flat = [views for views in map(_flat_views, ps, gs) if views is not None]
    rest = [(p, g) for p, g in zip(ps, gs, strict=True) if _flat_views(p, g) is None]
    for step, pairs in ((step_, flat), (_reference_, rest)):
        if pairs:
            step(*zip(*pairs, strict=True), a, b, clamp, mask_zero_grad, found_inf, clamped)


def _mask_(exponent: Tensor, g: Tensor, mask_zero_grad: bool, found_inf: Tensor | None) -> None:
    if mask_zero_grad:
        exponent.masked_fill_(g == 0, 0.0)
    if found_inf is not None:
        exponent.masked_fill_(found_inf.to(exponent.device) != 0, 0.0)


def _flat_views(p: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
    """One-dimensional views of both in the same element order, or None where their memory layouts differ."""
    if type(g) is not Tensor:  # a subclass has its own dispatch
        return None
    if p.is_contiguous() and g.is_contiguous():
        return p.view(-1), g.view(-1)
    if p.ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in (p, g)):
        return p.permute(0, 2, 3, 1).view(-1), g.permute(0, 2, 3, 1).view(-1)
    return None


IMPLEMENTATIONS: dict[str, Callable[..., None]] = {
    "reference": _reference_,
    "foreach": _foreach_,
    "fused": _fused_,
    "compiled": _compiled_,
    "triton": _triton_,
}
