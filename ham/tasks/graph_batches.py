"""Batches of graphs, put together on the CPU from a set's tensors without a loop over graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ham.models.gcn_plus import GraphBatch
from ham.models.messages import Messages
from ham.models.sparse import Csr, starts


@dataclass(frozen=True)
class Spans:
    """Consecutive elements of some graphs in the tensors of a set.

    Args:
        counts: int64 [graphs], number of elements of each graph.
        first: int64 [graphs], index of each graph's first element in the batch.
        elements: int64 [elements of the batch], their indices in the set.
    """

    counts: Tensor
    first: Tensor
    elements: Tensor

    @classmethod
    def select(cls, graph_starts: Tensor, graphs: Tensor) -> Spans:
        """The elements of `graphs`; `graph_starts` is int64 [graphs of the set + 1]."""
        begin = graph_starts.index_select(0, graphs)  # several times faster than graph_starts[graphs]
        counts = graph_starts.index_select(0, graphs + 1) - begin
        ends = counts.cumsum(0)
        total = int(ends[-1])
        first = ends - counts
        shift = (begin - first).repeat_interleave(counts, output_size=total)
        return cls(counts, first, torch.arange(total) + shift)

    def __len__(self) -> int:
        """Number of elements of the batch."""
        return len(self.elements)

    def repeat(self, values: Tensor) -> Tensor:
        """A value per graph -> a value per element."""
        return values.repeat_interleave(self.counts, output_size=len(self))


@dataclass(frozen=True)
class BlockMatrix:
    """A sparse matrix of zeros and ones for each graph of a set; selected ones are a block-diagonal matrix.

    Args:
        lengths: int64 [rows of the set], number of entries of each row.
        columns: int64 [entries], counted within the graph.
    """

    lengths: Tensor
    columns: Tensor

    @classmethod
    def from_entries(cls, rows: Tensor, columns: Tensor, count: int) -> BlockMatrix:
        """Build from the entries' rows, counted in the set and in rising order, and columns.

        Args:
            rows: int64 [entries].
            columns: int64 [entries].
            count: number of rows of the set.
        """
        return cls(starts(rows, count).diff(), columns)

    def select(self, rows: Spans, columns: Spans, entries: Spans) -> Csr:
        """The block-diagonal matrix of some graphs, whose rows, columns and entries are given."""
        ends = self.lengths.index_select(0, rows.elements).cumsum(0)
        shifted = self.columns.index_select(0, entries.elements) + entries.repeat(columns.first)
        row_starts = torch.cat([ends.new_zeros(1), ends])
        return Csr(row_starts, shifted, torch.ones(len(shifted)), len(columns))


class GraphTensors:
    """The tensors of a set of graphs on the CPU, prepared for taking out batches.

    Args:
        node_starts: int64 [graphs + 1], first node of each graph.
        edge_starts: int64 [graphs + 1], first edge of each graph.
        nodes: int64 [nodes, columns], categories.
        walks: float32 [nodes, steps], random-walk probabilities.
        sources: int64 [edges], counted within the graph.
        targets: int64 [edges], counted within the graph.
        edges: [edges, columns]: int64 categories, or float32. Edges with categories share equal messages.
    """

    def __init__(
        self,
        node_starts: Tensor,
        edge_starts: Tensor,
        nodes: Tensor,
        walks: Tensor,
        sources: Tensor,
        targets: Tensor,
        edges: Tensor,
    ) -> None:
        self.node_starts, self.edge_starts = node_starts, edge_starts
        self.nodes, self.walks = nodes, walks
        first_node = node_starts[:-1].repeat_interleave(edge_starts.diff())
        self.kinds, kinds = distinct_rows(edges)
        keys, message = torch.unique((sources + first_node) * len(self.kinds) + kinds, return_inverse=True)
        senders = keys // len(self.kinds)  # in rising order, so graph by graph
        self.message_kinds = keys % len(self.kinds)
        self.message_starts = torch.searchsorted(senders, node_starts)
        counts = self.message_starts.diff()
        self.senders = senders - node_starts[:-1].repeat_interleave(counts)
        first_message = self.message_starts[:-1].repeat_interleave(edge_starts.diff())
        receivers = targets + first_node
        by_target = (receivers * len(keys) + message).argsort()
        local = (message - first_message)[by_target]
        self.incoming = BlockMatrix.from_entries(receivers[by_target], local, len(nodes))
        by_message = (message * len(nodes) + receivers).argsort()
        self.outgoing = BlockMatrix.from_entries(message[by_message], targets[by_message], len(keys))
        own = torch.arange(len(keys)) - self.message_starts[:-1].repeat_interleave(counts)
        self.by_sender = BlockMatrix.from_entries(senders, own, len(nodes))

    def batch(self, indices: Sequence[int]) -> GraphBatch:
        """The graphs with these indices, in this order, on the CPU."""
        graphs = torch.as_tensor(indices)
        nodes, sent = Spans.select(self.node_starts, graphs), Spans.select(self.message_starts, graphs)
        edges = Spans.select(self.edge_starts, graphs)
        present, kinds = torch.unique(self.message_kinds.index_select(0, sent.elements), return_inverse=True)
        messages = Messages(
            senders=self.senders.index_select(0, sent.elements) + sent.repeat(nodes.first),
            kinds=kinds,
            incoming=self.incoming.select(nodes, sent, edges),
            outgoing=self.outgoing.select(sent, nodes, edges),
            by_sender=self.by_sender.select(nodes, sent, sent),
            by_kind=Csr(
                starts(kinds, len(present)), kinds.argsort(stable=True), torch.ones(len(sent)), len(sent)
            ),
        )
        return GraphBatch(
            nodes=self.nodes.index_select(0, nodes.elements),
            walks=self.walks.index_select(0, nodes.elements),
            edges=self.kinds.index_select(0, present),
            messages=messages,
            pooling=mean_pooling(nodes),
        )


def mean_pooling(nodes: Spans) -> Csr:
    """The mean over each graph's nodes, [graphs, nodes]."""
    weights = nodes.repeat(nodes.counts.float().reciprocal())
    each, graphs = torch.arange(len(nodes) + 1), nodes.repeat(torch.arange(len(nodes.counts)))
    transpose = Csr(each, graphs, weights, len(nodes.counts))
    return Csr(torch.cat([nodes.first, each[-1:]]), each[:-1], weights, len(nodes), transpose)


def distinct_rows(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of categories [rows, columns], and the row of each edge; float features are not compared.

    The columns become one number per edge: torch.unique(dim=0) is far slower and takes much more memory.
    """
    if edges.is_floating_point() or not len(edges):
        return edges, torch.arange(len(edges))
    sizes = (edges.amax(dim=0) + 1).tolist()
    keys = torch.zeros(len(edges), dtype=torch.int64)
    for column, size in zip(edges.unbind(dim=1), sizes, strict=True):
        keys = keys * size + column
    keys, rows = torch.unique(keys, return_inverse=True)
    columns = []
    for size in reversed(sizes):
        columns.append(keys % size)
        keys = keys // size
    return torch.stack(columns[::-1], dim=1), rows


def batches_of_similar_size(sizes: Tensor, bound: int) -> list[Tensor]:
    """Groups of samples with about `bound` elements each, for evaluation.

    Args:
        sizes: int64 [samples], number of elements of each.
        bound: largest number of a group's elements; a group of one sample may exceed it.

    Returns:
        int64 indices of the samples, in order.
    """
    groups, begin, total = [], 0, 0
    for index, size in enumerate(sizes.tolist()):
        if index > begin and total + size > bound:
            groups.append(torch.arange(begin, index))
            begin, total = index, 0
        total += size
    return [*groups, torch.arange(begin, len(sizes))] if len(sizes) else []
