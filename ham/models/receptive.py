"""The part of a graph that the outputs at some nodes depend on, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse import Csr, starts

_SPARSE = 0.2  # features with a smaller share of nonzeros are multiplied as a sparse matrix


class Hop:
    """One layer's edges: `operator` [targets, sources]. The targets are the first of the sources.

    Args:
        operator: weights of the edges, as the layer's kind wants them.
        constant: dense inputs that no gradient flows to, whose sums over the edges are computed once.
    """

    def __init__(self, operator: Csr, constant: Tensor | None = None) -> None:
        self.operator, self.constant = operator, constant
        self._gathered: Tensor | None = None

    @property
    def targets(self) -> int:
        """How many nodes this layer has outputs for."""
        return self.operator.shape[0]

    def gather(self, x: Tensor) -> Tensor:
        """Operator @ x: [sources, channels] -> [targets, channels]."""
        if x is not self.constant:
            return self.operator @ x
        if self._gathered is None:
            self._gathered = self.operator @ x
        return self._gathered


class View:
    """Inputs and hops of a network whose last layer is asked for some nodes alone.

    What those nodes do not depend on is left out, which changes nothing, BatchNorm in training apart: its
    statistics are over all nodes (`whole`).

    Args:
        features: float [nodes, channels], perhaps as `inputs` made them.
        edges: int64 [2, edges], sources and targets.
        weights: of the edges, from `edge_weights`.
        wanted: int64 numbers of the nodes to be told, in the order of the outputs; each once.
        layers: of the network.
        whole: every layer has outputs for all nodes; those of `wanted` come first.
    """

    def __init__(
        self,
        features: Tensor | Csr,
        edges: Tensor,
        weights: Tensor,
        wanted: Tensor,
        layers: int,
        *,
        whole: bool,
    ) -> None:
        nodes, sizes = _closure(edges, wanted, layers, features.shape[0], whole=whole)
        self.wanted = len(wanted)
        place = torch.full((features.shape[0],), len(nodes), device=edges.device)
        place[nodes] = torch.arange(len(nodes), device=edges.device)
        sources, targets = place[edges[0]], place[edges[1]]
        inside = targets < sizes[1]
        operator = Csr.from_entries(targets[inside], sources[inside], weights[inside], (sizes[1], sizes[0]))
        features = inputs(features)
        few = isinstance(features, Csr)
        self.features = features.select(nodes) if few else features[nodes]
        shared: dict[tuple[int, int], Hop] = {}  # the whole graph is the same hop again and again
        self.hops = [Hop(operator.head(sizes[1], sizes[0]), None if few else self.features)]
        for size in zip(sizes[2:], sizes[1:-1], strict=True):
            self.hops.append(shared.setdefault(size, Hop(operator.head(*size))))


def _closure(
    edges: Tensor, wanted: Tensor, layers: int, count: int, *, whole: bool
) -> tuple[Tensor, list[int]]:
    """Nodes, `wanted` first, then by distance; how many are inputs of layer 1, 2, ... and outputs."""
    known = torch.zeros(count, dtype=torch.bool, device=edges.device)
    known[wanted] = True
    if whole:
        nodes = torch.cat([wanted, (~known).nonzero().flatten()])
        return nodes, [count] * (layers + 1)
    nodes, sizes = [wanted], [len(wanted)]
    for _ in range(layers):
        reached = torch.zeros_like(known)
        reached[edges[0][known[edges[1]]]] = True
        fresh = (reached & ~known).nonzero().flatten()
        known |= reached
        nodes.append(fresh)
        sizes.append(sizes[-1] + len(fresh))
    return torch.cat(nodes), sizes[::-1]


def inputs(features: Tensor | Csr) -> Tensor | Csr:
    """Features as the first layer wants them: sparse where few of them are not zero."""
    if isinstance(features, Csr) or (features != 0).float().mean() >= _SPARSE:
        return features
    return sparse(features)


def edge_weights(kind: str, edges: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The edges that a kind of convolution sees, and their weights.

    gcn: D^-1/2 (A + I) D^-1/2 with in-degrees, one loop at every node (Kipf & Welling, 2017). sage: the mean
    over a node's sources (Hamilton et al., 2017). gat: 1, attention has its own weights.
    """
    if kind == "gcn":
        loops = torch.arange(count, device=edges.device)
        edges = torch.cat([edges[:, edges[0] != edges[1]], torch.stack([loops, loops])], dim=1)
    degree = torch.bincount(edges[1], minlength=count).to(dtype)
    if kind == "gcn":
        return edges, (degree[edges[0]] * degree[edges[1]]).rsqrt()
    return edges, degree[edges[1]].reciprocal() if kind == "sage" else degree.new_ones(edges.shape[1])


def sparse(dense: Tensor) -> Csr:
    """A dense matrix as a sparse one."""
    rows, columns = dense.nonzero(as_tuple=True)
    return Csr(starts(rows, len(dense)), columns, dense[rows, columns], dense.shape[1])
