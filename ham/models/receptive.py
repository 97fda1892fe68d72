"""The receptive field: the part of a graph that the outputs at some nodes depend on, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse import Csr, starts

_SPARSE_DENSITY = 0.2  # features with a smaller density are stored as a sparse matrix


class Block:
    """The edges of one layer (DGL's message flow graph). The first sources are the targets.

    Args:
        operator: weights of the edges [targets, sources], from `edge_weights`.
        constant: dense inputs without gradient; `gather` of them is computed once and cached.
    """

    def __init__(self, operator: Csr, constant: Tensor | None = None) -> None:
        self.operator, self.constant = operator, constant
        self._gathered: Tensor | None = None

    @property
    def num_targets(self) -> int:
        """Number of nodes that this layer computes outputs for."""
        return self.operator.shape[0]

    def gather(self, x: Tensor) -> Tensor:
        """Product operator @ x: [sources, channels] -> [targets, channels]."""
        if x is not self.constant:
            return self.operator @ x
        if self._gathered is None:
            self._gathered = self.operator @ x
        return self._gathered


class Subgraph:
    """Inputs and blocks of a network that computes outputs for some nodes only.

    Nodes that the outputs do not depend on are left out. The outputs are the same, except with BatchNorm in
    training, whose statistics are over all nodes: that needs `full_graph`.

    Args:
        features: float [nodes, channels], optionally converted by `inputs`.
        edges: int64 [2, edges], sources and targets.
        weights: weights of the edges, from `edge_weights`.
        output_nodes: int64 indices of the nodes, distinct, in the order of the outputs.
        layers: number of layers of the network.
        full_graph: every layer computes all nodes; `output_nodes` come first.

    Attributes:
        features: features of the input nodes.
        blocks: one per layer.
        num_outputs: number of output nodes.
    """

    def __init__(
        self,
        features: Tensor | Csr,
        edges: Tensor,
        weights: Tensor,
        output_nodes: Tensor,
        layers: int,
        *,
        full_graph: bool,
    ) -> None:
        nodes, sizes = _closure(edges, output_nodes, layers, features.shape[0], full_graph=full_graph)
        self.num_outputs = len(output_nodes)
        position = torch.full((features.shape[0],), len(nodes), device=edges.device)
        position[nodes] = torch.arange(len(nodes), device=edges.device)
        sources, targets = position[edges[0]], position[edges[1]]
        inside = targets < sizes[1]
        operator = Csr.from_entries(targets[inside], sources[inside], weights[inside], (sizes[1], sizes[0]))
        features = inputs(features)
        is_sparse = isinstance(features, Csr)
        self.features = features.select(nodes) if is_sparse else features[nodes]
        shared: dict[tuple[int, int], Block] = {}  # full-graph layers have equal blocks
        self.blocks = [Block(operator.head(sizes[1], sizes[0]), None if is_sparse else self.features)]
        for size in zip(sizes[2:], sizes[1:-1], strict=True):
            self.blocks.append(shared.setdefault(size, Block(operator.head(*size))))


def _closure(
    edges: Tensor, output_nodes: Tensor, layers: int, count: int, *, full_graph: bool
) -> tuple[Tensor, list[int]]:
    """Nodes, `output_nodes` first, then by distance; the number of inputs of each layer, and of outputs."""
    visited = torch.zeros(count, dtype=torch.bool, device=edges.device)
    visited[output_nodes] = True
    if full_graph:
        nodes = torch.cat([output_nodes, (~visited).nonzero().flatten()])
        return nodes, [count] * (layers + 1)
    nodes, sizes = [output_nodes], [len(output_nodes)]
    for _ in range(layers):
        neighbors = torch.zeros_like(visited)
        neighbors[edges[0][visited[edges[1]]]] = True
        frontier = (neighbors & ~visited).nonzero().flatten()
        visited |= neighbors
        nodes.append(frontier)
        sizes.append(sizes[-1] + len(frontier))
    return torch.cat(nodes), sizes[::-1]


def inputs(features: Tensor | Csr) -> Tensor | Csr:
    """Features in the format of the first layer: a sparse matrix if few of them are nonzero."""
    if isinstance(features, Csr) or (features != 0).float().mean() >= _SPARSE_DENSITY:
        return features
    return sparse(features)


def edge_weights(kind: str, edges: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The edges that a kind of convolution uses, and their weights.

    gcn: D^-1/2 (A + I) D^-1/2 with in-degrees, one self-loop per node (Kipf & Welling, 2017). sage: the mean
    over a node's sources (Hamilton et al., 2017). gat: 1, as attention computes its own weights.

    Args:
        kind: gcn, sage or gat.
        edges: int64 [2, edges], sources and targets.
        count: number of nodes.
        dtype: dtype of the weights.
    """
    if kind == "gcn":
        loops = torch.arange(count, device=edges.device)
        edges = torch.cat([edges[:, edges[0] != edges[1]], torch.stack([loops, loops])], dim=1)
    degree = torch.bincount(edges[1], minlength=count).to(dtype)
    if kind == "gcn":
        return edges, (degree[edges[0]] * degree[edges[1]]).rsqrt()
    return edges, degree[edges[1]].reciprocal() if kind == "sage" else degree.new_ones(edges.shape[1])


def sparse(dense: Tensor) -> Csr:
    """Convert a dense matrix to a sparse one."""
    rows, columns = dense.nonzero(as_tuple=True)
    return Csr(starts(rows, len(dense)), columns, dense[rows, columns], dense.shape[1])
