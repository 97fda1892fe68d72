"""Time per training step of graph classification, compared with PyTorch Geometric's loader and layers.

    python benchmarks/molecules.py [--graphs 3200] [--steps 60] [--threads 1] [--json FILE]

Both sides train the same GCN+ with the same weights on ogbg-molhiv (of $HAM_DATA/graphs) in batches of 32,
with AdamW and clipping; "stock" is a DataLoader over Data objects, MessagePassing and torch's dropout and
optimizer. They alternate in one process; medians of CPU seconds are printed. "messages" is the part of a step
that differs: putting a batch together, and the messages of four layers, forward and backward. The rest, above
all matrix products, is the same work on both sides.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import interleaved, medians, spreads
from torch import Tensor, nn
from torch.nn import functional as F

from ham.data import DataError, GraphSet
from ham.models.gcn_plus import Network
from ham.models.messages import sum_messages
from ham.run.build import build
from ham.run.config import config_hash, load
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.run.provenance import hardware
from ham.run.state import Run
from ham.tasks.graphs import GraphClassification

CPU = torch.device("cpu")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import MessagePassing, global_mean_pool


class StockConv(MessagePassing):
    """`EdgeConv` as a MessagePassing layer."""

    def __init__(self, width: int) -> None:
        super().__init__(aggr="add")
        self.linear, self.bias = nn.Linear(width, width, bias=False), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """[nodes, width] -> [nodes, width]; edge_attr [edges, width]."""
        return self.propagate(edge_index, x=self.linear(x), edge_attr=edge_attr) + self.bias

    def message(self, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        """ReLU(x_j + e_ij)."""
        return (x_j + edge_attr).relu()


class Stock(nn.Module):
    """`ham.models.gcn_plus.Network` built of PyTorch Geometric's layers, with the same names and weights."""

    def __init__(self, own: Network) -> None:
        super().__init__()
        self.nodes, self.walks, self.edges, self.head = own.nodes, own.walks, own.edges, own.head
        self.convs = nn.ModuleList(StockConv(len(conv.bias)) for conv in own.convs)
        self.blocks = own.blocks
        self.load_state_dict(own.state_dict())

    def forward(self, data: Data) -> Tensor:
        """Logits of the graphs."""
        x = torch.cat([self.nodes(data.x), self.walks(data.walks)], dim=1)
        edges = self.edges(data.edge_attr)
        for conv, block in zip(self.convs, self.blocks, strict=True):
            z = conv(x, data.edge_index, edges)
            drop = lambda t, block=block: F.dropout(t, block.dropout, block.training)  # noqa: E731
            z = block.norm_before(drop(torch.relu(block.norm(z))))
            x = block.norm_after(z + drop(block.down(drop(torch.relu(block.up(z))))))
        return self.head(global_mean_pool(x, data.batch))


def stock_steps(run: Run) -> Iterator[None]:
    """Training steps of the stock network; each `next` is one."""
    network = Stock(copy.deepcopy(run.model)).train()
    o, graphs = run.cfg.optimizer, run.task.data
    optimizer = torch.optim.AdamW(network.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    loader = DataLoader(
        [_as_data(graphs, i) for i in graphs.parts["train"].tolist()],
        batch_size=run.cfg.batch_size,
        shuffle=True,
    )
    while True:
        for data in loader:
            F.binary_cross_entropy_with_logits(network(data), data.y).backward()
            nn.utils.clip_grad_norm_(network.parameters(), o.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            yield


def _as_data(graphs: GraphSet, i: int) -> Data:
    nodes, edges = (slice(*starts[i : i + 2].tolist()) for starts in (graphs.node_starts, graphs.edge_starts))
    return Data(
        x=graphs.nodes[nodes],
        walks=graphs.walks[nodes],
        edge_index=torch.stack([graphs.sources[edges], graphs.targets[edges]]),
        edge_attr=graphs.edges[edges],
        y=graphs.labels[i : i + 1],
    )


def own_steps(run: Run) -> Iterator[None]:
    """Training steps of the loop."""
    while True:
        for batch in run.task.batches(0):
            train_step(run, batch)
            yield


def own_messages(run: Run, layers: int) -> Iterator[None]:
    """A batch, and the messages of `layers` layers forward and backward."""
    edges, inputs = run.model.edges, _inputs(run)
    while True:
        for graphs, _ in run.task.batches(0):
            batch = run.task.batch(graphs)
            x = inputs[: len(batch.nodes)].requires_grad_()
            embedded = edges(batch.edges)
            sum(sum_messages(x, embedded, batch.messages) for _ in range(layers)).sum().backward()
            yield


def stock_messages(run: Run, layers: int) -> Iterator[None]:
    """The same of PyTorch Geometric."""
    graphs, edges, inputs = run.task.data, run.model.edges, _inputs(run)
    conv = StockConv(run.cfg.model.hidden)
    items = [_as_data(graphs, i) for i in graphs.parts["train"].tolist()]
    while True:
        for data in DataLoader(items, batch_size=run.cfg.batch_size, shuffle=True):
            x = inputs[: len(data.x)].requires_grad_()
            embedded = edges(data.edge_attr)
            sent = [conv.propagate(data.edge_index, x=x, edge_attr=embedded) for _ in range(layers)]
            sum(sent).sum().backward()
            yield


def _inputs(run: Run) -> Tensor:
    """Features of more nodes than a batch has; drawing them is not part of what is measured."""
    most = int(run.task.data.node_starts.diff().max()) * run.cfg.batch_size
    return torch.randn(most, run.cfg.model.hidden)


def measure(sides: dict[str, Iterator[None]], steps: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds per step of each side, which alternate: medians, spreads and the ratio."""
    calls = {name: partial(_take, side, steps) for name, side in sides.items()}
    times = interleaved(calls, rounds, clock=time.process_time)
    row = {name: round(ms, 2) for name, ms in medians(times, 1e-3 * steps).items()}
    spread = {name: [round(ms, 2) for ms in pair] for name, pair in spreads(times, 1e-3 * steps).items()}
    return row | {"spread": spread, "ratio": round(row["stock"] / row["ours"], 2)}


def _take(side: Iterator[None], steps: int) -> None:
    for _ in range(steps):
        next(side)


def main(argv: list[str] | None = None, out: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--graphs", type=int, default=3200, help="random training graphs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cfg = load(["+exp=graph/ogbg_molhiv", f"compute.threads={args.threads}"])
    try:
        task = GraphClassification.load(cfg, CPU, seed=0, rank=0, world_size=1)
    except DataError as error:
        out(f"not measured: {error}")
        return 0
    run = build(cfg, config_hash(cfg), task, NullLogger(Path(), cfg), CPU)
    layers, epoch = cfg.model.layers, task.steps_per_epoch
    train = task.data.parts["train"]
    sample = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: args.graphs]
    task.data.parts["train"] = train[sample]  # the same graphs on both sides
    content = {"unit": "CPU milliseconds", "hardware": hardware(), "threads": args.threads}
    for name, sides in {
        "step": {"ours": own_steps(run), "stock": stock_steps(run)},
        "messages": {"ours": own_messages(run, layers), "stock": stock_messages(run, layers)},
    }.items():
        content[name] = row = measure(sides, args.steps, args.rounds)
        out(f"{name:10}ours {row['ours']:8.1f} ms   stock {row['stock']:8.1f} ms   {row['ratio']} x")
    content["epoch_seconds"] = round(epoch * content["step"]["ours"] / 1e3)
    out(f"an epoch of {epoch} steps: {content['epoch_seconds']} CPU seconds")
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
