"""Random-walk structural encoding (RWSE): how likely a walk is back at its start after 1, 2, ... steps.

Source: Dwivedi et al. 2022 (arXiv 2110.07875); GraphGPS computes it as here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .progress import progress

_ELEMENTS = 2**21  # of a batch of matrices: 16 MiB in float64
MAX_NODES = 4096
"""Of a graph: its matrix of walks is dense."""


def return_probabilities(
    node_starts: Tensor, edge_starts: Tensor, sources: Tensor, targets: Tensor, steps: int
) -> Tensor:
    """The diagonal of P^k for k = 1..steps, where P = D^-1 A.

    A[i, j] is the number of edges from i to j, and D the sum of its rows. A node without outgoing edges has a
    row of zeros in P. Computed in float64, for graphs of one size together.

    Args:
        node_starts: int64 [graphs + 1], see `GraphSet`.
        edge_starts: int64 [graphs + 1].
        sources: int64 [edges], number of the node within its graph.
        targets: int64 [edges].
        steps: number of steps, at least 0.

    Returns:
        float32 [nodes, steps].

    Raises:
        ValueError: a graph has more than `MAX_NODES` nodes.
    """
    walks = torch.zeros(int(node_starts[-1]), steps)
    sizes = node_starts.diff()
    if not steps or not len(walks):
        return walks
    if int(sizes.max()) > MAX_NODES:
        raise ValueError(
            f"a graph has {int(sizes.max())} nodes, random walks are computed for at most {MAX_NODES}"
        )
    with progress(None, "random walks", "graphs", total=len(sizes)) as bar:
        for size in sizes[sizes > 0].unique().tolist():
            members = (sizes == size).nonzero().flatten()
            for graphs in members.split(max(1, _ELEMENTS // size**2)):
                adjacency = _adjacency(graphs, size, edge_starts, sources, targets)
                rows = node_starts[graphs][:, None] + torch.arange(size)
                walks[rows.flatten()] = _diagonals(adjacency, steps).flatten(0, 1).float()
                bar.update(len(graphs))
    return walks


def _adjacency(graphs: Tensor, size: int, edge_starts: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """float64 [graphs, size, size], the number of edges from row to column."""
    counts = edge_starts[graphs + 1] - edge_starts[graphs]
    owners = torch.arange(len(graphs)).repeat_interleave(counts)
    firsts = edge_starts[graphs] - (counts.cumsum(0) - counts)
    edges = torch.arange(len(owners)) + firsts[owners]
    cells = (owners * size + sources[edges]) * size + targets[edges]
    count = torch.bincount(cells, minlength=len(graphs) * size**2)
    return count.view(len(graphs), size, size).double()


def _diagonals(adjacency: Tensor, steps: int) -> Tensor:
    """float64 [graphs, size, steps]."""
    step = adjacency / adjacency.sum(dim=2, keepdim=True).clamp(min=1)
    power, diagonals = step, [step.diagonal(dim1=1, dim2=2)]
    for _ in range(steps - 1):
        power = power @ step
        diagonals.append(power.diagonal(dim1=1, dim2=2))
    return torch.stack(diagonals, dim=2)
