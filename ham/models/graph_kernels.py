"""The operations of graph_kernels.c on tensors: each in one pass, on as many threads as torch uses.

They are for CPU tensors, in code that autograd does not record, as in the passes of an autograd Function.
Elsewhere `for_tensors` returns None, and the caller computes the same with torch's operations.
"""

from __future__ import annotations

import warnings
from ctypes import CDLL, c_double, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ham import c_code

_SOURCE = Path(__file__).with_suffix(".c")
_SMALLEST_SHARE = 1 << 17  # numbers that a thread reads: with fewer its start takes longer than its work
_PLAIN = (Tensor, nn.Parameter)  # subclasses have their own dispatch
_DTYPES = {torch.float32: c_float, torch.float64: c_double}


def for_tensors(*tensors: Tensor) -> GraphKernels | None:
    """The operations for contiguous CPU tensors of one dtype; None where they cannot be used."""
    dtype = tensors[0].dtype
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or dtype not in _DTYPES:
        return None
    if not all(t.dtype == dtype and t.device.type == "cpu" and type(t) in _PLAIN for t in tensors):
        return None
    return _kernels(dtype)


@cache
def _kernels(dtype: torch.dtype) -> GraphKernels | None:
    if not c_code.has_compiler():
        return None
    try:
        return GraphKernels(c_code.load(_SOURCE, dtype), _DTYPES[dtype])
    except c_code.CompilerError as error:
        warnings.warn(f"graph networks are slower here: {error}", stacklevel=2)
        return None


class GraphKernels:
    """The functions of graph_kernels.c for one dtype. Tensors are made contiguous; results are new ones.

    The entries of a sparse matrix [rows, columns] are given by `starts` and `columns` (see `Csr`).
    """

    def __init__(self, library: CDLL, number: type) -> None:
        self._library, self._number = library, number

    def multiply(
        self, starts: Tensor, columns: Tensor, values: Tensor, order: Tensor | None, x: Tensor
    ) -> Tensor:
        """The sparse matrix times x [columns, channels]; entry e has values[order[e]], or values[e]."""
        x = x.contiguous()
        out = x.new_empty(len(starts) - 1, x.shape[1])
        self._call("multiply", starts, x.shape[1], starts, columns, values, order, x, x.shape[1], out)
        return out

    def attend(
        self, starts: Tensor, columns: Tensor, scores: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Softmax of the scores in each row, and the mean of `values` over each row's entries by it."""
        scores, values = scores.contiguous(), values.contiguous()
        weights, out = torch.empty_like(scores), values.new_empty(len(starts) - 1, values.shape[1])
        channels = values.shape[1]
        self._call("attend", starts, channels, starts, columns, scores, values, channels, weights, out)
        return weights, out

    def attend_backward(
        self, starts: Tensor, columns: Tensor, weights: Tensor, values: Tensor, out: Tensor, gradient: Tensor
    ) -> Tensor:
        """The gradient of `attend`'s scores."""
        grad, channels = torch.empty_like(weights), values.shape[1]
        given = (starts, columns, weights, values.contiguous(), out, gradient.contiguous())
        self._call("attend_backward", starts, channels, *given, channels, grad)
        return grad

    def additive_scores(
        self, starts: Tensor, columns: Tensor, left: Tensor, right: Tensor, attention: Tensor, slope: float
    ) -> Tensor:
        """GATv2's score of each entry: attention . leaky_relu(left[column] + right[row])."""
        scores, channels = left.new_empty(len(columns)), left.shape[1]
        given = (starts, columns, left.contiguous(), right.contiguous(), attention.contiguous())
        self._call("additive_scores", starts, channels, *given, self._number(slope), channels, scores)
        return scores

    def additive_scores_backward(
        self,
        starts: Tensor,
        columns: Tensor,
        transposed: tuple[Tensor, Tensor, Tensor],
        left: Tensor,
        right: Tensor,
        attention: Tensor,
        slope: float,
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of `left`, `right` and `attention`, from that of the scores.

        `transposed`: `starts` and `columns` of the transposed matrix, and the indices of its entries.
        """
        channels, gradient = left.shape[1], gradient.contiguous()
        tensors = (left.contiguous(), right.contiguous(), attention.contiguous(), self._number(slope))
        grad_left, grad_right = torch.empty_like(tensors[0]), torch.empty_like(tensors[1])
        bounds = self._bounds(starts, channels)
        partial = attention.new_empty(len(bounds) - 1, channels)
        given = (starts, columns, *tensors, channels, gradient, grad_right)
        self._call("additive_scores_backward_rows", starts, channels, *given, per_share=partial)
        given = (*transposed, *tensors, channels, gradient, grad_left)
        self._call("additive_scores_backward_columns", transposed[0], channels, *given)
        return grad_left, grad_right, partial.sum(dim=0)

    def relu_dropout(self, x: Tensor, draws: Tensor, threshold: int, scale: float, out: Tensor) -> Tensor:
        """relu(x) * scale where draws, int16, are at least `threshold`, else 0; `out` may be x."""
        self._elementwise("relu_dropout", x, draws, threshold, self._number(scale), out)
        return out

    def relu_dropout_backward(self, gradient: Tensor, out: Tensor, scale: float) -> Tensor:
        """The gradient of `relu_dropout`'s x: gradient * scale where `out` is positive, else 0."""
        gradient = gradient.contiguous()
        grad = torch.empty_like(out)
        self._elementwise("relu_dropout_backward", gradient, out, self._number(scale), grad)
        return grad

    def _elementwise(self, name: str, *arguments: object) -> None:
        self._run(name, c_code.equal_shares(arguments[0].numel(), _SMALLEST_SHARE), arguments)

    def _call(
        self, name: str, starts: Tensor, channels: int, *arguments: object, per_share: Tensor | None = None
    ) -> None:
        self._run(name, self._bounds(starts, channels), arguments, per_share)

    @staticmethod
    def _bounds(starts: Tensor, channels: int) -> list[int]:
        """Rows of parts with about as many entries each, one for each thread."""
        rows, entries = len(starts) - 1, int(starts[-1])
        shares = c_code.equal_shares(entries * channels, _SMALLEST_SHARE)
        if len(shares) == 2:
            return [0, rows]
        ends = torch.tensor([share // channels for share in shares[1:-1]])
        return [0, *torch.searchsorted(starts, ends).tolist(), rows]

    def _run(
        self, name: str, bounds: list[int], arguments: tuple[object, ...], per_share: Tensor | None = None
    ) -> None:
        function = getattr(self._library, name)
        given = [_argument(value) for value in arguments]

        def call(number: int, first: int, last: int) -> None:
            own = [] if per_share is None else [_argument(per_share[number])]
            function(c_int64(first), c_int64(last), *given, *own)

        c_code.in_threads(call, bounds)


def _argument(value: object) -> object:
    """The value as C takes it: the address of a tensor, 0 for None, a 64-bit integer."""
    if isinstance(value, Tensor):
        return c_void_p(value.data_ptr())
    return c_void_p() if value is None else c_int64(value) if isinstance(value, int) else value
