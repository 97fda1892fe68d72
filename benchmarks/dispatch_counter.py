"""Kernel launches, bytes and memory of a device, counted from the operations that torch dispatches to it.

* An operation is one launch. Views, allocations and questions for metadata are none; neither is what runs on
  another device.
* torch._foreach_* and fused optimizers launch as often as torch's multi-tensor kernel does, see
  `multi_tensor_launches`; where its fast path does not apply, once per tensor.
* An operation reads every operand once and writes every result once: a lower bound, and what an elementwise
  kernel does. Expanded dimensions take no bytes; indexing reads the entries that it selects.
* A convolution or a reduction may launch more than one kernel; here it counts as one.

Hand-written kernels: see `KERNELS`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any
from unittest.mock import patch

from multi_tensor import has_fast_path, multi_tensor_launches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


KERNELS: dict[str, Callable[..., Cost]] = {
    "ham.optim.implementations.IMPLEMENTATIONS[triton]": lambda ps, gs, *_: Cost(  # its table is copied first
        2, nbytes([*ps, *gs]) + 64 * len(ps), nbytes(ps) + 32 * len(ps)
    ),
}
"""Dotted name of a Python function that launches hand-written kernels, such as "ham.optim.fast.launch", or of
an entry of a dictionary, "ham.optim.fast.STEPS[triton]" -> a function of its arguments that returns the cost:
`lambda weights, grads: Cost(1, nbytes([*weights, *grads]), nbytes(weights))`.

Inside a counter the first function is counted and not called, and returns None. A kernel that is registered
with torch.library is an operation of torch and needs no entry."""


class DispatchCounter(TorchDispatchMode):
    """Counts the operations on one kind of device inside its context.

    Args:
        device: its type, such as "cuda".
        cuda: version of CUDA, a key of `multi_tensor.LIMITS`.

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
        for name, cost in KERNELS.items():
            self._patches.enter_context(_replace(name, partial(self._launch, name, cost)))
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

    def _launch(self, name: str, cost: Callable[..., Cost], *args: Any, **kwargs: Any) -> None:
        self._add(name, cost(*args, **kwargs))

    def _add(self, name: str, cost: Cost) -> None:
        self.total += cost
        if cost.launches:
            self.launches[name] += cost.launches

    def _tensors(self, content: Any) -> list[Tensor]:
        return [t for t in tree_leaves(content) if isinstance(t, Tensor) and t.device.type == self.device]

    def _cost(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> Cost:
        name, arguments = func._opname, list(_bind(func, args, kwargs))
        read, written = [], []
        for argument, value in arguments:
            tensors = self._tensors(value)
            is_changed = _is_changed(name, argument, kwargs)
            written += tensors if is_changed else []
            read += [] if is_changed and (name in _OVERWRITES or argument.name == "out") else tensors
        results = [
            tensor
            for result, value in zip(func._schema.returns, _results(func, out), strict=True)
            if result.alias_info is None
            for tensor in self._tensors(value)
        ]
        written += results
        if name in _FREE or func.is_view or not any(t.numel() for t in written or read):
            return Cost()
        if name in _SELECTS:
            read = [*read[1:], *results]
        return Cost(self._launches(func, arguments, results), nbytes(read), nbytes(written))

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
        if name.startswith("_foreach_") and not has_fast_path(lists, mixed=name == "_foreach_copy_"):
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


def _replace(name: str, function: Callable[..., None]) -> AbstractContextManager:
    """A context in which a name of KERNELS is another function."""
    target, _, key = name.removesuffix("]").partition("[")
    return patch.dict(target, {key: function}) if key else patch(target, function)


def _bind(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(argument of the schema, its value) of those that were passed."""
    for number, argument in enumerate(func._schema.arguments):
        if number < len(args):
            yield argument, args[number]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _is_changed(name: str, argument: Any, kwargs: dict[str, Any]) -> bool:
    """Return True if the operation writes this argument. Fused optimizers write gradients to unscale them."""
    if name.startswith("_fused_") and argument.name == "grads":
        return kwargs.get("grad_scale") is not None
    return argument.alias_info is not None and argument.alias_info.is_write


def _results(func: Any, out: Any) -> Sequence[Any]:
    return [out] if len(func._schema.returns) == 1 else out or []


def nbytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of distinct tensors, expanded dimensions left out."""
    distinct = {(t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()): t for t in tensors}
    return sum(
        t.element_size()
        * prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or not size)
        for t in distinct.values()
    )
