"""The hyperbolic step, computed in several ways: a slow reference, and fast paths equal to it.

Each takes weights and gradients of one device and dtype, a = -lr * alpha and b = -lr * beta (numbers, or
0-dim tensors on that device), and the rest of `ham.hyperbolic_step_`'s arguments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import FunctionType

import torch
from torch import Tensor

from ham import c_code
from ham.c_code import has_memory, is_plain

from . import cpu_step
from .trials import works

_BLOCK = 1 << 17  # elements; a block's weight, gradient and exponent (1.5 MiB in float32) stay in cache


def fastest(weight: Tensor, rate: float | Tensor) -> str:
    """Name of the implementation for weights like this one and a learning rate."""
    if torch.compiler.is_compiling():
        return "reference"  # the compiler fuses it
    kind = weight.device.type
    if kind == "cpu" and not isinstance(rate, Tensor):
        return "fused"
    return "triton" if kind == "cuda" and _has_triton(weight) else "foreach"


def _has_triton(weight: Tensor) -> bool:
    """Return True if the Triton kernel works for a CUDA weight."""
    if not is_plain(weight) or torch.cuda.is_current_stream_capturing():
        return False
    return works("the Triton kernel", "'foreach' is", _triton_is_installed, weight, _triton_, _reference_)


def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


def has_c_code(dtype: torch.dtype) -> bool:
    """Return True if `fused` steps CPU weights of this dtype in C code; it is compiled and tested once."""
    return _has_c(torch.empty(0, dtype=dtype, device="cpu"))


def _has_c(weight: Tensor) -> bool:
    """Return True if the C code works for a CPU weight."""
    if torch.compiler.is_compiling() or not is_plain(weight):
        return False
    replacement = "torch's operations, which take about twice as long, are"
    return works("the C code", replacement, c_code.has_compiler, weight, _in_c_, _reference_)


def _reference_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    for p, g in zip(ps, gs, strict=True):
        _step_(p, g, a, b, clamp, mask_zero_grad, found_inf, clamped)


def _step_(p, g, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    """The formula on one tensor."""
    exponent = torch.clamp(_sign(p, clamp, clamped is not None) * g * a + b, -clamp, clamp)
    _mask_(exponent, g, mask_zero_grad, found_inf)
    if clamped is not None:
        clamped.add_((exponent.abs() >= clamp).sum())
    p.mul_(torch.exp(exponent))


def _sign(p: Tensor, clamp: float, must_count: bool) -> Tensor:
    """The sign of weights. Under torch.compile it is computed from copysign, which is faster than torch.sign.

    There a zero has the sign 1 or -1 where that changes nothing: where exponents are not counted, and exp of
    the largest one is finite.
    """
    if not torch.compiler.is_compiling():
        return torch.sign(p)
    sign = torch.copysign(torch.ones_like(p), p)
    return torch.where(p == 0, p, sign) if must_count or clamp > cpu_step.LARGEST_CLAMP else sign


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
    """One pass over memory, in C or in blocks."""
    if ps[0].device.type != "cpu" or isinstance(a, Tensor):
        raise ValueError(
            "implementation='fused' is for CPU weights and a float learning rate; use 'foreach' or None"
        )
    step_ = _in_c_ if _has_c(next(filter(is_plain, ps), ps[0])) else _in_blocks_
    step_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped)


def _in_blocks_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    """All of torch's operations on one cache-sized block, then on the next."""
    options = {"dtype": ps[0].dtype, "device": "cpu"}
    buffer, shift = torch.empty(_BLOCK, **options), torch.tensor(b, **options)
    for p, g in zip(ps, gs, strict=True):
        if not p.numel():
            continue
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
    """Return True if every exponent of a CPU tensor is inside the bounds, in one pass instead of four."""
    if torch.compiler.is_compiling():
        return False  # the value would break the graph
    low, high = exponent.aminmax()
    return low.item() > -clamp and high.item() < clamp  # False where one is nan


@cache
def _compiled_step(*variant: object) -> Callable[..., None]:
    """The formula for one tensor, compiled for any number of elements.

    Each variant has a code object of its own: torch.compile gives up after eight variants of one.
    """
    own = FunctionType(_step_.__code__.replace(co_name=f"step_{abs(hash(variant))}"), globals())
    return torch.compile(own, dynamic=True)


def _compiled_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    if torch.compiler.is_compiling():
        step_ = _reference_  # the compiler fuses it
    else:
        step_ = _in_c_ if ps[0].device.type == "cpu" else _by_torch_compile_
    step_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped)


def _in_c_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    a, b = (x.item() if isinstance(x, Tensor) else x for x in (a, b))
    if clamp > cpu_step.LARGEST_CLAMP:
        return _reference_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped)
    if found_inf is not None and found_inf.item():
        return None
    ps, gs = _step_unlike_(ps, gs, a, b, clamp, mask_zero_grad, None, clamped)
    if ps:
        at_bound = cpu_step.step_(ps, gs, a, b, clamp, mask_zero_grad)
        torch.autograd.graph.increment_version(ps)  # torch does not see what C code writes
        if clamped is not None:
            clamped.add_(at_bound)


def _by_torch_compile_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    options = {"dtype": ps[0].dtype, "device": ps[0].device}
    a, b = (x if isinstance(x, Tensor) else torch.full((), x, **options) for x in (a, b))
    variant = (*options.values(), clamp, mask_zero_grad, found_inf is None, clamped is None)
    for p, g in zip(ps, gs, strict=True):
        flat = None if _share_memory(p, g) else _flat_views(p, g)
        step = _step_ if flat is None or p.numel() < 2 else _compiled_step(*variant)  # 0 and 1 are special
        step(*(flat or (p, g)), a, b, clamp, mask_zero_grad, found_inf, clamped)


def _triton_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped) -> None:
    if not _triton_is_installed():
        raise ValueError("implementation='triton' needs Triton: pip install triton, or use 'foreach' or None")
    from .triton_step import INTERPRETED, step_

    if ps[0].device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            "implementation='triton' is for CUDA weights: use 'fused', 'compiled', 'foreach' or None"
        )
    arguments = (a, b, clamp, mask_zero_grad, found_inf, clamped)
    ps, gs = _step_unlike_(ps, gs, *arguments)
    if ps:
        step_(ps, gs, *arguments)
        torch.autograd.graph.increment_version(ps)  # torch does not see what the kernel writes


def _step_unlike_(ps, gs, *arguments) -> tuple[list[Tensor], list[Tensor]]:
    """Apply the formula to weights whose gradients have another memory layout; return the other pairs."""
    alike = [_have_one_layout(p, g) for p, g in zip(ps, gs, strict=True)]
    if all(alike):
        return ps, gs
    for p, g, is_alike in zip(ps, gs, alike, strict=True):
        if not is_alike:
            _step_(p, g, *arguments)
    return list(itertools.compress(ps, alike)), list(itertools.compress(gs, alike))


def _mask_(exponent: Tensor, g: Tensor, mask_zero_grad: bool, found_inf: Tensor | None) -> None:
    if mask_zero_grad:
        exponent.masked_fill_(g == 0, 0.0)
    if found_inf is not None:
        exponent.masked_fill_(found_inf.to(exponent.device) != 0, 0.0)


def _have_one_layout(p: Tensor, g: Tensor) -> bool:
    """Return True if both are stored without gaps and with the same order of elements."""
    if not (has_memory(p) and has_memory(g)):
        return False
    if p.is_contiguous() and g.is_contiguous():
        return True
    return p.ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in (p, g))


def _share_memory(p: Tensor, g: Tensor) -> bool:
    """Return True if both are views of one storage.

    torch keeps the code that it compiles for such a pair on disk, and uses it for other pairs too.
    """
    return p.untyped_storage().data_ptr() == g.untyped_storage().data_ptr()


def _flat_views(p: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
    """One-dimensional views of both in the same element order, or None where their memory layouts differ."""
    if not _have_one_layout(p, g):
        return None
    if p.is_contiguous() and g.is_contiguous():
        return p.view(-1), g.view(-1)
    return p.permute(0, 2, 3, 1).view(-1), g.permute(0, 2, 3, 1).view(-1)


IMPLEMENTATIONS: dict[str, Callable[..., None]] = {
    "reference": _reference_,
    "foreach": _foreach_,
    "fused": _fused_,
    "compiled": _compiled_,
    "triton": _triton_,
}
