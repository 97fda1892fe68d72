"""Time per epoch of node classification, compared with the same networks built of PyTorch Geometric's layers.

    python benchmarks/graphs.py [--sets cora squirrel] [--archs gcn] [--rounds 2] [--json results.json]

An epoch is a training step and the evaluation that the protocol needs. "Stock" is torch_geometric.nn's layers
on dense features and the full graph, with one forward pass without gradients for the evaluation, as in the
paper's code base. Both alternate in one process on one thread, so that noise of the machine affects both
equally; medians of CPU seconds are printed. GAT is also measured as version 1. A results file keeps its rows
of other sets. If the stock network's messages do not fit into memory, only ours is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import interleaved, medians, spreads
from torch import Tensor, nn
from torch.nn import functional as F

from ham.data import DataError, NodeData
from ham.data.graph_files import SETS
from ham.models.gnn import GNN, Attention, Conv
from ham.run.build import build
from ham.run.config import Config, config_hash, load
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.run.provenance import hardware
from ham.tasks.nodes import NodeClassification, build_subgraphs

CPU = torch.device("cpu")


class Stock(nn.Module):
    """The network of `ham.models.gnn.Network`, built of PyTorch Geometric's layers."""

    def __init__(self, spec: GNN, num_features: int, num_classes: int) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch_geometric import nn as pyg
        plain = dict(heads=1, add_self_loops=False, bias=False)
        layer = {
            "gcn": pyg.GCNConv,
            "sage": pyg.SAGEConv,
            "gat": lambda *w: (pyg.GATConv if spec.attention is Attention.v1 else pyg.GATv2Conv)(*w, **plain),
        }[spec.conv]
        widths = [spec.hidden if spec.pre_linear else num_features, *[spec.hidden] * (spec.layers - 1)]
        norm = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}[spec.norm]
        self.dropout = spec.dropout
        self.first = nn.Linear(num_features, spec.hidden) if spec.pre_linear else None
        self.convs = nn.ModuleList(layer(width, spec.hidden) for width in widths)
        self.skips = nn.ModuleList(nn.Linear(width, spec.hidden) for width in widths if spec.residual)
        self.norms = nn.ModuleList(norm(spec.hidden) for _ in widths)
        self.classifier = nn.Linear(spec.hidden, num_classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits of all nodes."""
        if self.first is not None:
            x = F.dropout(self.first(x), self.dropout, self.training)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            z = conv(x, edges)
            if self.skips:
                z = z + self.skips[number](x)
            x = F.dropout(torch.relu(norm(z)), self.dropout, self.training)
        return self.classifier(x)


def stock_epoch(cfg: Config, task: NodeData) -> Callable[[], None]:
    network = Stock(cfg.model, task.features.shape[1], cfg.data.num_classes)
    o = cfg.optimizer
    optimizer = torch.optim.Adam(network.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    train, valid = task.nodes["train"], task.nodes["valid"]

    def epoch() -> None:
        network.train()
        F.cross_entropy(network(task.features, task.edges)[train], task.labels[train]).backward()
        optimizer.step()
        optimizer.zero_grad()
        network.eval()
        with torch.no_grad():
            predictions = network(task.features, task.edges)[valid].argmax(dim=1)
            (predictions == task.labels[valid]).float().mean().item()

    return epoch


def own_epoch(cfg: Config, task: NodeData) -> Callable[[], None]:
    own = NodeClassification(cfg, CPU, task, build_subgraphs(cfg.model, task))
    run = build(cfg, config_hash(cfg), own, NullLogger(Path(), cfg), CPU)

    def epoch() -> None:
        train_step(run, "train")
        own.metric(run.model, "valid")

    return epoch


def stock_fits(cfg: Config, task: NodeData) -> bool:
    """Return True if memory suffices: PyG's GraphSAGE gathers the first layer's inputs for every edge."""
    if cfg.model.conv is not Conv.sage or cfg.model.pre_linear:
        return True
    messages = 4 * task.edges.shape[1] * task.features.shape[1]  # bytes
    return 2 * messages < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def compare(name: str, arch: str, rounds: int) -> list[dict[str, Any]]:
    cfg = load([f"+exp=node/{name.replace('-', '_')}_{arch}"])
    task = cfg.data.load_graph(0, CPU)
    rows = []
    for version in (Attention.v2, Attention.v1) if cfg.model.conv is Conv.gat else (Attention.v2,):
        cfg.model.attention = version
        epochs = {"ours": own_epoch(cfg, task)}
        if stock_fits(cfg, task):
            epochs["stock"] = stock_epoch(cfg, task)
        times = interleaved(epochs, rounds, clock=time.process_time)
        ours, stock = (medians(times).get(side) for side in ("ours", "stock"))
        label = f"gat {version}" if cfg.model.conv is Conv.gat else arch
        row = {"set": name, "arch": label, "ours_ms": round(1e3 * ours, 1)}
        row |= {"stock_ms": round(1e3 * stock, 1), "ratio": round(stock / ours, 2)} if stock else {}
        row["spread_ms"] = {
            side: [round(ms, 1) for ms in pair] for side, pair in spreads(times, 1e-3).items()
        }
        row |= {"run_seconds": round(ours * cfg.epochs), "epochs": cfg.epochs}
        rows.append(row)
        beside = f"{row['stock_ms']:10.1f} ms{row['ratio']:8.1f} x" if stock else f"{'does not fit':>23}"
        print(
            f"{name:18}{label:8}{row['ours_ms']:10.1f} ms{beside}"
            f"   a run of {cfg.epochs} epochs: {row['run_seconds']} s",
            flush=True,
        )
    return rows


def merge_into(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows to a results file; rows of other sets and layers stay if the hardware is the same."""
    content = {"unit": "CPU milliseconds per epoch, one thread", "hardware": hardware(), "rows": []}
    if path.exists():
        before = json.loads(path.read_text())
        measured = {(row["set"], row["arch"]) for row in rows}
        if before["hardware"] == content["hardware"]:
            content["rows"] = [row for row in before["rows"] if (row["set"], row["arch"]) not in measured]
    order = list(SETS)
    content["rows"] = sorted([*content["rows"], *rows], key=lambda row: order.index(row["set"]))
    path.write_text(json.dumps(content, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    parser.add_argument("--archs", nargs="+", choices=Conv, type=Conv, default=list(Conv), metavar="ARCH")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':26}{'ours':>13}{'stock':>13}{'ratio':>10}")
    for name in args.sets:
        try:
            rows = [row for arch in args.archs for row in compare(name, arch, args.rounds)]
        except DataError as error:
            print(f"{name:18}not measured: {error}")
            continue
        if args.json:
            merge_into(args.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
