"""A full epoch and the data pipelines beside those of timm and FFCV, and a bare loop of torch.

    python benchmarks/loops.py [--rounds 9] [--json PATH] [--quick]

An epoch is training, evaluation and a checkpoint, of the same model on the same batches in memory. timm's
package does not contain its train.py: that loop is put together here from timm's optimizer, meters, accuracy,
schedule and saver. The pipelines read the same files with the same number of processes or threads. The order
of the variants is drawn in each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from peers import PEERS, bare_epoch, ffcv_loader, timm_epoch, timm_loader
from pipelines import photo_files
from timing import interleaved, medians, ratio_spread, spreads

from ham.data import Batch, ImageNetFFCV, ImageNetFolder, Loaders
from ham.run.build import build
from ham.run.config import config_hash, load
from ham.run.logger import RunLogger
from ham.run.loop import train
from ham.run.provenance import hardware
from ham.run.state import Run
from ham.tasks.images import ImageClassification

CPU = torch.device("cpu")
MODELS = {"resnet18": ["model=resnet18"], "deit_tiny": ["model.embed_dim=192", "model.num_heads=3"]}
SIZE, CLASSES = 64, 100


@dataclass
class InMemory:
    """The same batches in each epoch."""

    contents: list[Batch]

    def __len__(self) -> int:
        return len(self.contents)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches from `start` on."""
        yield from self.contents[start:]


def random_batches(count: int, batch_size: int, generator: torch.Generator) -> InMemory:
    """Normal pixels and uniform labels."""
    return InMemory(
        [
            (
                torch.randn(batch_size, 3, SIZE, SIZE, generator=generator),
                torch.randint(CLASSES, (batch_size,), generator=generator),
            )
            for _ in range(count)
        ]
    )


def make_run(model: str, loaders: Loaders, batch_size: int, folder: Path, tiny: bool) -> Run:
    """A run of one epoch before its first step, with its logger and a directory for its checkpoint."""
    overrides = [f"+exp={'deit' if model == 'deit_tiny' else 'dense'}", *MODELS[model], "epochs=1"]
    overrides += [f"batch_size={batch_size}", f"data.image_size={SIZE}", f"data.num_classes={CLASSES}"]
    overrides += ["compute.amp=false", "compute.channels_last=false"]
    overrides += ["model.depth=1"] if tiny and model == "deit_tiny" else []
    overrides += ["model.width=8", "model.layers=[1,1,1,1]"] if tiny and model == "resnet18" else []
    cfg = load(overrides)
    logger = RunLogger(folder, cfg)
    logger.start_progress(len(loaders.train), 0)
    return build(cfg, config_hash(cfg), ImageClassification(cfg, CPU, loaders), logger, CPU)


def our_epoch(run: Run, folder: Path) -> float:
    """`ham.run.loop.train` of one epoch; returns when its steps ended, in seconds of `time.perf_counter`."""
    ended: list[float] = []
    evaluate = run.task.evaluate
    run.task.evaluate = lambda progress: ended.append(time.perf_counter()) or evaluate(progress)
    train(run)
    return ended[0]


def epoch_row(model: str, rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds of an epoch of each loop; each round starts from new weights, outside of the timed part."""
    batch_size, steps = (4, 2) if quick else (32, 20)
    generator = torch.Generator().manual_seed(0)
    loaders = Loaders(*(random_batches(n, batch_size, generator) for n in (steps, max(1, steps // 4))))
    loops: dict[str, Callable[[Run, Path], float]] = {
        "ours": our_epoch,
        "timm": timm_epoch,
        "bare": bare_epoch,
    }
    times, in_steps = ({name: [] for name in loops} for _ in range(2))
    order, shuffle = list(loops), random.Random(0).shuffle
    for number in range(rounds + 1):
        shuffle(order)  # a loop that always follows the same one bears what that leaves in caches and files
        for name in order:
            with (
                tempfile.TemporaryDirectory() as folder,
                redirect_stdout(StringIO()),
                redirect_stderr(StringIO()),
            ):
                run = make_run(model, loaders, batch_size, Path(folder, "run"), quick)
                start = time.perf_counter()
                steps_end = loops[name](run, Path(folder))
                end = time.perf_counter()
                run.logger.close()
            if number:  # the first round allocates
                times[name].append(end - start)
                in_steps[name].append(steps_end - start)
    middle, middle_steps = medians(times), medians(in_steps)
    others = [name for name in loops if name != "ours"]
    return {
        "model": model,
        "batch_size": batch_size,
        "steps": steps,
        "seconds": middle,
        "spread": spreads(times),
        "after_steps": middle["ours"] - middle_steps["ours"],
        "over": {name: middle[name] / middle["ours"] for name in others},
        "over_spread": {name: ratio_spread(times, name, "ours") for name in others},
        "steps_over": {name: middle_steps[name] / middle_steps["ours"] for name in others},
        "steps_over_spread": {name: ratio_spread(in_steps, name, "ours") for name in others},
    }


def read(batches: Iterable[Batch], images: int) -> None:
    """Read an epoch. Raises RuntimeError if it has another number of images: rates could not be compared."""
    if (count := sum(len(labels) for _, labels in batches)) != images:
        raise RuntimeError(f"an epoch has {count} images, not {images}: choose a batch size that fits both")


def pipeline_row(name: str, workers: int, files: Path, rounds: int) -> dict[str, Any]:
    """Images per second of one epoch of this repository's pipeline and of its peer's."""
    shape = dict(num_classes=5, workers=workers)
    data = (ImageNetFFCV if name == "FFCV" else ImageNetFolder)(root=str(files), **shape)
    batch_size, epochs = 32, iter(range(1000))
    ours = data.load(batch_size=batch_size, seed=0, device=CPU).train
    peer = (ffcv_loader if name == "FFCV" else timm_loader)(files, batch_size, workers)
    images = batch_size * len(ours)
    times = interleaved(
        {
            "ours": lambda: read(ours.batches(next(epochs)), images),
            PEERS[name]: lambda: read(peer, images),
        },
        rounds,
    )
    middle = medians(times)
    return {
        "pipeline": name,
        "workers": workers,
        "peer": PEERS[name],
        "images": images,
        "images_per_second": {each: images / value for each, value in middle.items()},
        "spread": {
            each: [images / value for value in values[::-1]] for each, values in spreads(times).items()
        },
        "over_peer": middle[PEERS[name]] / middle["ours"],
        "over_peer_spread": ratio_spread(times, PEERS[name], "ours"),
    }


def table(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    lines = ["| epoch | ours, s | after the steps | steps: timm / ours | bare / ours | epoch: timm / ours |"]
    lines += ["|---|---|---|---|---|---|"]
    for r in results["epochs"]:
        ratios = (r["steps_over"]["timm"], r["steps_over"]["bare"], r["over"]["timm"])
        numbers = f"{r['seconds']['ours']:.2f} | {r['after_steps']:.2f} | " + " | ".join(
            f"{x:.3f}" for x in ratios
        )
        lines.append(f"| {r['model']} | {numbers} |")
    lines += ["", "| pipeline | workers | ours, images/s | peer | / peer |", "|---|---|---|---|---|"]
    for r in results["pipelines"]:
        rate = f"{r['images_per_second']['ours']:,.0f}"
        lines.append(f"| {r['pipeline']} | {r['workers']} | {rate} | {r['peer']} | {r['over_peer']:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed epochs of each variant")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="smoke test: tiny models and one round")
    args = parser.parse_args(argv)
    rounds = 1 if args.quick else args.rounds
    results: dict[str, Any] = {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "versions": {name: version(name) for name in ("timm", "ffcv") if find_spec(name)},
        "rounds": rounds,
        "epochs": [epoch_row(model, rounds, args.quick) for model in MODELS],
        "pipelines": [],
    }
    threads = range(1, min(2, len(os.sched_getaffinity(0))) + 1)
    with photo_files(quick=args.quick) as available:
        for name, files in available.items():
            results["pipelines"] += [pipeline_row(name, workers, files, rounds) for workers in threads]
    print(table(results))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
