"""Images per second of the data pipelines and of the training step, beside a bare loop of torch.

    python benchmarks/throughput.py [--models resnet18 resnet50 deit] [--rounds 7] [--json PATH] [--quick]

Steps of all variants alternate, so that noise of the machine affects all equally; medians are printed. The
bare loop has the same model, optimizer and precision, but no sparsifier, no HAM and no logger. Overheads are
timed on the parts alone, since differences between complete steps are smaller than their noise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ham.data import Batch, Cifar100, Data, DataError, Digits, ImageNetFFCV, ImageNetFolder, Loaders
from ham.run.build import build, setup_device
from ham.run.config import config_hash, load
from ham.run.logger import NullLogger
from ham.run.loop import forward_backward, train_step
from ham.run.provenance import hardware
from ham.run.state import Run
from ham.tasks.images import ImageClassification
from pruning.acdc import phases

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 10
MODELS = {  # experiment, HAM's values, pixels, batch size on a CPU and on a GPU
    "resnet18": ("cifar100", "cifar100", 32, 128, 512),
    "resnet50": ("dense", "imagenet", 224, 8, 256),
    "deit": ("deit", "imagenet", 224, 8, 256),
}
METHODS = {
    "dense": [],
    "AC/DC": ["sparsifier=acdc", "sparsifier.sparsity=0.9"],
    "RigL": ["sparsifier=rigl", "sparsifier.sparsity=0.9"],
    "STR": ["sparsifier=str", "sparsifier.sparsity=0.9"],
    "m * w": ["parameterization=sign_in"],  # HAM on factors is not in the paper
}
BUDGETS = {
    "HAM": 0.02,
    "AC/DC": 0.02,
    "RigL": 0.04,
}  # shares of a ResNet18 step on CIFAR-100 at batch size 128


@dataclass
class Synthetic:
    """Yields the same batch every time, so that only the step is timed."""

    batch: Batch

    def __len__(self) -> int:
        return 1000

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batch, until the epoch ends."""
        for _ in range(start, len(self)):
            yield self.batch


def make(model: str, method: str, ham: bool, batch_size: int, tiny: bool) -> Run:
    """Build a run before its first step, AC/DC in a sparse phase; it writes no files."""
    exp, values, side, _, _ = MODELS[model]
    words = [f"+exp={exp}", *METHODS[method], f"epochs={EPOCHS}", f"batch_size={batch_size}"]
    words += [f"ham={values}"] if ham else []
    words += ["compute.amp=false", "compute.channels_last=false"] if not torch.cuda.is_available() else []
    words += ["model.width=8", "model.layers=[1,1,1,1]"] if tiny else []
    cfg = load(words)
    device = setup_device(cfg)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, side, side, generator=generator)
    labels = torch.randint(cfg.data.num_classes, (batch_size,), generator=generator)
    data = Synthetic((images.to(device), labels.to(device)))
    task = ImageClassification(cfg, device, Loaders(data, data))
    run = build(cfg, config_hash(cfg), task, NullLogger(Path(), cfg), device)
    run.sparsifier.on_epoch_start(phases(EPOCHS).index("sparse") if method == "AC/DC" else 0, run.optimizer)
    return run


def bare(run: Run) -> Callable[[], None]:
    """A step of a plain loop with this run's model, batch, optimizer and precision, without HAM."""
    if run.ham:
        run.ham.remove()
    images, labels = run.task.loaders.train.batch
    cfg = run.cfg.compute
    if cfg.channels_last:
        images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=cfg.amp):
            logits = run.model(images)
        F.cross_entropy(logits.float(), labels).backward()
        run.optimizer.step()
        run.optimizer.zero_grad()

    return step


def full_step(run: Run) -> Callable[[], None]:
    """A step of this repository's loop, with its metrics."""

    def step() -> None:
        run.metrics.update_loss(run.step, train_step(run, run.task.loaders.train.batch))
        run.step += 1

    return step


def seconds(fn: Callable[[], object]) -> float:
    """Time of one call, including the work of the device."""
    synchronize()
    start = time.perf_counter()
    fn()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step_rows(model: str, batch_size: int, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Median time of a step of every variant; the variants alternate."""
    variants = {"bare torch": bare(make(model, "dense", False, batch_size, tiny))}
    for method in METHODS:
        for ham in (False, True) if method != "m * w" else (False,):
            name = f"{method} + HAM" if ham else method
            variants[name] = full_step(make(model, method, ham, batch_size, tiny))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in tqdm(range(rounds + 1), desc=f"steps of {model}", leave=False):
        for name, step in variants.items():
            taken = seconds(step)
            if number:  # the first round allocates and tunes
                times[name].append(taken)
    base = statistics.median(times["bare torch"])
    return [
        {
            "model": model,
            "batch_size": batch_size,
            "step": name,
            "ms": 1e3 * statistics.median(taken),
            "images_per_second": batch_size / statistics.median(taken),
            "over_bare": statistics.median(taken) / base,
        }
        for name, taken in times.items()
    ]


def overhead_rows(rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Share of HAM, AC/DC and RigL in a ResNet18 step on CIFAR-100 at batch size 128."""
    runs = {
        part: make("resnet18", "dense" if part == "HAM" else part, part == "HAM", 128, tiny)
        for part in BUDGETS
    }
    step = full_step(make("resnet18", "dense", False, 128, tiny))
    step_time = statistics.median([seconds(step) for _ in range(rounds + 1)][1:])
    rows = []
    for part, run in tqdm(runs.items(), desc="overheads", leave=False):
        forward_backward(run, run.task.loaders.train.batch)
        taken = statistics.median(
            [seconds(lambda r=run, p=part: _part(r, p)) for _ in range(5 * rounds + 1)][1:]
        )
        if part == "RigL":
            interval = run.sparsifier.interval
            update = statistics.median([seconds(lambda r=run: _update(r)) for _ in range(rounds + 1)][1:])
            taken += update / interval
        share = taken / step_time
        rows.append({"part": part, "ms": 1e3 * taken, "step_ms": 1e3 * step_time, "share": share})
    return rows


def _part(run: Run, part: str) -> None:
    """Do what the part adds to a step."""
    if part == "HAM":
        run.ham._step(run.optimizer, (), {})
    else:
        run.sparsifier.after_backward(1, run.optimizer)  # no update at step 1
        run.sparsifier.add_decay()
        run.sparsifier.after_step()


def _update(run: Run) -> None:
    if run.sparsifier.after_backward(run.sparsifier.interval, run.optimizer):
        raise RuntimeError("RigL did not update its masks")


@contextmanager
def data_sets(quick: bool) -> Iterator[dict[str, tuple[Data, int]]]:
    """Name -> data set and batch size, of the data sets that exist on this machine."""
    data = Path(os.environ.get("HAM_DATA", ROOT.parent / "shared" / "data"))
    available: dict[str, tuple[Data, int]] = {"digits": (Digits(), 64)}
    with tempfile.TemporaryDirectory() as folder:
        if (data / "cifar-100-python").is_dir():
            available["CIFAR-100"] = (Cifar100(root=str(data / "cifar-100-python")), 512)
        photos = data / "photos"
        if photos.is_dir() and not quick:
            cores = os.cpu_count() or 1
            shape = dict(num_classes=5, workers=cores)
            available["image folder, 224 px"] = (ImageNetFolder(root=str(photos), **shape), 48)
            script = [sys.executable, str(ROOT / "scripts" / "write_beton.py"), "--from", str(photos)]
            done = subprocess.run([*script, "--to", folder], capture_output=True)
            if done.returncode == 0:
                available["FFCV, 224 px"] = (ImageNetFFCV(root=folder, **shape), 48)
        yield available


def pipeline_rows(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Images per second of each data set's training batches, the maximum of a few epochs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with data_sets(quick) as available:
        for name, (data, batch_size) in tqdm(available.items(), desc="pipelines", leave=False):
            try:
                train = data.load(batch_size=batch_size, seed=0, device=device).train
            except DataError as error:
                print(f"{name} is skipped: {error}", file=sys.stderr)
                continue
            rates = []
            for epoch in range(max(2, min(rounds, 4))):
                images: list[int] = []
                taken = seconds(lambda t=train, e=epoch, i=images: _read(t.batches(e), i))
                rates.append(sum(images) / taken)
            rows.append({"pipeline": name, "batch_size": batch_size, "images_per_second": max(rates)})
    return rows


def _read(batches: Iterator[tuple[Tensor, Tensor]], images: list[int]) -> None:
    images.extend(len(labels) for _, labels in batches)


def table(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    lines = ["| pipeline alone | batch size | images / s |", "|---|---|---|"]
    for r in results["pipelines"]:
        lines.append(f"| {r['pipeline']} | {r['batch_size']} | {r['images_per_second']:,.0f} |")
    lines += [
        "",
        "| model | batch size | step | median ms | images / s | / bare |",
        "|---|---|---|---|---|---|",
    ]
    for r in results["steps"]:
        numbers = f"{r['ms']:.1f} | {r['images_per_second']:,.1f} | {r['over_bare']:.3f}"
        lines.append(f"| {r['model']} | {r['batch_size']} | {r['step']} | {numbers} |")
    lines += [
        "",
        "| part of a ResNet18 step, CIFAR-100, batch 128 | ms | share | at most | |",
        "|---|---|---|---|---|",
    ]
    for r in results["overheads"]:
        bound = BUDGETS[r["part"]]
        verdict = "within" if r["share"] <= bound else "exceeded"
        lines.append(
            f"| {r['part']} | {r['ms']:.2f} | {100 * r['share']:.2f} % | {100 * bound:g} % | {verdict} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant")
    parser.add_argument(
        "--batch", type=int, help="batch size of all models; default on a CPU: 8 (ResNet18: 128)"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="smoke test: a tiny ResNet18 and two rounds")
    args = parser.parse_args()
    models, rounds = (["resnet18"], 2) if args.quick else (args.models, args.rounds)
    steps = []
    for model in models:
        batch_size = args.batch or MODELS[model][4 if torch.cuda.is_available() else 3]
        steps += step_rows(model, batch_size, rounds, args.quick)
    results = {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": rounds,
        "pipelines": pipeline_rows(rounds, args.quick),
        "steps": steps,
        "overheads": overhead_rows(rounds, args.quick),
    }
    print(table(results))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
