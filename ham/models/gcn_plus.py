"""GCN+ for graph classification, as in the paper's code base (GNNPlus; Luo et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Model, register
from .graph_encoders import Encoder, WalkEncoder, edge_encoder, node_encoder
from .graph_layers import dropout, relu_dropout
from .messages import Messages, sum_messages
from .sparse import Csr, to_device

POSITIONS = 5
"""Words of a function's name that are predicted in ogbg-code2."""


class Head(StrEnum):
    """How logits are computed from the mean over a graph's nodes.

    linear: one layer. normalized: a hidden layer whose activations are scaled to norm 1, then a linear layer
    (GraphGym's default head with two layers). halving: two hidden layers of 1/2 and 1/4 of the width
    (`san_graph`). positions: one layer per predicted word.
    """

    linear = "linear"
    normalized = "normalized"
    halving = "halving"
    positions = "positions"


@register("gcn_plus")
@dataclass
class GCNPlus(Model):
    """`layers` times convolution, BatchNorm, ReLU, dropout [+ input] [, feed-forward]; mean over nodes; head.

    Args:
        encoder: encoder of nodes and edges.
        hidden: number of channels.
        layers: number of convolutions.
        dropout: probability.
        residual: True to add a layer's input to its convolution's output.
        feed_forward: True to append BatchNorm, x + W2 ReLU(W1 x) with twice the channels, and BatchNorm.
        walk_channels: channels of the random-walk probabilities among `hidden`; 0 without them.
        head: see `Head`.
    """

    encoder: Encoder = Encoder.molecules
    hidden: int = 256
    layers: int = 4
    dropout: float = 0.1
    residual: bool = False
    feed_forward: bool = True
    walk_channels: int = 0
    head: Head = Head.linear

    min_batch_size: ClassVar[int] = 2  # BatchNorm needs a variance over nodes, and a graph can be one node

    def __post_init__(self) -> None:
        """Raise ValueError for impossible sizes."""
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(
                f"model.hidden and model.layers must be positive, got {self.hidden}, {self.layers}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout:g}")
        if not 0 <= self.walk_channels < self.hidden:
            raise ValueError(
                f"model.walk_channels must be in [0, model.hidden), got {self.walk_channels} of {self.hidden}"
            )
        self.encoder, self.head = Encoder(self.encoder), Head(self.head)
        if self.head is Head.halving and self.hidden < 4:
            raise ValueError(f"model.head=halving needs model.hidden of at least 4, got {self.hidden}")

    def check(self, image_size: int) -> None:
        """Raise ValueError if the data are images."""
        if image_size:
            raise ValueError(
                "model=gcn_plus reads graphs, not images: choose an experiment of python train.py --list"
            )

    def build(self, *, num_classes: int, walk_steps: int) -> nn.Module:
        """A new network: `GraphBatch` -> logits [graphs, num_classes], or [graphs, 5, num_classes] of words.

        Args:
            num_classes: outputs per graph, or per predicted word.
            walk_steps: random-walk probabilities per node.
        """
        return Network(self, num_classes, walk_steps)


@dataclass(frozen=True)
class GraphBatch:
    """Graphs that a network reads together; the nodes of a graph follow each other.

    Args:
        nodes: int64 [nodes, columns], categories.
        walks: float32 [nodes, steps], random-walk probabilities.
        edges: [kinds, columns], features of each kind of edge: int64 categories, or float32. `messages.kinds`
            are rows of it.
        messages: along the edges.
        pooling: mean over each graph's nodes, [graphs, nodes].
    """

    nodes: Tensor
    walks: Tensor
    edges: Tensor
    messages: Messages
    pooling: Csr

    def to(self, device: torch.device) -> GraphBatch:
        """This batch on a device; the copies do not wait for it."""
        nodes, walks, edges = (to_device(t, device) for t in (self.nodes, self.walks, self.edges))
        return GraphBatch(nodes, walks, edges, self.messages.to(device), self.pooling.to(device))


class Network(nn.Module):
    """The network of a `GCNPlus`. HAM acts on `convs` (App. G.6.1).

    Args:
        spec: hyperparameters.
        num_classes: number of outputs.
        walk_steps: random-walk probabilities per node.
    """

    def __init__(self, spec: GCNPlus, num_classes: int, walk_steps: int) -> None:
        super().__init__()
        width = spec.hidden
        self.nodes = node_encoder(spec.encoder, width - spec.walk_channels)
        self.walks = WalkEncoder(walk_steps, spec.walk_channels) if spec.walk_channels else None
        self.edges = edge_encoder(spec.encoder, width)
        self.convs = nn.ModuleList(EdgeConv(width) for _ in range(spec.layers))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.head = head(spec, num_classes)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Logits of the batch's graphs."""
        x = self.nodes(batch.nodes)
        if self.walks is not None:
            x = torch.cat([x, self.walks(batch.walks)], dim=1)
        edges = self.edges(batch.edges)
        for conv, block in zip(self.convs, self.blocks, strict=True):
            x = block(x, conv(x, edges, batch.messages))
        return self.head(batch.pooling @ x)


class EdgeConv(nn.Module):
    """b + sum of ReLU(W x_j + e_ij) over the edges j -> i; not divided by the degree, no self-loops."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(width, width, bias=False), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, edges: Tensor, messages: Messages) -> Tensor:
        """[nodes, width] -> [nodes, width]; `edges` are the embedded kinds, [kinds, width]."""
        return sum_messages(self.linear(x), edges, messages) + self.bias


class Block(nn.Module):
    """BatchNorm, ReLU, dropout [+ input] [, BatchNorm, x + D(W2 D(ReLU(W1 x))), BatchNorm]; D is dropout.

    Source: layer/gcn_conv_layer_e.py of GNNPlus.
    """

    def __init__(self, spec: GCNPlus) -> None:
        super().__init__()
        width, self.dropout, self.residual = spec.hidden, spec.dropout, spec.residual
        self.norm = nn.BatchNorm1d(width)
        self.feed_forward = spec.feed_forward
        if spec.feed_forward:
            self.norm_before, self.norm_after = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:
        """The layer's input and its convolution, both [nodes, width] -> [nodes, width]."""
        z = relu_dropout(self.norm(convolved), self.dropout, self.training)
        if self.residual:
            z = z + x
        if not self.feed_forward:
            return z
        z = self.norm_before(z)
        hidden = relu_dropout(self.up(z), self.dropout, self.training)
        z = z + dropout(self.down(hidden), self.dropout, self.training)
        return self.norm_after(z)


class Positions(nn.Module):
    """A linear layer per predicted word."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(POSITIONS))

    def forward(self, x: Tensor) -> Tensor:
        """[graphs, width] -> [graphs, positions, num_classes]."""
        return torch.stack([layer(x) for layer in self.layers], dim=1)


class Normalized(nn.Module):
    """Scales each row to Euclidean norm 1."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] -> [n, width]."""
        return nn.functional.normalize(x, dim=1)


def head(spec: GCNPlus, num_classes: int) -> nn.Module:
    """[graphs, hidden] -> logits."""
    width = spec.hidden
    if spec.head is Head.positions:
        return Positions(width, num_classes)
    if spec.head is Head.normalized:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), Normalized(), nn.Linear(width, num_classes))
    if spec.head is Head.halving:
        half, quarter = width // 2, width // 4
        return nn.Sequential(
            *(nn.Linear(width, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU()),
            nn.Linear(quarter, num_classes),
        )
    return nn.Linear(width, num_classes)
