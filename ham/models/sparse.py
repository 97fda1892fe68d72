"""Products of constant sparse matrices with dense ones; the backward pass is one more product."""

from __future__ import annotations

import warnings
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from .graph_kernels import Pattern, for_tensors


class Csr:
    """A constant sparse matrix [rows, columns] in CSR format; repeated entries add up.

    Args:
        row_starts: int64 [rows + 1]; row i has the entries row_starts[i] to row_starts[i + 1] - 1.
        columns: int64 [entries], the column of each entry.
        values: [entries].
        width: number of columns.
        transpose: the transposed matrix, for the backward pass; computed from the others if not given.
    """

    def __init__(
        self, row_starts: Tensor, columns: Tensor, values: Tensor, width: int, transpose: Csr | None = None
    ) -> None:
        self.row_starts, self.columns, self.values = row_starts, columns, values
        self.shape, self.transpose = (len(row_starts) - 1, width), transpose

    @classmethod
    def from_entries(cls, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Csr:
        """Build from entries in any order."""
        order = (rows * shape[1] + columns).argsort(stable=True)
        return cls(starts(rows, shape[0]), columns[order], values[order], shape[1])

    def to(self, device: torch.device) -> Csr:
        """This matrix on a device; the copy does not wait for it."""
        tensors = (to_device(t, device) for t in (self.row_starts, self.columns, self.values))
        return Csr(*tensors, self.shape[1], self.transpose and self.transpose.to(device))

    @cached_property
    def rows(self) -> Tensor:
        """Row of each entry."""
        counts = self.row_starts.diff()
        return torch.arange(self.shape[0], device=counts.device).repeat_interleave(counts)

    @cached_property
    def by_column(self) -> Tensor:
        """Indices of the entries in the order of the transposed matrix."""
        return self.columns.argsort(stable=True)

    @cached_property
    def column_starts(self) -> Tensor:
        """`row_starts` of the transposed matrix."""
        return starts(self.columns, self.shape[1])

    @cached_property
    def rows_by_column(self) -> Tensor:
        """`columns` of the transposed matrix."""
        return self.rows[self.by_column]

    @cached_property
    def pattern(self) -> Pattern:
        """Where the entries are, for C code."""
        return Pattern(self.row_starts.long().contiguous(), self.columns.long().contiguous(), self.shape[1])

    @cached_property
    def transposed_pattern(self) -> Pattern:
        """`pattern` of the transposed matrix; its entries are those of `by_column`."""
        return Pattern(self.column_starts, self.rows_by_column, self.shape[0])

    def tensor(self, values: Tensor | None = None) -> Tensor:
        """A CSR tensor of torch, optionally with other values."""
        values = self.values if values is None else values
        return _csr(self.row_starts, self.columns, values, self.shape)

    def transposed(self, values: Tensor | None = None) -> Tensor:
        """A CSR tensor of the transposed matrix, optionally with other values in the order of `values`."""
        values = (self.values if values is None else values)[self.by_column]
        size = (self.shape[1], self.shape[0])
        return _csr(self.column_starts, self.rows_by_column, values, size)

    @cached_property
    def _tensor(self) -> Tensor:
        return self.tensor()

    @cached_property
    def _transposed_tensor(self) -> Tensor:
        return self.transposed()

    def head(self, rows: int, width: int | None = None) -> Csr:
        """The first rows; with `width`, also only the first columns, which must contain all their entries."""
        key = (rows, width or self.shape[1])
        if key == self.shape:
            return self
        if key not in self._head_cache:
            end = int(self.row_starts[rows])
            self._head_cache[key] = Csr(
                self.row_starts[: rows + 1], self.columns[:end], self.values[:end], key[1]
            )
        return self._head_cache[key]

    def select(self, rows: Tensor) -> Csr:
        """The matrix of these rows, int64 [n], in this order."""
        counts = self.row_starts.diff()[rows]
        ends = counts.cumsum(0)
        row_starts = torch.cat([ends.new_zeros(1), ends])
        offsets = (self.row_starts[rows] - row_starts[:-1]).repeat_interleave(counts)
        entries = offsets + torch.arange(int(counts.sum()), device=rows.device)
        return Csr(row_starts, self.columns[entries], self.values[entries], self.shape[1])

    @cached_property
    def _head_cache(self) -> dict[tuple[int, int], Csr]:
        return {}

    def times(self, dense: Tensor, values: Tensor | None = None) -> Tensor:
        """The product with a dense matrix, optionally with other values; for the passes of a Function."""
        given = self.values if values is None else values
        if code := for_tensors(dense, given):
            return code.multiply(self.pattern, given, None, dense)
        return _multiply(self._tensor if values is None else self.tensor(values), dense)

    def transposed_times(self, dense: Tensor, values: Tensor | None = None) -> Tensor:
        """The product of the transposed matrix with a dense one, as `times`."""
        if values is None and self.transpose:
            return self.transpose.times(dense)
        given = self.values if values is None else values
        if code := for_tensors(dense, given):
            return code.multiply(self.transposed_pattern, given, self.by_column, dense)
        return _multiply(self._transposed_tensor if values is None else self.transposed(values), dense)

    def __matmul__(self, dense: Tensor) -> Tensor:
        """[rows, columns] @ [columns, channels] -> [rows, channels]; differentiable in `dense`."""
        return _Product.apply(dense, self)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for, from pinned memory; itself if it is there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def starts(rows: Tensor, count: int) -> Tensor:
    """Index of the first entry of each of `count` rows in row order: int64 [count + 1]."""
    ends = torch.bincount(rows, minlength=count).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends])


def _csr(row_starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    _silence_beta_warning()
    return torch.sparse_csr_tensor(row_starts, columns, values, size, check_invariants=False)


@cache
def _silence_beta_warning() -> None:
    """Torch warns once per process that CSR tensors are in beta: trigger the warning here, unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


def _multiply(matrix: Tensor, dense: Tensor) -> Tensor:
    """A CSR tensor times a dense one; torch's own CPU kernel is up to eight times as fast as MKL's."""
    if dense.device.type != "cpu":
        return matrix @ dense
    return torch.sparse.mm(matrix, dense.contiguous(), "sum")


class _Product(torch.autograd.Function):
    """d(A x) = A dx, so the gradient with respect to x is A^T g."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, csr: Csr) -> Tensor:
        ctx.csr = csr
        return csr.times(dense)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.csr.transposed_times(gradient), None
