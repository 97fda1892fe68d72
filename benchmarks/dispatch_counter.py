"""Kernel launches, bytes and memory of a device, counted from the operations that torch dispatches to it.

* An operation is one launch. Views, allocations and questions for metadata are none; neither is what runs on
  another device.
* torch._foreach_* and fused optimizers launch as often as torch's multi-tensor kernel does, see
  `multi_tensor_launches`; where its fast path does not apply, once per tensor.
* An operation reads every operand once and writes every result once: a lower bound, and what an elementwise
  kernel does. Expanded dimensions take no bytes; indexing reads the entries that it selects.
* A convolution or a reduction may launch more than one kernel; here it counts as one.

A hand-written kernel counts as one launch: see `KERNELS`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KERNELS: dict[str, Callable[..., tuple[Sequence[Tensor], Sequence[Tensor]]]] = {}
"""Dotted name of a Python function that launches a hand-written kernel, such as "ham.optim.fast.launch"
-> a function of its arguments that returns the tensors which the kernel reads and those which it writes.

Inside a counter the first function is counted and not called, and returns None. A kernel that is registered
with torch.library is an operation of torch and needs no entry."""

CHUNK = 65536
"""Elements that one block of a multi-tensor kernel works on."""

LIMITS = {12: ((110, 64, 48, 36, 30), 320), 13: ((770, 448, 336, 252, 210), 2240)}
"""Version of CUDA -> tensors per launch for 1 to 5 lists of tensors, and blocks per launch: see
ATen/native/cuda/MultiTensorApply.cuh among torch's headers. A kernel has 4 KB of arguments before CUDA 13."""

SCALAR_LISTS = {12: 96, 13: 672}
"""Tensors per launch for one list of tensors and a list of scalars; for more lists as above."""

_NORMS = {"_foreach_norm", "_foreach_powsum", "_foreach_max"}
"""Two more launches: one clears the partial results of the blocks, one reduces them (ForeachReduceOp.cu)."""

_FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"),
    *("_unsafe_view", "_reshape_alias", "lift_fresh", "is_same_size", "_local_scalar_dense"),
}
_OVERWRITES = {
    *("copy_", "fill_", "zero_", "bernoulli_", "normal_", "uniform_", "random_", "exponential_"),
    *("_foreach_copy_", "_foreach_zero_"),
}
"""Operations that do not read the tensor that they change."""

_SELECTS = {"index", "index_select", "gather", "embedding", "take", "masked_select"}


@dataclass(frozen=True)
class Cost:
    """What was launched, and the bytes that were read and written."""

    launches: int = 0
    read: int = 0
    written: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.launches + other.launches, self.read + other.read, self.written + other.written)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.launches - other.launches, self.read - other.read, self.written - other.written)


class DispatchCounter(TorchDispatchMode):
    """Counts the operations on one kind of device inside its context.

    Args:
        device: its type, such as "cuda".
        cuda: version of CUDA, a key of LIMITS.

    Attributes:
        total: cost so far.
        launches: operation -> launches so far.
        live: bytes of the tensors that were created inside the context and still exist.
        peak: the largest `live`; set it to `live` to start again.
    """

    def __init__(self, device: str, cuda: int = 13) -> None:
        super().__init__()
        self.device, self.cuda = device, cuda
        self.total, self.launches = Cost(), Counter()
        self.live = self.peak = 0
        self._storages: set[int] = set()
        self._patches = ExitStack()

    def __enter__(self) -> DispatchCounter:
        for name, tensors in KERNELS.items():
            self._patches.enter_context(patch(name, partial(self._launch, name, tensors)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace not in ("prim", "profiler"):
            self._add(func._opname, self._cost(func, args, kwargs or {}, out))
            for tensor in self._tensors(out):
                self._note_memory(tensor)
        return out

    def _launch(self, name: str, tensors: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        read, written = tensors(*args, **kwargs)
        self._add(name, Cost(1, _bytes(read), _bytes(written)))

    def _add(self, name: str, cost: Cost) -> None:
        self.total += cost
        if cost.launches:
            self.launches[name] += cost.launches

    def _tensors(self, content: Any) -> list[Tensor]:
        return [t for t in tree_leaves(content) if isinstance(t, Tensor) and t.device.type == self.device]

    def _cost(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> Cost:
        name, arguments = func._opname, list(_bound(func, args, kwargs))
        read, written = [], []
        for argument, value in arguments:
            tensors = self._tensors(value)
            is_changed = _is_changed(name, argument, kwargs)
            written += tensors if is_changed else []
            read += [] if is_changed and (name in _OVERWRITES or argument.name == "out") else tensors
        results = [
            tensor
            for result, value in zip(func._schema.returns, _returned(func, out), strict=True)
            if result.alias_info is None
            for tensor in self._tensors(value)
        ]
        written += results
        if name in _FREE or func.is_view or not (read or written):
            return Cost()
        if name in _SELECTS:
            read = [*read[1:], *results]
        return Cost(self._launches(func, arguments, results), _bytes(read), _bytes(written))

    def _launches(self, func: Any, arguments: list[tuple[Any, Any]], results: list[Tensor]) -> int:
        name = func._opname
        if not name.startswith(("_foreach_", "_fused_")):
            return 1
        lists = [
            self._tensors(value)
            for argument, value in arguments
            if str(argument.type) == "List[Tensor]" and argument.name != "state_steps"
        ]
        lists = [tensors for tensors in lists if tensors]
        if name in _NORMS:
            return 2 + self._multi_tensor(lists, 1)
        depth = len(lists) + bool(results)
        if name.startswith("_foreach_") and not _has_fast_path(lists, mixed=name == "_foreach_copy_"):
            return sum(t.numel() > 0 for t in lists[0])
        return self._multi_tensor(lists, depth, scalars=func._overloadname == "ScalarList")

    def _multi_tensor(self, lists: list[list[Tensor]], depth: int, *, scalars: bool = False) -> int:
        sizes = [t.numel() for t in lists[0]]
        return multi_tensor_launches(sizes, depth, scalars=scalars, cuda=self.cuda)

    def _note_memory(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, storage: int, nbytes: int) -> None:
        self._storages.discard(storage)
        self.live -= nbytes


def multi_tensor_launches(sizes: Sequence[int], depth: int, *, scalars: bool = False, cuda: int = 13) -> int:
    """Launches of torch's multi-tensor kernel, which splits tensors into chunks of CHUNK elements.

    A launch ends when its blocks, one per chunk, or its tensors reach the limit. A tensor that is not done
    goes on in the next launch.

    Args:
        sizes: elements of each tensor.
        depth: number of lists of tensors, results included.
        scalars: does each tensor have a scalar of its own?
        cuda: a key of LIMITS.
    """
    tensors_per_launch, most_blocks = LIMITS[cuda]
    most_tensors = SCALAR_LISTS[cuda] if scalars and depth == 1 else tensors_per_launch[depth - 1]
    launches = tensors = blocks = 0
    for size in filter(None, sizes):
        tensors, chunks = tensors + 1, ceil(size / CHUNK)
        while chunks:
            taken = min(chunks, most_blocks - blocks)
            blocks, chunks = blocks + taken, chunks - taken
            if blocks == most_blocks or (tensors == most_tensors and not chunks):
                launches, blocks, tensors = launches + 1, 0, int(chunks > 0)
    return launches + (blocks > 0)


def _bound(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(argument of the schema, its value) of those that were passed."""
    for number, argument in enumerate(func._schema.arguments):
        if number < len(args):
            yield argument, args[number]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _is_changed(name: str, argument: Any, kwargs: dict[str, Any]) -> bool:
    """Does the operation write this argument? Fused optimizers write gradients only to unscale them."""
    if name.startswith("_fused_") and argument.name == "grads":
        return kwargs.get("grad_scale") is not None
    return argument.alias_info is not None and argument.alias_info.is_write


def _returned(func: Any, out: Any) -> Sequence[Any]:
    return [out] if len(func._schema.returns) == 1 else out or []


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of distinct tensors, expanded dimensions left out."""
    distinct = {(t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()): t for t in tensors}
    return sum(
        t.element_size()
        * prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or not size)
        for t in distinct.values()
    )


def _has_fast_path(lists: list[list[Tensor]], *, mixed: bool) -> bool:
    """Torch's conditions for multi-tensor kernels (ATen/native/ForeachUtils.h): dtypes and strides agree."""
    first = lists[0]
    dtypes = {t.dtype for t in first} if mixed else {t.dtype for tensors in lists for t in tensors}
    return len(dtypes) == 1 and all(
        _strides(t) == _strides(t0) and t.shape == t0.shape
        for tensors in lists[1:]
        if len(tensors) == len(first)
        for t, t0 in zip(tensors, first, strict=True)
    )


def _strides(t: Tensor) -> list[int]:
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1]
