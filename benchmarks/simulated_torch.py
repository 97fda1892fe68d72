"""Parts of torch on the simulated device: mixed precision, and functions that need the values of tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map_only

# Mixed precision as on CUDA: torch has lists of operations for its own devices, none for one of Python

LOWER = (
    *("conv2d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm"),
    "scaled_dot_product_attention",
)
"""Computed in autocast's dtype."""

FLOAT32 = ("layer_norm", "softmax.int", "log_softmax.int", "cross_entropy_loss", "nll_loss", "mse_loss")

_FALLBACK = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_CASTS = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def register_autocast(device: str) -> None:
    """Make `torch.autocast(device)` cast the operands of LOWER and FLOAT32; once per process."""
    getattr(torch, device).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    _FALLBACK.fallback(torch.library.fallthrough_kernel)  # any other operation runs as it is
    for name in (*LOWER, *FLOAT32):
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        dtype = torch.float32 if name in FLOAT32 else None
        _CASTS.impl(name, _cast(op, device, dtype), with_keyset=True)


def _cast(op: Any, device: str, dtype: torch.dtype | None) -> Any:
    """`op` on operands of `dtype`; None: of autocast's."""

    def call(keys: Any, *args: Any, **kwargs: Any) -> Any:
        target = dtype or torch.get_autocast_dtype(device)

        def operand(t: Tensor) -> Tensor:
            casts = t.is_floating_point() and t.dtype is not torch.float64 and t.device.type == device
            return t.to(target) if casts else t

        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            return op(*tree_map_only(Tensor, operand, args), **tree_map_only(Tensor, operand, kwargs))

    return call


# Functions that need the values of tensors


def replaced_functions() -> ExitStack:
    """A context with torch's own functions that need values replaced by ones that do not."""
    stack = ExitStack()
    new_tensor = lambda like, data: torch.tensor(data, dtype=like.dtype, device=like.device)  # noqa: E731
    for owner, name, replacement in (
        (nn.Module, "_apply", _apply),
        (torch, "tensor", _tensor(torch.tensor)),
        (Tensor, "new_tensor", new_tensor),
        (torch, "save", _save(torch.save)),
        (torch, "load", _load(torch.load)),
        (torch, "set_rng_state", lambda state: None),
    ):
        stack.enter_context(patch.object(owner, name, replacement))
    return stack


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` with new parameters: torch cannot move a fake one in place."""
    if recurse:
        for child in module.children():
            child._apply(fn)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fn(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
    return module


def _tensor(tensor: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor`, which copies from the CPU."""

    def create(data: Any, *, device: torch.device | None = None, **options: Any) -> Tensor:
        on_cpu = tensor(data, **options)
        if device is None or torch.device(device).type == "cpu":
            return on_cpu
        return on_cpu.to(device)

    return create


def _save(save: Callable[..., None]) -> Callable[..., None]:
    """`torch.save`, which copies to the CPU; the file has zeros for the values that fake tensors lack."""

    def save_zeros(content: Any, file: Any) -> None:
        on_cpu = tree_map_only(Tensor, lambda t: t.detach().cpu(), content)
        with unset_fake_temporarily():
            real = tree_map_only(Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), on_cpu)
            save(real, file)

    return save_zeros


def _load(load: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.load` of real tensors on the CPU."""

    def load_real(file: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return load(file, **options)

    return load_real
