"""Attention over the edges of a graph that stores no tensor of size edges x channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .graph_kernels import for_tensors
from .sparse import Csr

_CHUNK = 1 << 16  # elements of edges x channels at a time: 256 KiB in float32 fit into a core's cache
_LARGE_CHUNK = 1 << 22  # on other devices, where each chunk costs launches


def attend(values: Tensor, scores: Tensor, edges: Csr) -> Tensor:
    """Row i of the result is the mean of `values` over the sources of i, weighted by softmax(`scores`).

    Args:
        values: [sources, channels].
        scores: [edges], one per stored entry of `edges`.
        edges: [targets, sources]; its values are ignored. The result of a target without edges is 0.

    Returns:
        [targets, channels].
    """
    return _Attend.apply(values, scores, edges)


def additive_scores(left: Tensor, right: Tensor, attention: Tensor, edges: Csr, slope: float) -> Tensor:
    """GATv2's scores of the edges j -> i: attention . leaky_relu(left[j] + right[i]) (Brody et al., 2022).

    Args:
        left: [sources, channels].
        right: [targets, channels].
        attention: [channels].
        edges: [targets, sources].
        slope: slope of leaky_relu below zero.

    Returns:
        [edges].
    """
    return _AdditiveScores.apply(left, right, attention, edges, slope)


class _Attend(torch.autograd.Function):
    """Softmax and weighted sum; the softmax's backward needs sum_e w_e dw_e, which is g . out per row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scores: Tensor, edges: Csr) -> Tensor:
        ctx.edges = edges
        if code := for_tensors(values, scores):
            weights, out = code.attend(edges.pattern, scores, values)
            ctx.save_for_backward(values, weights, out)
            return out
        rows, count = edges.rows, edges.shape[0]
        row_max = scores.new_full((count,), -torch.inf).scatter_reduce_(0, rows, scores, "amax")
        weights = (scores - row_max[rows]).exp_()
        weights /= scores.new_zeros(count).scatter_add_(0, rows, weights)[rows]
        out = edges.times(values, weights)
        ctx.save_for_backward(values, weights, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, weights, out = ctx.saved_tensors
        edges, gradient = ctx.edges, gradient.contiguous()
        grad_values = edges.transposed_times(gradient, weights)
        if code := for_tensors(values, weights, out, gradient):
            return grad_values, code.attend_backward(edges.pattern, weights, values, out, gradient), None
        dots = torch.sparse.sampled_addmm(
            edges.tensor(torch.zeros_like(weights)), gradient, values.t(), beta=0.0
        )
        grad_scores = weights * (dots.values() - (gradient * out).sum(dim=1)[edges.rows])
        return grad_values, grad_scores, None


class _AdditiveScores(torch.autograd.Function):
    """As leaky_relu(t) = s t + (1 - s) relu(t), only the relu part needs edges x channels elements."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, attention: Tensor, edges: Csr, slope: float) -> Tensor:
        ctx.edges, ctx.slope = edges, slope
        ctx.save_for_backward(left, right, attention)
        if code := for_tensors(left, right, attention):
            return code.additive_scores(edges.pattern, left, right, attention, slope)
        scores = slope * ((left @ attention)[edges.columns] + (right @ attention)[edges.rows])
        for part, sums in _sums(left, right, edges):
            scores[part] += (1 - slope) * (torch.mv(sums.clamp_(min=0), attention))
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        left, right, attention = ctx.saved_tensors
        edges, slope = ctx.edges, ctx.slope
        if code := for_tensors(left, right, attention, gradient):
            patterns = (edges.pattern, edges.transposed_pattern, edges.by_column)
            arguments = ((left, right, attention), slope, gradient)
            return *code.additive_scores_backward(*patterns, *arguments), None, None
        sum_left = gradient.new_zeros(len(left)).index_add_(0, edges.columns, gradient)
        sum_right = gradient.new_zeros(len(right)).index_add_(0, edges.rows, gradient)
        grad_attention = slope * (sum_left @ left + sum_right @ right)
        active_left, active_right = torch.zeros_like(left), torch.zeros_like(right)
        for part, sums in _sums(left, right, edges):
            g = gradient[part]
            grad_attention += (1 - slope) * torch.mv(sums.clamp_(min=0).t(), g)
            active = sums.sign_().mul_(g[:, None])
            active_left.index_add_(0, edges.columns[part], active)
            active_right.index_add_(0, edges.rows[part], active)
        grad_left, grad_right = (
            active.mul_((1 - slope) * attention).addr_(total, attention, alpha=slope)
            for active, total in ((active_left, sum_left), (active_right, sum_right))
        )
        return grad_left, grad_right, grad_attention, None, None


def _sums(left: Tensor, right: Tensor, edges: Csr) -> Iterator[tuple[slice, Tensor]]:
    """left[source] + right[target] for a chunk of edges at a time; the caller may overwrite a chunk."""
    size = max((_CHUNK if left.device.type == "cpu" else _LARGE_CHUNK) // left.shape[1], 1)
    for begin in range(0, len(edges.columns), size):
        part = slice(begin, begin + size)
        yield part, left.index_select(0, edges.columns[part]).add_(right.index_select(0, edges.rows[part]))
