"""Attention over the edges of a graph, without tensors of the size edges x channels that outlive a moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .sparse import Csr, multiply

_BLOCK = 1 << 19  # elements of edges x channels at once; 2 MiB in float32 stay in a core's cache


def attend(values: Tensor, scores: Tensor, edges: Csr) -> Tensor:
    """Row i of the result is the mean of `values` over i's sources, weighted by the softmax of `scores`.

    Args:
        values: [sources, channels].
        scores: [edges], one per entry of `edges`.
        edges: [targets, sources]; its own values are not used. A target without edges gets 0.
    """
    return _Attend.apply(values, scores, edges)


def additive_scores(left: Tensor, right: Tensor, attention: Tensor, edges: Csr, slope: float) -> Tensor:
    """GATv2's score of every edge j -> i: attention . leaky_relu(left[j] + right[i]).

    Args:
        left: [sources, channels].
        right: [targets, channels].
        attention: [channels].
        edges: [targets, sources].
        slope: of leaky_relu below zero.
    """
    return _AdditiveScores.apply(left, right, attention, edges, slope)


class _Attend(torch.autograd.Function):
    """Softmax and sum in one; the softmax's backward pass needs sum_e w_e dw_e, which is g . out per row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scores: Tensor, edges: Csr) -> Tensor:
        rows, count = edges.rows, edges.shape[0]
        top = scores.new_full((count,), -torch.inf).scatter_reduce_(0, rows, scores, "amax")
        weights = (scores - top[rows]).exp_()
        weights /= scores.new_zeros(count).scatter_add_(0, rows, weights)[rows]
        out = multiply(edges.tensor(weights), values)
        ctx.edges = edges
        ctx.save_for_backward(values, weights, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, weights, out = ctx.saved_tensors
        edges, gradient = ctx.edges, gradient.contiguous()
        of_values = multiply(edges.transposed(weights), gradient)
        dots = torch.sparse.sampled_addmm(
            edges.tensor(torch.zeros_like(weights)), gradient, values.t(), beta=0.0
        )
        of_scores = weights * (dots.values() - (gradient * out).sum(dim=1)[edges.rows])
        return of_values, of_scores, None


class _AdditiveScores(torch.autograd.Function):
    """With leaky_relu(t) = s t + (1 - s) relu(t) the linear part needs no tensor of the edges' size."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, attention: Tensor, edges: Csr, slope: float) -> Tensor:
        scores = slope * ((left @ attention)[edges.columns] + (right @ attention)[edges.rows])
        for part, sums in _sums(left, right, edges):
            scores[part] += (1 - slope) * (torch.mv(sums.clamp_(min=0), attention))
        ctx.edges, ctx.slope = edges, slope
        ctx.save_for_backward(left, right, attention)
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        left, right, attention = ctx.saved_tensors
        edges, slope = ctx.edges, ctx.slope
        to_left = gradient.new_zeros(len(left)).index_add_(0, edges.columns, gradient)
        to_right = gradient.new_zeros(len(right)).index_add_(0, edges.rows, gradient)
        of_attention = slope * (to_left @ left + to_right @ right)
        above_left, above_right = torch.zeros_like(left), torch.zeros_like(right)
        for part, sums in _sums(left, right, edges):
            g = gradient[part]
            of_attention += (1 - slope) * torch.mv(sums.clamp_(min=0).t(), g)
            above = sums.sign_().mul_(g[:, None])
            above_left.index_add_(0, edges.columns[part], above)
            above_right.index_add_(0, edges.rows[part], above)
        of_left, of_right = (
            above.mul_((1 - slope) * attention).addr_(count, attention, alpha=slope)
            for above, count in ((above_left, to_left), (above_right, to_right))
        )
        return of_left, of_right, of_attention, None, None


def _sums(left: Tensor, right: Tensor, edges: Csr) -> Iterator[tuple[slice, Tensor]]:
    """left[source] + right[target], a block of edges at a time; the reader may write into a block."""
    size = max(_BLOCK // left.shape[1], 1)
    for begin in range(0, len(edges.columns), size):
        part = slice(begin, begin + size)
        yield part, left.index_select(0, edges.columns[part]).add_(right.index_select(0, edges.rows[part]))
