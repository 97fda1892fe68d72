"""The hyperbolic step as one Triton kernel: one launch for many tensors, 12 bytes of memory per weight.

A table in device memory has a row for each tensor: its address, its gradient's, its number of elements and
the block at which it begins. A program finds its tensor by binary search, so that tensors of any sizes share
a launch. exp is computed to about one unit in the last place: Triton's own is an approximation whose error is
systematic, and HAM multiplies a weight some 100,000 times.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = (
    triton.knobs.runtime.interpret
)  # TRITON_INTERPRET=1: the kernel runs on a CPU, slowly, for tests
BLOCK = 4096  # elements of a program
_WARPS = 8
_ALIGNMENT = 16  # bytes that a thread loads at once


@triton.jit(do_not_specialize=["tensors"])
def _kernel(
    table,
    tensors,
    rates,
    found_inf,
    clamped,
    DTYPE: tl.constexpr,
    STEPS: tl.constexpr,  # of the binary search
    HAS_RATES: tl.constexpr,
    MASK_ZERO_GRAD: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
    COUNTS: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """HYP* on one block of one tensor."""
    block = tl.program_id(0).to(tl.int64)
    row = tl.zeros((), tl.int32)
    for power in tl.static_range(STEPS):  # the last row that begins at or before this block
        later = row + (1 << (STEPS - 1 - power))
        begins = tl.load(table + 3 + 4 * later + 3, mask=later < tensors, other=2**62) <= block
        row = tl.where(begins, later, row)
    entry = table + 3 + 4 * row
    pointer_type = tl.pointer_type(DTYPE)
    weights = tl.load(entry).to(pointer_type, bitcast=True)
    grads = tl.load(entry + 1).to(pointer_type, bitcast=True)
    if IS_ALIGNED:
        weights = tl.multiple_of(weights, 16)
        grads = tl.multiple_of(grads, 16)
    numel = tl.load(entry + 2)
    if IS_ALIGNED:
        numel = tl.multiple_of(numel, 16 // (DTYPE.primitive_bitwidth // 8))
    start = (block - tl.load(entry + 3)) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    mask = offsets < numel
    theta = tl.load(weights + offsets, mask=mask, other=0.0)
    grad = tl.load(grads + offsets, mask=mask, other=0.0)
    if HAS_RATES:
        a = tl.load(rates).to(DTYPE)
        b = tl.load(rates + 1).to(DTYPE)
    else:
        a = tl.load(table).to(tl.float64, bitcast=True).to(DTYPE)
        b = tl.load(table + 1).to(tl.float64, bitcast=True).to(DTYPE)
    bound = tl.load(table + 2).to(tl.float64, bitcast=True).to(DTYPE)
    signed = tl.where(theta > 0, grad, tl.where(theta < 0, -grad, grad * 0))
    x = signed * a + b
    x = tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))  # nan stays nan
    if MASK_ZERO_GRAD:
        x = tl.where(grad == 0, 0.0, x)
    if HAS_FOUND_INF:
        x = tl.where(tl.load(found_inf) != 0, 0.0, x)
    if COUNTS:
        hits = mask & (tl.abs(x) >= bound)
        tl.atomic_add(clamped, tl.sum(hits.to(tl.int64), axis=0))
    if DTYPE == tl.float32:  # noqa: SIM300
        # exp(x) = 2^n exp(r) with r = x - n ln 2 in [-0.35, 0.35], and Taylor's polynomial of degree 7
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        r = x - n * 0.693359375  # the product is exact: this part of ln 2 has nine bits
        r = r + n * 2.12194440054690583e-4
        e = 1.0 / 5040
        e = e * r + 1.0 / 720
        e = e * r + 1.0 / 120
        e = e * r + 1.0 / 24
        e = e * r + 1.0 / 6
        e = e * r + 0.5
        e = e * r + 1.0
        e = e * r + 1.0
        small = tl.abs(x) < 80
        bits = (tl.where(small, n, 0.0).to(tl.int32) + 127) << 23  # of 2^n
        factor = tl.where(small, e * bits.to(tl.float32, bitcast=True), tl.exp(x))
    else:
        factor = tl.exp(x)
    tl.store(weights + offsets, theta * factor, mask=mask)


def step_(
    ps: Sequence[Tensor],
    gs: Sequence[Tensor],
    a: float | Tensor,
    b: float | Tensor,
    clamp: float,
    mask_zero_grad: bool,
    found_inf: Tensor | None,
    clamped: Tensor | None,
) -> None:
    """Launch the kernel once for the weights and gradients of one device and dtype, and once if unaligned.

    Args:
        ps: weights without gaps in memory.
        gs: gradients, each with the memory layout of its weight.
        a: -lr * alpha; a 0-dim tensor on the device is not read by the host.
        b: -lr * beta, of the same kind as `a`.
        clamp: bound on the exponent's magnitude, see `hyperbolic_step_`.
        mask_zero_grad: True to leave weights whose gradient is exactly zero unchanged.
        found_inf: overflow flag, see `hyperbolic_step_`.
        clamped: count of the exponents at the bound, see `hyperbolic_step_`.
    """
    elements_at_once, device = _ALIGNMENT // ps[0].itemsize, ps[0].device
    aligned: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
    for p, g in zip(ps, gs, strict=True):
        weight, grad, numel = row = (p.data_ptr(), g.data_ptr(), p.numel())
        if numel:
            aligned[(weight | grad) % _ALIGNMENT == 0 and numel % elements_at_once == 0].append(row)
    rates = torch.stack([a, b]) if isinstance(a, Tensor) else None
    head = [*([0.0, 0.0] if isinstance(a, Tensor) else [a, b]), clamp]
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for is_aligned, rows in aligned.items():
            if not rows:
                continue
            table, blocks = _table(head, rows, device)
            _kernel[(blocks,)](
                table,
                len(rows),
                table if rates is None else rates,
                table if found_inf is None else found_inf.to(device),
                table if clamped is None else clamped,
                DTYPE=tl.float32 if ps[0].dtype == torch.float32 else tl.float64,
                STEPS=-(-(len(rows) - 1).bit_length() // 4) * 4,  # few different ones: each is compiled
                HAS_RATES=rates is not None,
                MASK_ZERO_GRAD=mask_zero_grad,
                HAS_FOUND_INF=found_inf is not None,
                COUNTS=clamped is not None,
                IS_ALIGNED=is_aligned,
                BLOCK=BLOCK,
                num_warps=_WARPS,
                enable_fp_fusion=False,
            )


def _table(
    head: Sequence[float], rows: Sequence[tuple[int, int, int]], device: torch.device
) -> tuple[Tensor, int]:
    """The bits of the float64 numbers of `head`, then the rows with their first block; number of blocks."""
    values, blocks = [struct.unpack("q", struct.pack("d", value))[0] for value in head], 0
    for row in rows:
        values += (*row, blocks)
        blocks += -(-row[2] // BLOCK)  # rounded up; triton.cdiv takes 3 us
    return _copy_to(device, values), blocks


def _copy_to(device: torch.device, values: list[int]) -> Tensor:
    """The integers in the device's memory, without a host sync.

    In a CUDA graph each is written by a launch of its own: a copy would read host memory at each replay.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.int64, device=device)
    if torch.cuda.is_current_stream_capturing():
        table = torch.empty(len(values), dtype=torch.int64, device=device)
        for i, value in enumerate(values):
            table[i].fill_(value)
        return table
    table = torch.tensor(values, dtype=torch.int64, device="cpu", pin_memory=True)
    return table.to(device, non_blocking=True)
