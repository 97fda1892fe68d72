"""Trials of the Triton kernel and of the C code on small tensors, to test whether they work here.

The kernel is tried before it becomes the default, the C code before `fused` uses it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ham.c_code import CompilerError

Step = Callable[..., None]
_WORKS: dict[tuple[str, torch.device, torch.dtype], bool] = {}


def works(
    name: str,
    replacement: str,
    is_available: Callable[[], bool],
    weight: Tensor,
    step_: Step,
    reference_: Step,
) -> bool:
    """Return True if code gives the formula's weights, on the device and in the dtype of `weight`.

    It is tried once, which waits for a GPU. If it is available and fails, a warning says so and names the
    replacement.

    Args:
        name: name of the code for the warning, as in "the C code".
        replacement: the replacement for the warning, with its verb.
        is_available: function that returns True if the code can be tried.
        weight: weight on whose device and in whose dtype the code is tried.
        step_: the code to try.
        reference_: the formula.
    """
    key = name, weight.device, weight.dtype
    if key in _WORKS:
        return _WORKS[key]
    can_try = is_available()
    reason = _failure_reason(weight, step_, reference_) if can_try else ""
    _WORKS[key] = can_try and not reason
    if reason:
        from .checks import outer_stacklevel

        warnings.warn(
            f"{name} of HAM's step does not work on {weight.device} ({reason}): {replacement} used, with "
            "equal results up to rounding; implementation='foreach' avoids this warning",
            stacklevel=outer_stacklevel(),
        )
    return _WORKS[key]


def _failure_reason(weight: Tensor, step_: Step, reference_: Step) -> str:
    """The reason in one line, or ''."""
    on_gpu = weight.device.type == "cuda"
    before = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    try:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        return "" if agrees(weight, step_, reference_) else "its result differs from the formula"
    except CompilerError as error:
        return str(error)
    except Exception as error:  # of any compiler or driver: another implementation does not need it
        return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(": ")
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode(before)


def agrees(weight: Tensor, step_: Step, reference_: Step) -> bool:
    """Return True if both give equal weights and counts, with and without all options.

    No exponent is so near to the bound that rounding decides whether it counts.
    """
    tolerance = 1e-6 if weight.dtype is torch.float32 else 1e-13
    options = {"dtype": weight.dtype, "device": weight.device}
    weights = [torch.linspace(-2, 2, size, **options) for size in (4, 5, 70_004)]
    grads = [torch.linspace(0.3, -0.2, len(w), **options) for w in weights]
    grads[1][::2] = 0
    for has_all in (False, True):
        a, b = (torch.full((), x, **options) if has_all else x for x in (-20.0, -1e-3))
        results = []
        for step in (step_, reference_):
            stepped = [w.clone() for w in weights]
            count = torch.zeros((), dtype=torch.int64, device=weight.device) if has_all else None
            found_inf = torch.zeros((), device=weight.device) if has_all else None
            step(stepped, grads, a, b, 2.0, has_all, found_inf, count)
            results.append([*stepped, *([count] if has_all else [])])
        for one, other in zip(*results, strict=True):
            if (
                not torch.allclose(one, other, rtol=tolerance, atol=0)
                or (one.signbit() != other.signbit()).any()
            ):
                return False
    return True
