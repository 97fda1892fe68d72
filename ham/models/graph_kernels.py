"""The operations of graph_kernels.c on tensors: each in one pass, on as many threads as torch uses.

They are for CPU tensors, in code that autograd does not record, as in the passes of an autograd Function.
Elsewhere `for_tensors` returns None, and the caller computes the same with torch's operations.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from ctypes import CDLL, c_double, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ham import c_code

_SOURCE = Path(__file__).with_suffix(".c")
_SMALLEST_SHARE = 1 << 17  # numbers that a thread reads: with fewer its start takes longer than its work
_BLOCK = 64  # channels that a thread computes at least, as many as graph_kernels.c sums in registers
_DTYPES = {torch.float32: c_float, torch.float64: c_double}


def for_tensors(*tensors: Tensor) -> GraphKernels | None:
    """The operations for CPU tensors of one dtype; None where they cannot be used."""
    dtype = tensors[0].dtype
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or dtype not in _DTYPES:
        return None
    if not all(t.dtype == dtype and t.device.type == "cpu" and c_code.has_memory(t) for t in tensors):
        return None
    return _kernels(dtype)


def has_c_code(dtype: torch.dtype) -> bool:
    """Return True if CPU tensors of this dtype can use the C code; it is compiled and tested once."""
    return _kernels(dtype) is not None


@cache
def _kernels(dtype: torch.dtype) -> GraphKernels | None:
    if not c_code.has_compiler():
        return None
    try:
        kernels = GraphKernels(c_code.load(_SOURCE, dtype), _DTYPES[dtype])
        reason = "" if _matches_known_results(kernels, dtype) else "its results are wrong"
    except c_code.CompilerError as error:
        reason = str(error)
    if reason:
        warnings.warn(
            f"the C code of graph networks does not work: {reason}. torch's operations are used, which are "
            "slower",
            stacklevel=2,
        )
    return None if reason else kernels


def _matches_known_results(kernels: GraphKernels, dtype: torch.dtype) -> bool:
    """Return True if the kernels give known results. Row 0 of the matrix is (2, 3), row 1 is empty."""
    pattern = Pattern(*(torch.tensor(numbers, device="cpu") for numbers in ([0, 2, 2], [0, 1])), 2)
    x = torch.tensor([[1.0, torch.nan], [10.0, 1.0]], dtype=dtype, device="cpu")
    product = kernels.multiply(pattern, x.new_tensor([2.0, 3.0]), None, x)
    weights, mean = kernels.attend(pattern, x.new_zeros(2), x)
    expected = ([[32.0, torch.nan], [0.0, 0.0]], [0.5, 0.5], [[5.5, torch.nan], [0.0, 0.0]])
    pairs = zip((product, weights, mean), expected, strict=True)
    return all(torch.allclose(own, own.new_tensor(known), equal_nan=True) for own, known in pairs)


class Pattern(NamedTuple):
    """Where a sparse matrix [rows, width] has entries: row i has those from starts[i] to starts[i + 1] - 1.

    starts: int64 [rows + 1]. columns: int64 [entries], each below `width`, which is not checked.
    """

    starts: Tensor
    columns: Tensor
    width: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1


class GraphKernels:
    """The functions of graph_kernels.c for one dtype; their results are new tensors.

    Raises:
        ValueError: the sizes of tensors do not fit together.
    """

    def __init__(self, library: CDLL, number: type) -> None:
        self._library, self._number = library, number

    def multiply(self, pattern: Pattern, values: Tensor, order: Tensor | None, x: Tensor) -> Tensor:
        """The sparse matrix times x [width, channels]; entry e has values[order[e]], or values[e]."""
        _check((pattern.width, x.shape[-1]), x)
        _check(pattern.columns.shape, values, order)
        out = x.new_empty(pattern.rows, x.shape[1])
        self._call("multiply", pattern, x.shape[1], values, order, x, x.shape[1], out)
        return out

    def attend(self, pattern: Pattern, scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax of the scores in each row, and the mean of values [width, channels] by it."""
        channels = values.shape[-1]
        _check((pattern.width, channels), values)
        _check(pattern.columns.shape, scores)
        weights, out = scores.new_empty(len(scores)), values.new_empty(pattern.rows, channels)
        self._call("attend", pattern, channels, scores, values, channels, weights, out)
        return weights, out

    def attend_backward(
        self, pattern: Pattern, weights: Tensor, values: Tensor, out: Tensor, gradient: Tensor
    ) -> Tensor:
        """The gradient of `attend`'s scores, from that of `out`."""
        channels = values.shape[-1]
        _check((pattern.rows, channels), out, gradient)
        grad = weights.new_empty(len(weights))
        self._call("attend_backward", pattern, channels, weights, values, out, gradient, channels, grad)
        return grad

    def additive_scores(
        self, pattern: Pattern, left: Tensor, right: Tensor, attention: Tensor, slope: float
    ) -> Tensor:
        """GATv2's score of each entry: attention . leaky_relu(left[column] + right[row])."""
        channels = left.shape[-1]
        _check((pattern.width, channels), left)
        _check((pattern.rows, channels), right)
        _check((channels,), attention)
        scores = left.new_empty(len(pattern.columns))
        given = (left, right, attention, self._number(slope), channels, scores)
        self._call("additive_scores", pattern, channels, *given)
        return scores

    def additive_scores_backward(
        self,
        pattern: Pattern,
        transposed: Pattern,
        order: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        slope: float,
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of left, right and attention, from that of the scores.

        `transposed` has the entries of `pattern`, transposed; entry e of it is entry order[e].
        """
        left, right, attention = inputs
        channels = left.shape[1]
        _check(pattern.columns.shape, gradient, order)
        grad_left, grad_right = left.new_empty(left.shape), right.new_empty(right.shape)
        partial = attention.new_empty(len(self._bounds(pattern, channels)) - 1, channels)
        given = (*inputs, self._number(slope), channels, gradient)
        self._call("additive_scores_backward_rows", pattern, channels, *given, grad_right, per_share=partial)
        self._call("additive_scores_backward_columns", transposed, channels, order, *given, grad_left)
        return grad_left, grad_right, partial.sum(dim=0)

    def sum_messages(
        self, incoming: Pattern, values: Tensor, ends: tuple[Tensor, Tensor], x: Tensor, edges: Tensor
    ) -> Tensor:
        """Sum over each row's entries: value * relu(x[sender] + edges[kind]) of the message in its column.

        ends: sender and kind of each message, int64 [messages]; rows of x and edges, which is not checked.
        """
        channels = x.shape[-1]
        _check((len(x), channels), x)
        _check((len(edges), channels), edges)
        _check(incoming.columns.shape, values)
        _check((incoming.width,), *ends)
        out = x.new_empty(incoming.rows, channels)
        self._call("sum_messages", incoming, channels, values, *ends, x, edges, channels, out)
        return out

    def sum_messages_backward(
        self,
        by_sender: Pattern,
        outgoing: Pattern,
        values: Tensor,
        kinds: Tensor,
        inputs: tuple[Tensor, Tensor],
        gradient: Tensor,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of x and edges, which are `inputs`; None for one that is not `needed`.

        by_sender: the messages of each node, each of one. outgoing, with its values: who gets each message.
        """
        x, edges = inputs
        channels = x.shape[-1]
        _check((by_sender.rows, channels), x)
        _check((len(edges), channels), edges)
        _check((outgoing.width, channels), gradient)
        _check((outgoing.rows,), kinds, by_sender.columns)
        _check(outgoing.columns.shape, values)
        grad_x = x.new_empty(x.shape) if needed[0] else None
        grad_edges = edges.new_zeros(edges.shape) if needed[1] else None
        given = (by_sender.rows, *by_sender[:2], *outgoing[:2], values, kinds, x, edges, gradient, channels)
        parts = len(c_code.equal_shares(len(values) * channels, _SMALLEST_SHARE)) - 1
        blocks = c_code.equal_shares(-(-channels // _BLOCK), -(-channels // (_BLOCK * parts)))
        bounds = [min(_BLOCK * block, channels) for block in blocks]
        self._run("sum_messages_backward", bounds, (*given, grad_x, grad_edges))
        return grad_x, grad_edges

    def relu_dropout(self, x: Tensor, draws: Tensor, threshold: int, scale: float, out: Tensor) -> Tensor:
        """relu(x) * scale where draws, int16, are at least `threshold`, else 0, in contiguous `out`, or x."""
        _check(x.shape, draws, out)
        self._elementwise("relu_dropout", x, draws, threshold, self._number(scale), out)
        return out

    def relu_dropout_backward(self, gradient: Tensor, out: Tensor, scale: float) -> Tensor:
        """The gradient of `relu_dropout`'s x: gradient * scale where `out` is positive, else 0."""
        _check(out.shape, gradient)
        grad = out.new_empty(out.shape)
        self._elementwise("relu_dropout_backward", gradient, out, self._number(scale), grad)
        return grad

    def _elementwise(self, name: str, *arguments: object) -> None:
        self._run(name, c_code.equal_shares(arguments[0].numel(), _SMALLEST_SHARE), arguments)

    def _call(
        self, name: str, pattern: Pattern, channels: int, *arguments: object, per_share: Tensor | None = None
    ) -> None:
        given = (pattern.starts, pattern.columns, *arguments)
        self._run(name, self._bounds(pattern, channels), given, per_share)

    @staticmethod
    def _bounds(pattern: Pattern, channels: int) -> list[int]:
        """Rows of parts with about as many entries each, one for each thread."""
        shares = c_code.equal_shares(len(pattern.columns) * channels, _SMALLEST_SHARE)
        if len(shares) == 2:
            return [0, pattern.rows]
        ends = pattern.starts.new_tensor([share // channels for share in shares[1:-1]])
        return [0, *torch.searchsorted(pattern.starts, ends).tolist(), pattern.rows]

    def _run(
        self, name: str, bounds: list[int], arguments: tuple[object, ...], per_share: Tensor | None = None
    ) -> None:
        function = getattr(self._library, name)
        held = [value.contiguous() if isinstance(value, Tensor) else value for value in arguments]
        given = [_argument(value) for value in held]

        def call(number: int, first: int, last: int, tensors: object = held) -> None:  # it keeps them alive
            own = [] if per_share is None else [_argument(per_share[number])]
            function(c_int64(first), c_int64(last), *given, *own)

        c_code.in_threads(call, bounds)


def _check(shape: Sequence[int], *tensors: Tensor | None) -> None:
    """Raise ValueError unless the tensors have a shape: C code would read what is behind them."""
    for tensor in tensors:
        if tensor is not None and tensor.shape != torch.Size(shape):
            raise ValueError(f"a tensor has the shape {tuple(tensor.shape)}, and {tuple(shape)} is needed")


def _argument(value: object) -> object:
    """The value as C takes it: the address of a tensor, 0 for None, a 64-bit integer."""
    if isinstance(value, Tensor):
        return c_void_p(value.data_ptr())
    return c_void_p() if value is None else c_int64(value) if isinstance(value, int) else value
