"""An accelerator that does not exist, to see device mistakes and host syncs where there is no GPU.

PyTorch registers the device in Python, and its tensors are fake: they have shapes, dtypes and devices, but no
values. As on CUDA, an operation on tensors of two devices raises. What makes the host wait for a CUDA device
(`torch.cuda.set_sync_debug_mode` reports the same) is counted, by the function that asked for it, and gets an
invented answer:

* the value of a tensor: `.item()`, `int(t)`, `bool(t)`, `.tolist()`, `torch.equal`;
* a shape that depends on values: `nonzero`, boolean indexing, `unique`, `bincount`, `repeat_interleave`;
* a copy from or to the CPU without `non_blocking=True`, also the implicit one of an index or of a scalar.

A process that has used the device has to end with `os._exit`: the device's autograd thread aborts the
interpreter's shutdown.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
TEST = "the test itself"
ROOT = Path(__file__).resolve().parents[2]
DENSITY = 0.2
"""Of every mask, as the answers have it; the sparsity of the contract's methods is 0.8."""

TOTAL = 64
"""Of integers that are added, and of the entries that `repeat_interleave` makes."""

aten = torch.ops.aten
_AUTOCAST = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")


def register() -> torch.device:
    """Make `torch.device("simulated")` known to torch, autocast included; once per process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _setup_privateuseone_for_python_backend(NAME)
    backend = getattr(torch, NAME)
    backend.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    backend.get_rng_state, backend.set_rng_state = (
        (lambda device=None: None),
        (lambda state, device=None: None),
    )
    backend.manual_seed_all = lambda seed: None
    _AUTOCAST.fallback(torch.library.fallthrough_kernel)  # autocast changes dtypes, not devices
    return torch.device(NAME)


class SimulatedDevice(FakeTensorMode):
    """Inside this context tensors are fake, and live on the CPU or on the simulated device.

    Attributes:
        syncs: place -> how often the host waited there. A place is "file:function", the innermost function
            of `ham` or `pruning`; list comprehensions and lambdas count as the function around them.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.syncs: Counter[str] = Counter()

    @contextmanager
    def used(self) -> Iterator[SimulatedDevice]:
        """Enter, with torch's own functions that need values replaced by ones that do not."""
        with ExitStack() as stack:
            stack.enter_context(self)
            stack.enter_context(patch.object(nn.Module, "_apply", _apply))
            stack.enter_context(patch.object(torch, "tensor", _tensor(torch.tensor)))
            new_tensor = lambda like, data: torch.tensor(data, dtype=like.dtype, device=like.device)  # noqa: E731
            stack.enter_context(patch.object(Tensor, "new_tensor", new_tensor))
            stack.enter_context(patch.object(torch, "save", _save(torch.save)))
            stack.enter_context(patch.object(torch, "load", _load(torch.load)))
            stack.enter_context(patch.object(torch, "set_rng_state", lambda state: None))
            yield self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._value(func, types, args, kwargs)
        if func in _MAY_WAIT and waits(func, args, kwargs):
            self.syncs[place()] += 1
        if func in _ANSWERS:
            return _ANSWERS[func](*args, **kwargs)
        if func is aten._to_copy.default:
            fake = args[0] if isinstance(args[0], FakeTensor) else self.from_tensor(args[0])
            fake.constant = None  # a known value, which torch would copy to a device that has no memory
            args = (fake, *args[1:])
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func in _TRUTHS:
            result.answer = True
        elif func is aten.count_nonzero.default:
            result.answer = round(DENSITY * args[0].numel())
        elif func is aten.sum.default and not result.is_floating_point():
            result.answer = TOTAL
        elif func is aten.stack.default and not result.is_floating_point():
            result.answers = [getattr(number, "answer", -1) for number in args[0]]
        elif func is aten.unbind.int and hasattr(args[0], "answers"):  # of `.tolist()`
            for number, answer in zip(result, args[0].answers, strict=True):
                number.answer = answer
        return result

    def _value(self, func: Any, types: Any, args: tuple, kwargs: dict[str, Any]) -> float | int | bool:
        """The answer to `.item()`: the count of a mask, "no" to the question for an error, -1 as its step."""
        (tensor,) = args
        if is_simulated(tensor):
            self.syncs[place()] += 1
        else:
            try:
                return super().__torch_dispatch__(func, types, args, kwargs)
            except DataDependentOutputException:
                pass
        otherwise = 1.0 if tensor.is_floating_point() else False if tensor.dtype is torch.bool else -1
        return getattr(tensor, "answer", otherwise)


def is_simulated(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.device.type == NAME


def waits(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Does the host wait for a CUDA device in this operation?"""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    devices = {t.device.type for t in tensors}
    if func in _COPIES:
        if func is aten._to_copy.default and kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]).type)
        blocking = not (kwargs.get("non_blocking") or (func is aten.copy_.default and True in args[2:]))
        return blocking and devices == {"cpu", NAME}
    if func is aten.index_put_.default and args[2].numel() > 1 and NAME in devices:
        return "cpu" in devices or any(index is not None and index.dtype is torch.bool for index in args[1])
    if func in _INDEXING:
        return devices == {"cpu", NAME}
    if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None:
        return False
    return NAME in devices


def place() -> str:
    """ "file:function" of the innermost frame in `ham` or `pruning`; TEST outside of these."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ("ham", "pruning"):
            name = re.sub(r"(\.<\w+>)+", "", frame.f_code.co_qualname)
            return f"{file.relative_to(ROOT).as_posix()}:{name}"
        frame = frame.f_back
    return TEST


def _some(shape: Tensor) -> int:
    return max(round(DENSITY * shape.numel()), 1)


def _fused_sgd(params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], **options: Any) -> None:
    """torch has no fake kernel of this one."""
    devices = {t.device for t in [*params, *grads, *momenta]}
    if len(devices) > 1:
        raise RuntimeError(f"fused SGD on tensors of several devices: {sorted(map(str, devices))}")


def _unique(values: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False):
    integers = dict(dtype=torch.int64)
    count = _some(values)
    return (
        values.new_empty(count),
        values.new_empty(values.shape if return_inverse else 0, **integers),
        values.new_empty(count if return_counts else 0, **integers),
    )


_TRUTHS = (aten.all.default, aten.any.default, aten.equal.default)
_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.nonzero.default: lambda t: t.new_empty((_some(t), t.ndim), dtype=torch.int64),
    aten.equal.default: lambda one, other: True,
    aten.bincount.default: lambda t, weights=None, minlength=0: t.new_empty(minlength, dtype=torch.int64),
    aten.repeat_interleave.Tensor: lambda t, output_size=None: t.new_empty(output_size or TOTAL),
    aten.masked_select.default: lambda t, mask: t.new_empty(_some(mask)),
    aten._unique2.default: _unique,
    aten._fused_sgd_.default: _fused_sgd,
}
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.where.self}
_MAY_WAIT = (set(_ANSWERS) | _COPIES | _INDEXING) - {aten._fused_sgd_.default}


# What torch's own functions do with fake tensors


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

    def created(data: Any, *, device: torch.device | None = None, **options: Any) -> Tensor:
        on_cpu = tensor(data, **options)
        if device is None or torch.device(device).type == "cpu":
            return on_cpu
        return on_cpu.to(device)

    return created


def _save(save: Callable[..., None]) -> Callable[..., None]:
    """`torch.save`, which copies to the CPU; zeros stand in the file for what fake tensors do not have."""

    def saved(content: Any, file: Any) -> None:
        on_cpu = tree_map_only(Tensor, lambda t: t.detach().cpu(), content)
        with unset_fake_temporarily():
            real = tree_map_only(Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), on_cpu)
            save(real, file)

    return saved


def _load(load: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.load` of real tensors on the CPU."""

    def loaded(file: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return load(file, **options)

    return loaded
