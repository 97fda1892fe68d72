"""Sums of messages over the edges of a batch of graphs, ReLU(x_j + e_ij), in one fused operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .graph_kernels import for_tensors
from .sparse import Csr, to_device


@dataclass(frozen=True)
class Messages:
    """The messages of a batch of graphs; edges that send the same message share it.

    Two edges send the same message if their source and their features are the same, such as the two aromatic
    bonds of an atom of a ring.

    Args:
        senders: int64 [messages], source node of each message, in rising order.
        kinds: int64 [messages], row of each message's edge features.
        incoming: pattern of the messages that each node sums, [nodes, messages].
        outgoing: `incoming` transposed, [messages, nodes].
        by_sender: pattern of the messages that each node sends, [nodes, messages].
        by_kind: pattern of the messages that have each row of edge features, [kinds, messages].
    """

    senders: Tensor
    kinds: Tensor
    incoming: Csr
    outgoing: Csr
    by_sender: Csr
    by_kind: Csr

    def to(self, device: torch.device) -> Messages:
        """These messages on a device."""
        matrices = (self.incoming, self.outgoing, self.by_sender, self.by_kind)
        senders, kinds = to_device(self.senders, device), to_device(self.kinds, device)
        return Messages(senders, kinds, *(matrix.to(device) for matrix in matrices))


def sum_messages(x: Tensor, edges: Tensor, messages: Messages) -> Tensor:
    """Node i gets the sum of ReLU(x_j + e_ij) over its incoming edges j -> i; differentiable.

    Args:
        x: [nodes, channels].
        edges: [kinds, channels], embedded features of the kinds of edges.
        messages: messages of the batch.

    Returns:
        [nodes, channels].

    Raises:
        ValueError: x or edges has another number of rows than the batch has nodes or kinds, or they have
            different numbers of channels.
    """
    if x.shape[-1] != edges.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} channels, and edges {edges.shape[-1]}")
    for name, tensor, matrix in (("x", x, messages.by_sender), ("edges", edges, messages.by_kind)):
        if len(tensor) != matrix.shape[0]:
            raise ValueError(f"{name} has {len(tensor)} rows, and the batch {matrix.shape[0]}")
    return _SumMessages.apply(x, edges, messages)


class _SumMessages(torch.autograd.Function):
    """C code computes each message where it is summed, and again in the backward pass; torch keeps them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edges: Tensor, messages: Messages) -> Tensor:
        ctx.messages, incoming = messages, messages.incoming
        if code := for_tensors(x, edges, incoming.values):
            ctx.save_for_backward(x, edges)
            ends = (messages.senders.long(), messages.kinds.long())
            return code.sum_messages(incoming.pattern, incoming.values, ends, x, edges)
        sent = _send(x, edges, messages)
        ctx.save_for_backward(sent)
        return incoming.times(sent)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        saved, messages, needed = ctx.saved_tensors, ctx.messages, ctx.needs_input_grad[:2]
        outgoing, by_sender = messages.outgoing, messages.by_sender
        if len(saved) == 2 and (code := for_tensors(gradient, *saved, outgoing.values)):
            grad_x, grad_edges = code.sum_messages_backward(
                by_sender.pattern,
                outgoing.pattern,
                outgoing.values,
                messages.kinds.long(),
                saved,
                gradient,
                needed,
            )
            return grad_x, grad_edges, None
        sent = saved[0] if len(saved) == 1 else _send(*saved, messages)
        grad_messages = torch.ops.aten.threshold_backward(  # of ReLU; masked_fill_ is slower
            outgoing.times(gradient), sent, 0
        )
        grad_x = by_sender.times(grad_messages) if needed[0] else None
        grad_edges = messages.by_kind.times(grad_messages) if needed[1] else None
        return grad_x, grad_edges, None


def _send(x: Tensor, edges: Tensor, messages: Messages) -> Tensor:
    """All messages, [messages, channels]."""
    sent = x.index_select(0, messages.senders)
    sent += edges.index_select(0, messages.kinds)
    return sent.relu_()


def plain_sum_messages(x: Tensor, edges: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """The same sum by its formula, edge by edge: the reference of the tests.

    Args:
        x: [nodes, channels].
        edges: [edges, channels], embedded features of each edge.
        sources: int64 [edges].
        targets: int64 [edges].
    """
    out = [torch.zeros_like(x[0]) for _ in x]
    for edge, source, target in zip(edges, sources.tolist(), targets.tolist(), strict=True):
        out[target] = out[target] + torch.relu(x[source] + edge)
    return torch.stack(out)
