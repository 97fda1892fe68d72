"""The hyperbolic step of CPU weights in C, by cpu_step.c.

It reads each weight and gradient once, and takes about as long as memory needs for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ham import c_code

LARGEST_CLAMP = 80.0  # cpu_step.c computes exp up to here; it is finite in float32 too
_SOURCE = Path(__file__).with_suffix(".c")
_SMALLEST_SHARE = 1 << 16  # elements: with fewer a thread's start takes longer than its work
_POINTERS = POINTER(c_void_p)


def step_(
    ps: Sequence[Tensor], gs: Sequence[Tensor], a: float, b: float, clamp: float, mask_zero_grad: bool
) -> int:
    """The formula on dense tensors of one dtype, in place; returns how many exponents are clamped.

    Raises:
        CompilerError: no C compiler was found, or it fails.
    """
    step = load(ps[0].dtype)
    counts = [p.numel() for p in ps]
    pointers = [(c_void_p * len(ps))(*(t.data_ptr() for t in tensors)) for tensors in (ps, gs)]
    arrays = (len(ps), *pointers, (c_int64 * len(ps))(*counts))
    bounds = c_code.equal_shares(sum(counts), _SMALLEST_SHARE)
    scalars = (a, b, clamp, int(mask_zero_grad))

    def call(_: int, first: int, last: int, tensors: object = (ps, gs)) -> int:  # it keeps the tensors alive
        return step(*arrays, first, last, *scalars)

    return sum(c_code.in_threads(call, bounds))


@cache
def load(dtype: torch.dtype) -> Any:
    """The compiled function for weights of a dtype.

    Raises:
        CompilerError: no C compiler was found, or it fails.
    """
    step = c_code.load(_SOURCE, dtype).hyperbolic_step
    numbers = (c_double, c_double, c_double, c_int)
    step.argtypes = (c_int64, _POINTERS, _POINTERS, POINTER(c_int64), c_int64, c_int64, *numbers)
    step.restype = c_int64
    return step
