"""An accelerator that does not exist, to see device mistakes and host syncs where there is no GPU.

PyTorch registers the device in Python, and its tensors are fake: they have shapes, dtypes and devices, but no
values. As on CUDA, an operation on tensors of two devices raises. An operation for which the host waits for a
CUDA device (`torch.cuda.set_sync_debug_mode` reports the same) is counted for the function that called it,
and returns an invented result:

* the value of a tensor: `.item()`, `int(t)`, `bool(t)`, `.tolist()`, `torch.equal`;
* a shape that depends on values: `nonzero`, boolean indexing, `unique`, `bincount`, `repeat_interleave`;
* a copy from or to the CPU without `non_blocking=True`, also the implicit one of an index or of a scalar.

A process that has used the device has to end with `os._exit`, as `run_and_exit` does: the device's autograd
thread aborts the interpreter's shutdown.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from simulated_torch import register_autocast, replaced_functions
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
ELSEWHERE = "elsewhere"
ROOT = Path(__file__).resolve().parents[1]
DENSITY = 0.2
"""Of every mask, as the answers have it; the sparsity of the contract's methods is 0.8."""

TOTAL = 64
"""Of integers that are added, and of the entries that `repeat_interleave` makes."""

aten = torch.ops.aten


def register() -> torch.device:
    """Make `torch.device("simulated")` known to torch, autocast included; once per process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _setup_privateuseone_for_python_backend(NAME)
    backend = getattr(torch, NAME)
    backend.get_rng_state, backend.set_rng_state = (
        (lambda device=None: None),
        (lambda state, device=None: None),
    )
    backend.manual_seed_all = lambda seed: None
    register_autocast(NAME)
    return torch.device(NAME)


def run_and_exit(work: Callable[[torch.device], object]) -> NoReturn:
    """Call `work` with the device and end this process: status 1 and a traceback if it raises, else 0."""
    status = 1
    try:
        work(register())
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


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
        with self, replaced_functions():
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
    """Return True if the host waits for a CUDA device in this operation."""
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
    """The "file:function" of the innermost frame in `ham` or `pruning`; ELSEWHERE outside of these."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ("ham", "pruning"):
            name = re.sub(r"(\.<\w+>)+", "", frame.f_code.co_qualname)
            return f"{file.relative_to(ROOT).as_posix()}:{name}"
        frame = frame.f_back
    return ELSEWHERE


def _selected_count(shape: Tensor) -> int:
    return max(round(DENSITY * shape.numel()), 1)


def _fused_sgd(params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], **options: Any) -> None:
    """In place of the kernel, of which torch has no fake one."""
    devices = {t.device for t in [*params, *grads, *momenta]}
    if len(devices) > 1:
        raise RuntimeError(f"fused SGD on tensors of several devices: {sorted(map(str, devices))}")


def _convolution_backward(grad: Tensor, images: Tensor, weight: Tensor, bias: list[int] | None, *args: Any):
    """Gradients in the memory format of what they belong to, as cudnn's; torch's fake ones are contiguous."""
    shapes = torch.empty_like(images), torch.empty_like(weight), grad.new_empty(bias or 0)
    return tuple(like if asked else None for like, asked in zip(shapes, args[-1], strict=True))


def _unique(values: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False):
    integers = dict(dtype=torch.int64)
    count = _selected_count(values)
    return (
        values.new_empty(count),
        values.new_empty(values.shape if return_inverse else 0, **integers),
        values.new_empty(count if return_counts else 0, **integers),
    )


_TRUTHS = (aten.all.default, aten.any.default, aten.equal.default)
_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.nonzero.default: lambda t: t.new_empty((_selected_count(t), t.ndim), dtype=torch.int64),
    aten.equal.default: lambda one, other: True,
    aten.bincount.default: lambda t, weights=None, minlength=0: t.new_empty(minlength, dtype=torch.int64),
    aten.repeat_interleave.Tensor: lambda t, output_size=None: t.new_empty(output_size or TOTAL),
    aten.masked_select.default: lambda t, mask: t.new_empty(_selected_count(mask)),
    aten._unique2.default: _unique,
    aten._fused_sgd_.default: _fused_sgd,
    aten.convolution_backward.default: _convolution_backward,
}
_KERNELS = {aten._fused_sgd_.default, aten.convolution_backward.default}
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.where.self}
_MAY_WAIT = (set(_ANSWERS) - _KERNELS) | _COPIES | _INDEXING
