"""GCN, GraphSAGE and GAT for node classification, as in the paper's code base (tunedGNN)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from .base import Model, register
from .graph_layers import (
    GATConv,
    GATv2Conv,
    GCNConv,
    SAGEConv,
    SparseLinear,
    dropout,
    head,
    relu_dropout,
)
from .receptive import Subgraph


class Conv(StrEnum):
    """Kind of graph convolution."""

    gcn = "gcn"
    sage = "sage"
    gat = "gat"


class Attention(StrEnum):
    """v1: Velickovic et al. (2018). v2: Brody et al. (2022)."""

    v1 = "v1"
    v2 = "v2"


class Norm(StrEnum):
    """Normalization after a convolution."""

    none = "none"
    layer = "layer"
    batch = "batch"


@register("gnn")
@dataclass
class GNN(Model):
    """`layers` times convolution [+ linear skip], norm, ReLU and dropout; then a linear classifier.

    Args:
        conv: kind of convolution.
        attention: version of GAT.
        hidden: number of channels.
        layers: number of convolutions.
        dropout: probability.
        norm: normalization after each convolution.
        residual: True to add a linear map of a layer's input to its convolution.
        pre_linear: True for a linear layer and dropout before the first convolution.
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
        """Raise ValueError for impossible sizes."""
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(
                f"model.hidden and model.layers must be positive, got {self.hidden}, {self.layers}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout:g}")

    def check(self, image_size: int) -> None:
        """Raise ValueError if the data are images."""
        if image_size:
            raise ValueError(
                "model=gnn reads graphs, not images: choose an experiment of python train.py --list"
            )

    def build(self, *, num_classes: int, num_features: int) -> nn.Module:
        """A new network: `Subgraph` -> logits [output nodes, num_classes]."""
        return Network(self, num_features, num_classes)


class Network(nn.Module):
    """The network of a `GNN`. HAM acts on `convs` (App. G.6.2).

    Args:
        spec: hyperparameters.
        num_features: number of features per node.
        num_classes: number of classes.
    """

    def __init__(self, spec: GNN, num_features: int, num_classes: int) -> None:
        super().__init__()
        widths = [spec.hidden if spec.pre_linear else num_features, *[spec.hidden] * (spec.layers - 1)]
        norm = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}[spec.norm]
        self.dropout = spec.dropout
        self.first = SparseLinear(num_features, spec.hidden) if spec.pre_linear else None
        self.convs = nn.ModuleList(convolution(spec, width) for width in widths)
        self.skips = nn.ModuleList(SparseLinear(width, spec.hidden) for width in widths if spec.residual)
        self.norms = nn.ModuleList(norm(spec.hidden) for _ in widths)
        self.classifier = nn.Linear(spec.hidden, num_classes)

    def forward(self, subgraph: Subgraph) -> Tensor:
        """Logits of the subgraph's output nodes."""
        x = subgraph.features
        if self.first is not None:
            x = dropout(self.first(x), self.dropout, self.training)
        for i, (conv, norm, block) in enumerate(zip(self.convs, self.norms, subgraph.blocks, strict=True)):
            z = conv(x, block, self.skips[i] if self.skips else None)
            is_new = not isinstance(norm, nn.Identity)  # the convolution may need z in its backward pass
            x = relu_dropout(norm(z), self.dropout, self.training, inplace=is_new)
        return self.classifier(head(x, subgraph.num_outputs))


def convolution(spec: GNN, width: int) -> nn.Module:
    """One layer, `width` -> `spec.hidden` channels."""
    if spec.conv is Conv.gcn:
        return GCNConv(width, spec.hidden)
    if spec.conv is Conv.sage:
        return SAGEConv(width, spec.hidden)
    return (GATConv if spec.attention is Attention.v1 else GATv2Conv)(width, spec.hidden)
