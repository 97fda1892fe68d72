"""GCN, GraphSAGE and GAT for node classification, in the form of the paper's code base (tunedGNN)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from .attention import additive_scores, attend
from .base import Model
from .receptive import Hop, View
from .sparse import Csr

_SLOPE = 0.2  # of leaky_relu in attention
_LEVELS = 1 << 16  # a dropout probability is a multiple of 1 / 65536


class Conv(StrEnum):
    """Kinds of graph convolution."""

    gcn = "gcn"
    sage = "sage"
    gat = "gat"


class Attention(StrEnum):
    """Velickovic et al. (2018), or Brody et al. (2022)."""

    v1 = "v1"
    v2 = "v2"


class Norm(StrEnum):
    """What follows a convolution."""

    none = "none"
    layer = "layer"
    batch = "batch"


@dataclass
class GNN(Model):
    """Convolution [+ linear skip], norm, ReLU, dropout, `layers` times; then a linear classifier.

    Args:
        conv: kind of convolution.
        attention: version of GAT.
        hidden: channels.
        layers: convolutions.
        dropout: share of hidden values that are dropped.
        norm: after each convolution.
        residual: a linear map of a layer's input is added to its convolution.
        pre_linear: a linear map and dropout stand before the first convolution.
    """

    conv: Conv = Conv.gcn
    attention: Attention = Attention.v2
    hidden: int = 512
    layers: int = 2
    dropout: float = 0.5
    norm: Norm = Norm.none
    residual: bool = False
    pre_linear: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on impossible sizes."""
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(
                f"model.hidden and model.layers must be positive, got {self.hidden}, {self.layers}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout:g}")

    def check(self, image_size: int) -> None:
        """Raise ValueError on images."""
        if image_size:
            raise ValueError(
                "model=gnn reads graphs and no images: take an experiment of python train.py --list"
            )

    def build(self, *, num_classes: int, image_size: int = 0, num_features: int = 0) -> nn.Module:
        """A fresh network: `View` -> logits [wanted nodes, num_classes]."""
        return Network(self, num_features, num_classes)


class Network(nn.Module):
    """See `GNN`. `convs` is what HAM acts on (App. G.6.2).

    Args:
        spec: sizes.
        num_features: channels of the inputs.
        num_classes: of the labels.
    """

    def __init__(self, spec: GNN, num_features: int, num_classes: int) -> None:
        super().__init__()
        widths = [spec.hidden if spec.pre_linear else num_features, *[spec.hidden] * (spec.layers - 1)]
        norm = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}[spec.norm]
        self.dropout = spec.dropout
        self.first = Projection(num_features, spec.hidden) if spec.pre_linear else None
        self.convs = nn.ModuleList(convolution(spec, width) for width in widths)
        self.skips = nn.ModuleList(Projection(width, spec.hidden) for width in widths if spec.residual)
        self.norms = nn.ModuleList(norm(spec.hidden) for _ in widths)
        self.classifier = nn.Linear(spec.hidden, num_classes)

    def forward(self, view: View) -> Tensor:
        """Logits of the view's wanted nodes."""
        x = view.features
        if self.first is not None:
            x = drop(self.first(x), self.dropout, self.training)
        for number, (conv, norm, hop) in enumerate(zip(self.convs, self.norms, view.hops, strict=True)):
            z = conv(x, hop)
            if self.skips:
                z = z + self.skips[number](x, hop.targets)
            x = drop(torch.relu(norm(z)), self.dropout, self.training)
        return self.classifier(x[: view.wanted])


def convolution(spec: GNN, width: int) -> nn.Module:
    """One layer, `width` -> `spec.hidden` channels."""
    if spec.conv is Conv.gcn:
        return GCNConv(width, spec.hidden)
    if spec.conv is Conv.sage:
        return SAGEConv(width, spec.hidden)
    return (GATConv if spec.attention is Attention.v1 else GATv2Conv)(width, spec.hidden)


class GCNConv(nn.Module):
    """D^-1/2 (A + I) D^-1/2 x W + b (Kipf & Welling, 2017)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight, self.bias = _glorot(width, hidden), nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor | Csr, hop: Hop) -> Tensor:
        """[sources, width] -> [targets, hidden]."""
        if isinstance(x, Csr):
            return hop.operator @ (x @ self.weight) + self.bias
        return torch.addmm(self.bias, hop.gather(x), self.weight)


class SAGEConv(nn.Module):
    """mean over the sources of x W_l + b + x W_r (Hamilton et al., 2017)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.left, self.right = Projection(width, hidden), _uniform(width, hidden)

    def forward(self, x: Tensor | Csr, hop: Hop) -> Tensor:
        """[sources, width] -> [targets, hidden]."""
        own = _times(x, self.right, hop.targets)
        if isinstance(x, Csr):
            return hop.operator @ (x @ self.left.weight) + self.left.bias + own
        return self.left(hop.gather(x)) + own


class GATConv(nn.Module):
    """Attention a_l . x_j W + a_r . x_i W under leaky_relu (Velickovic et al., 2018); one head, no bias."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight = _glorot(width, hidden)
        self.att_source, self.att_target = _glorot(1, hidden), _glorot(1, hidden)

    def forward(self, x: Tensor | Csr, hop: Hop) -> Tensor:
        """[sources, width] -> [targets, hidden]."""
        values, edges = x @ self.weight, hop.operator
        of_source = (values @ self.att_source.t()).flatten()
        of_target = (values[: hop.targets] @ self.att_target.t()).flatten()
        scores = of_source[edges.columns] + of_target[edges.rows]
        return attend(values, nn.functional.leaky_relu(scores, _SLOPE), edges)


class GATv2Conv(nn.Module):
    """Attention a . leaky_relu(x_j W_l + x_i W_r) over x_j W_l (Brody et al., 2022); one head, no bias."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.left, self.right = _glorot(width, hidden), _glorot(width, hidden)
        self.att = _glorot(1, hidden)

    def forward(self, x: Tensor | Csr, hop: Hop) -> Tensor:
        """[sources, width] -> [targets, hidden]."""
        left, right = x @ self.left, _times(x, self.right, hop.targets)
        return attend(left, additive_scores(left, right, self.att[0], hop.operator, _SLOPE), hop.operator)


class Projection(nn.Module):
    """x W + b of dense or sparse x, W [width, hidden]; initial values are those of nn.Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight, self.bias = (
            _uniform(width, hidden),
            nn.Parameter(torch.empty(hidden).uniform_(-bound, bound)),
        )

    def forward(self, x: Tensor | Csr, rows: int | None = None) -> Tensor:
        """Of the first rows of x."""
        if isinstance(x, Csr):
            return _times(x, self.weight, rows) + self.bias
        return torch.addmm(self.bias, x if rows is None else x[:rows], self.weight)


def _times(x: Tensor | Csr, weight: Tensor, rows: int | None) -> Tensor:
    if rows is None:
        return x @ weight
    return (x.head(rows) if isinstance(x, Csr) else x[:rows]) @ weight


def _glorot(width: int, hidden: int) -> nn.Parameter:
    bound = math.sqrt(6 / (width + hidden))
    return nn.Parameter(torch.empty(width, hidden).uniform_(-bound, bound))


def _uniform(width: int, hidden: int) -> nn.Parameter:
    bound = 1 / math.sqrt(width)  # kaiming_uniform with a = sqrt(5), as nn.Linear and PyG's SAGEConv
    return nn.Parameter(torch.empty(width, hidden).uniform_(-bound, bound))


def drop(x: Tensor, probability: float, training: bool) -> Tensor:
    """Inverted dropout of nonnegative or any values; four draws per random word, as torch's own is slow."""
    return _Drop.apply(x, probability) if training and probability > 0 else x


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        draws = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
        dropped = round(probability * _LEVELS)
        kept = draws >= dropped - _LEVELS // 2
        ctx.scale = _LEVELS / (_LEVELS - dropped)
        ctx.save_for_backward(kept)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None
