"""Graph convolutions, and linear layers and dropout for dense or sparse node features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .attention import additive_scores, attend
from .graph_kernels import for_tensors
from .receptive import Block
from .sparse import Csr

_SLOPE = 0.2  # of leaky_relu in attention
_LEVELS = 1 << 16  # dropout probabilities are rounded to multiples of 1 / 65536


class GCNConv(nn.Module):
    """D^-1/2 (A + I) D^-1/2 x W + b (Kipf & Welling, 2017)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight, self.bias = _glorot(width, hidden), nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor | Csr, block: Block, skip: SparseLinear | None = None) -> Tensor:
        """[sources, width] -> [targets, hidden]; with `skip`, its map of the targets' inputs is added."""
        bias = self.bias if skip is None else self.bias + skip.bias
        if isinstance(x, Csr):
            z = block.operator @ (x @ self.weight) + bias
        else:
            z = torch.addmm(bias, block.gather(x), self.weight)
        return z if skip is None else _add_times(z, x, skip.weight)


class SAGEConv(nn.Module):
    """mean over the sources of x W_l + b + x W_r (Hamilton et al., 2017)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.left, self.right = SparseLinear(width, hidden), _uniform(width, hidden)

    def forward(self, x: Tensor | Csr, block: Block, skip: SparseLinear | None = None) -> Tensor:
        """[sources, width] -> [targets, hidden]; with `skip`, its map of the targets' inputs is added.

        Both W_r and the skip's weight multiply a target's input: it is multiplied by their sum.
        """
        right, bias = self.right, self.left.bias
        if skip is not None:
            right, bias = right + skip.weight, bias + skip.bias
        if isinstance(x, Csr):
            z = block.operator @ (x @ self.left.weight) + bias
        else:
            z = torch.addmm(bias, block.gather(x), self.left.weight)
        return _add_times(z, x, right)


class GATConv(nn.Module):
    """Attention a_l . x_j W + a_r . x_i W under leaky_relu (Velickovic et al., 2018); one head, no bias."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight = _glorot(width, hidden)
        self.att_source, self.att_target = _glorot(1, hidden), _glorot(1, hidden)

    def forward(self, x: Tensor | Csr, block: Block, skip: SparseLinear | None = None) -> Tensor:
        """[sources, width] -> [targets, hidden]; with `skip`, its map of the targets' inputs is added."""
        values, edges = x @ self.weight, block.operator
        source_scores = (values @ self.att_source.t()).flatten()
        target_scores = (head(values, block.num_targets) @ self.att_target.t()).flatten()
        scores = source_scores[edges.columns] + target_scores[edges.rows]
        z = attend(values, nn.functional.leaky_relu(scores, _SLOPE), edges)
        return z if skip is None else _add_times(z + skip.bias, x, skip.weight)


class GATv2Conv(nn.Module):
    """Attention a . leaky_relu(x_j W_l + x_i W_r) over x_j W_l (Brody et al., 2022); one head, no bias."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.left, self.right = _glorot(width, hidden), _glorot(width, hidden)
        self.att = _glorot(1, hidden)

    def forward(self, x: Tensor | Csr, block: Block, skip: SparseLinear | None = None) -> Tensor:
        """[sources, width] -> [targets, hidden]; with `skip`, its map of the targets' inputs is added."""
        left, right = x @ self.left, _times(x, self.right, block.num_targets)
        scores = additive_scores(left, right, self.att[0], block.operator, _SLOPE)
        z = attend(left, scores, block.operator)
        return z if skip is None else _add_times(z + skip.bias, x, skip.weight)


class SparseLinear(nn.Module):
    """x W + b for dense or sparse x, with W [width, hidden] and the initialization of nn.Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight, self.bias = (
            _uniform(width, hidden),
            nn.Parameter(torch.empty(hidden).uniform_(-bound, bound)),
        )

    def forward(self, x: Tensor | Csr) -> Tensor:
        """[n, width] -> [n, hidden]."""
        if isinstance(x, Csr):
            return x @ self.weight + self.bias
        return torch.addmm(self.bias, x, self.weight)


def _add_times(z: Tensor, x: Tensor | Csr, weight: Tensor) -> Tensor:
    """The sum of z and the product of x's first rows, as many as z has, with a weight; z is overwritten."""
    x = head(x, len(z))
    if isinstance(x, Csr):
        return z + x @ weight
    if torch.is_autocast_enabled(z.device.type):  # operations in place do not take part in it
        return torch.addmm(z, x, weight)
    return z.addmm_(x, weight)


def _times(x: Tensor | Csr, weight: Tensor, rows: int | None) -> Tensor:
    return head(x, rows) @ weight


def head(x: Tensor | Csr, rows: int | None) -> Tensor | Csr:
    """The first rows; x itself if these are all, as the backward pass of a slice copies the gradient."""
    if rows is None or rows == x.shape[0]:
        return x
    return x.head(rows) if isinstance(x, Csr) else x[:rows]


def _glorot(width: int, hidden: int) -> nn.Parameter:
    bound = math.sqrt(6 / (width + hidden))
    return nn.Parameter(torch.empty(width, hidden).uniform_(-bound, bound))


def _uniform(width: int, hidden: int) -> nn.Parameter:
    bound = 1 / math.sqrt(width)  # kaiming_uniform with a = sqrt(5), as nn.Linear and PyG's SAGEConv
    return nn.Parameter(torch.empty(width, hidden).uniform_(-bound, bound))


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Inverted dropout with four draws per 64-bit random number; torch's own dropout is slower on a CPU."""
    return _Dropout.apply(x, probability) if training and probability > 0 else x


def relu_dropout(x: Tensor, probability: float, training: bool, *, inplace: bool = False) -> Tensor:
    """`dropout` of relu(x), in fewer passes over memory; `inplace` where nothing else needs x."""
    if not training or probability == 0:
        return torch.relu_(x) if inplace else torch.relu(x)
    if x.dtype not in (torch.float32, torch.float64):  # others cannot hold a draw exactly
        return dropout(torch.relu(x), probability, training)
    return _ReluDropout.apply(x, probability, inplace)


def _draws(x: Tensor, probability: float) -> tuple[Tensor, int, float]:
    """A random int16 per element of x, the smallest one that keeps it, and the factor that keeps the mean."""
    random_words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    draws = random_words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
    dropped = round(probability * _LEVELS)
    return draws, dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        draws, threshold, scale = _draws(x, probability)
        factors = (draws >= threshold).to(x.dtype).mul_(scale)
        ctx.save_for_backward(factors)
        return x * factors

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors
        return gradient * factors, None


class _ReluDropout(torch.autograd.Function):
    """An output is positive where its input is and was kept, so that the output itself is the mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float, inplace: bool) -> Tensor:
        draws, threshold, ctx.scale = _draws(x, probability)
        if (code := for_tensors(x)) and x.is_contiguous():
            if inplace:
                ctx.mark_dirty(x)
            out = code.relu_dropout(x, draws, threshold, ctx.scale, x if inplace else torch.empty_like(x))
            ctx.save_for_backward(out)
            return out
        out = _where_above(x, draws.to(x.dtype), threshold - 0.5).clamp_min_(0).mul_(ctx.scale)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (out,) = ctx.saved_tensors
        if code := for_tensors(gradient, out):
            return code.relu_dropout_backward(gradient, out, ctx.scale), None, None
        return _where_above(gradient, out, 0).mul_(ctx.scale), None, None


def _where_above(x: Tensor, values: Tensor, threshold: float) -> Tensor:
    """Keep x where values > threshold, else 0, in one pass; torch names it by its use in relu's gradient."""
    return torch.ops.aten.threshold_backward(x, values, threshold)
