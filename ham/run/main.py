"""Carry a run out: find or make its directory, resume or start, train, sum up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ham.data import Graph, derived_seed
from pruning import STR
from pruning.export import MASKS, save_masks
from pruning.str import Calibrate

from . import checkpoint, distributed, node, node_summary
from .build import Run, build, choose_device
from .config import config_hash, to_yaml
from .loop import train
from .provenance import provenance
from .record import Record, Silence, read_summary
from .schema import Config, ConfigError
from .search import search

_MISS = 0.005  # half a point of sparsity


def main(cfg: Config) -> dict[str, Any]:
    """Train, or go on training, one configured run; returns its summary.

    Raises:
        ConfigError, DataError: it cannot start.
        Diverged, Stopped, CheckpointError, RanksLost: it ended early.
    """
    identity = config_hash(cfg)
    folder = run_directory(cfg, identity)
    if isinstance(cfg.data, Graph):
        node.check_ranks()
    device = choose_device(cfg)
    distributed.join(device, cfg.compute.timeout)
    with distributed.watched(lambda: "before the first step"):
        if isinstance(cfg.sparsifier, STR) and cfg.sparsifier.calibrate is Calibrate.search:
            return search(cfg, folder, identity, carry_out)
        return carry_out(cfg, folder, identity)


def carry_out(cfg: Config, folder: Path, identity: str) -> dict[str, Any]:
    """Train, or go on training, in this directory; the first rank alone writes there."""
    device = choose_device(cfg)
    done = distributed.told(cfg.resume and read_summary(folder) is not None)  # then no data is needed
    me = distributed.world()
    part = dict(rank=me.rank, ranks=me.size)
    seed = derived_seed(cfg.seed, "data")
    graph = isinstance(cfg.data, Graph)
    load = lambda: (  # noqa: E731
        cfg.data.task(cfg.seed, device)
        if graph
        else cfg.data.load(batch_size=cfg.batch_size, seed=seed, device=device, **part)
    )
    loaders = None if done else distributed.together(load)
    tell = node_summary.tell if graph else _tell
    record = distributed.led(lambda: Record(folder, cfg)) or Silence(folder, cfg)
    try:
        if not cfg.resume:
            distributed.led(record.clear)
        elif not done:  # perhaps another process ended this run while its data were read here
            done = distributed.told(read_summary(folder) is not None)
        if done:
            summary = distributed.told(record.summary() if me.leads else {})
            _check_identity(record, summary["config_hash"], identity)
            record.say("done before; start anew with resume=false")
            return tell(record, summary)
        state = _load(record)
        if state is not None:
            _check_identity(record, state["config_hash"], identity)
            torch.set_num_threads(state["threads"])  # sums round as they did before
        if graph:
            return tell(record, node.train_node(cfg, identity, loaders, record, device, state))
        return _train(build(cfg, identity, loaders, record, device, resumed=state is not None), state)
    finally:
        record.close()


def run_directory(cfg: Config, identity: str) -> Path:
    """runs_dir/<exp>[-<demo>][-<hash>]/seed<k>, the hash where values were altered on the command line."""
    name = "-".join(filter(None, [cfg.name, cfg.demo, identity[:8] if cfg.overridden else ""]))
    return Path(cfg.runs_dir) / name / f"seed{cfg.seed}"


def _load(record: Record | Silence) -> dict[str, Any] | None:
    """The checkpoint to go on from; the first rank looks for a whole one, then the others read it too."""

    def first() -> dict[str, Any] | None:
        state = checkpoint.load(record.folder, record.say)
        if state is None:
            record.clear()  # killed before its first checkpoint: nothing to go on from
        return state

    state = distributed.led(first)
    found = distributed.told(state is not None)
    return checkpoint.load(record.folder, record.say) if found and state is None else state


def _train(run: Run, state: dict[str, Any] | None) -> dict[str, Any]:
    record = run.record
    record.begin(provenance(run.identity), to_yaml(run.cfg))
    if state is None:
        try:
            run.sparsifier.initialize(run.loaders.train.batches(epoch=0), F.cross_entropy)
        except ValueError as error:  # such as SNIP's, where the data have too few batches
            raise ConfigError(str(error)) from error
        run.flips.begin()
    else:
        run.load_state_dict(state)
        record.say(f"resumed at epoch {run.epoch + 1}, step {run.step}")
    record.open(run.cfg.epochs * len(run.loaders.train), run.step)
    train(run)
    return _tell(record, distributed.told(distributed.led(lambda: _finish(run))))


def _finish(run: Run) -> dict[str, Any]:
    """Write the masks and the summary, which says that the run is done."""
    summary = summarize(run)
    if summary["sparsity"]["overall"] > 0:
        origin = {key: summary[key] for key in ("exp", "demo", "seed", "config_hash")}
        save_masks(run.record.folder / MASKS, run.sparsifier, origin)
    run.record.finish(summary)
    return summary


def _check_identity(record: Record | Silence, was: str, identity: str) -> None:
    if was != identity:
        raise ConfigError(
            f"{record.folder} holds a run of another configuration ({was[:8]}, now {identity[:8]}): "
            "choose another runs_dir, or start anew with resume=false"
        )


def summarize(run: Run) -> dict[str, Any]:
    """summary.json: metrics, sparsity, timing, provenance.

    `top1_last` is what tables report; `top1_best` is over the epochs at least as sparse as the last.
    """
    lines = run.record.metrics()
    last = lines[-1]
    as_sparse = [line["top1"] for line in lines if line["sparsity"] >= last["sparsity"]]
    layers = {name: 1 - kept / total for name, kept, total in run.sparsifier.counts()}
    seconds = run.record.seconds()
    return {
        "exp": run.cfg.name,
        "cell": run.cfg.cell,
        "demo": run.cfg.demo or None,
        "overridden": run.cfg.overridden,
        "seed": run.cfg.seed,
        "config_hash": run.identity,
        "status": "done",
        "epochs": run.cfg.epochs,
        "metrics": {
            "train_loss": last["train_loss"],
            "test_loss": last["test_loss"],
            "top1_last": last["top1"],
            "top1_best": max(as_sparse),
            "top5_last": last["top5"],
        },
        "sparsity": {
            "target": getattr(run.sparsifier, "sparsity", 0.0),
            "overall": run.sparsifier.achieved_sparsity(),
            "kept": sum(kept for _, kept, _ in run.sparsifier.counts()),
            "total": sum(total for _, _, total in run.sparsifier.counts()),
            "layers": layers,
            "masks_from": last.get("masks_from"),
        },
        "timing": {
            "seconds": round(seconds, 1),
            "steps": run.step,
            "steps_per_second": round(run.step / seconds, 2),
        },
        "provenance": run.record.provenance(),
    }


def _tell(record: Record | Silence, summary: dict[str, Any]) -> dict[str, Any]:
    sparsity, metrics = summary["sparsity"], summary["metrics"]
    record.say(f"test top-1   {metrics['top1_last']:.2f} %   (best epoch {metrics['top1_best']:.2f} %)")
    record.say(
        f"sparsity     {100 * sparsity['overall']:.2f} %   "
        f"({sparsity['kept']:,} of {sparsity['total']:,} weights kept; target {100 * sparsity['target']:g} %)"
    )
    if sparsity["target"] and abs(sparsity["overall"] - sparsity["target"]) > _MISS:
        record.say(
            "missed       its target sparsity: train longer, or calibrate anew (sparsifier.calibrate=search)"
        )
    if whole := [name for name, share in sparsity["layers"].items() if share == 1]:
        record.say(f"pruned whole {', '.join(whole)}: lower the sparsity, exclude them, or prune layerwise")
    record.say(f"run          {record.folder}")
    return summary
