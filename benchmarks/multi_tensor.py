"""How often torch's multi-tensor kernels launch: torch._foreach_* and fused optimizers on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false

CHUNK = 65536
"""Elements that one block of a multi-tensor kernel works on."""

HEADER = "ATen/native/cuda/MultiTensorApply.cuh"
"""The source of these numbers, among torch's headers."""

LIMITS = {12: ((110, 64, 48, 36, 30), 320), 13: ((770, 448, 336, 252, 210), 2240)}
"""Version of CUDA -> tensors per launch for 1 to 5 lists of tensors, and blocks per launch. A kernel has 4 KB
of arguments before CUDA 13. Torch 2.11 has the same limits with CUDA 13: see `installed_limits`."""

SCALAR_LISTS = {12: 96, 13: 672}
"""Tensors per launch for one list of tensors and a list of scalars; for more lists as above."""


def installed_limits() -> int:
    """The key of LIMITS for the installed torch, from its header and its CUDA.

    Raises:
        ValueError: the header has other numbers.
    """
    header = (Path(torch.__file__).parent / "include" / HEADER).read_text(encoding="utf-8")
    known = [version for version, (tensors, _) in LIMITS.items() if str(tensors)[1:-1] in header]
    if 12 not in known:
        raise ValueError(f"{HEADER} of torch {torch.__version__} has other limits than LIMITS: update them")
    return max(
        version for version in known if version <= max(12, int((torch.version.cuda or "12").split(".")[0]))
    )


def multi_tensor_launches(sizes: Sequence[int], depth: int, *, scalars: bool = False, cuda: int = 13) -> int:
    """Launches of torch's multi-tensor kernel, which splits tensors into chunks of CHUNK elements.

    A launch ends when its blocks, one per chunk, or its tensors reach the limit. A tensor that is not done
    continues in the next launch.

    Args:
        sizes: elements of each tensor.
        depth: number of lists of tensors, results included.
        scalars: True if each tensor has a scalar of its own.
        cuda: a key of LIMITS.
    """
    tensors_per_launch, most_blocks = LIMITS[cuda]
    most_tensors = SCALAR_LISTS[cuda] if scalars and depth == 1 else tensors_per_launch[depth - 1]
    launches = tensors = blocks = 0
    for size in filter(None, sizes):
        tensors, chunks = tensors + 1, ceil(size / CHUNK)
        while chunks:
            taken = min(chunks, most_blocks - blocks)
            blocks, chunks = blocks + taken, chunks - taken  # chunks are left only where the blocks are full
            if blocks == most_blocks or tensors == most_tensors:
                launches, blocks, tensors = launches + 1, 0, int(chunks > 0)
    return launches + (blocks > 0)


def has_fast_path(lists: list[list[Tensor]], *, mixed: bool) -> bool:
    """Torch's conditions for these kernels (ATen/native/ForeachUtils.h): dense, equal types and strides."""
    first = lists[0]
    dtypes = {t.dtype for t in first} if mixed else {t.dtype for tensors in lists for t in tensors}
    return (
        len(dtypes) == 1
        and all(is_non_overlapping_and_dense_or_false(t) for t in first)
        and all(
            _strides(t) == _strides(t0) and t.shape == t0.shape
            for tensors in lists[1:]
            if len(tensors) == len(first)
            for t, t0 in zip(tensors, first, strict=True)
        )
    )


def _strides(t: Tensor) -> list[int]:
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1]
