"""Images per second of the data pipelines and of the training step, beside a bare loop of torch.

    python benchmarks/throughput.py [--models resnet18 resnet50 deit] [--rounds 7] [--json PATH] [--quick]

Steps of all variants take turns, so that noise of the machine hits all alike; medians are told. The bare loop
has the same model, optimizer and precision and nothing else: no sparsifier, no HAM, no record. Overheads are
those of the parts themselves, timed alone: differences of whole steps are noisier than they are large.
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
from ham.run.build import Run, build, choose_device
from ham.run.config import config_hash, load
from ham.run.loop import forward_backward, train_step
from ham.run.provenance import hardware
from ham.run.record import Silence
from pruning.acdc import phases

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 10
MODELS = {  # experiment, HAM's values, pixels, images a step on a CPU and on a GPU
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
BUDGETS = {"HAM": 0.02, "AC/DC": 0.02, "RigL": 0.04}  # of a ResNet18's step on CIFAR-100 at batch 128


@dataclass
class Synthetic:
    """The same batch again and again: what is timed is the step."""

    batch: Batch

    def __len__(self) -> int:
        return 1000

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """That batch."""
        for _ in range(start, len(self)):
            yield self.batch


def make(model: str, method: str, ham: bool, batch_size: int, tiny: bool) -> Run:
    """A run before its first step, AC/DC in a sparse phase; nothing is written."""
    exp, values, side, _, _ = MODELS[model]
    words = [f"+exp={exp}", *METHODS[method], f"epochs={EPOCHS}", f"batch_size={batch_size}"]
    words += [f"ham={values}"] if ham else []
    words += ["compute.amp=false", "compute.channels_last=false"] if not torch.cuda.is_available() else []
    words += ["model.width=8", "model.layers=[1,1,1,1]"] if tiny else []
    cfg = load(words)
    device = choose_device(cfg)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, side, side, generator=generator)
    classes = torch.randint(cfg.data.num_classes, (batch_size,), generator=generator)
    data = Synthetic((images.to(device), classes.to(device)))
    run = build(cfg, config_hash(cfg), Loaders(data, data), Silence(Path(), cfg), device)
    run.sparsifier.on_epoch_start(phases(EPOCHS).index("sparse") if method == "AC/DC" else 0, run.optimizer)
    return run


def bare(run: Run) -> Callable[[], None]:
    """A step of the plain loop on this run's model, batch, optimizer and precision, without HAM."""
    if run.ham:
        run.ham.remove()
    images, classes = run.loaders.train.batch
    cfg = run.cfg.compute
    if cfg.channels_last:
        images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=cfg.amp):
            logits = run.model(images)
        F.cross_entropy(logits.float(), classes).backward()
        run.optimizer.step()
        run.optimizer.zero_grad()

    return step


def whole(run: Run) -> Callable[[], None]:
    """A step of the repository's loop, its loss counted."""

    def step() -> None:
        run.tally.step(run.step, train_step(run, run.loaders.train.batch))
        run.step += 1

    return step


def seconds(act: Callable[[], object]) -> float:
    """Time of one call, the device's work included."""
    wait()
    begin = time.perf_counter()
    act()
    wait()
    return time.perf_counter() - begin


def wait() -> None:
    """For the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step_rows(model: str, batch_size: int, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Median time of a step of every variant, interleaved."""
    variants = {"bare torch": bare(make(model, "dense", False, batch_size, tiny))}
    for method in METHODS:
        for ham in (False, True) if method != "m * w" else (False,):
            name = f"{method} + HAM" if ham else method
            variants[name] = whole(make(model, method, ham, batch_size, tiny))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in tqdm(range(rounds + 1), desc=f"steps of {model}", leave=False):
        for name, step in variants.items():
            taken = seconds(step)
            if number:  # the first allocates and tunes
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
    """Share of HAM, AC/DC and RigL in a ResNet18's step on CIFAR-100 at batch 128."""
    runs = {
        part: make("resnet18", "dense" if part == "HAM" else part, part == "HAM", 128, tiny)
        for part in BUDGETS
    }
    step = whole(make("resnet18", "dense", False, 128, tiny))
    step_time = statistics.median([seconds(step) for _ in range(rounds + 1)][1:])
    rows = []
    for part, run in tqdm(runs.items(), desc="overheads", leave=False):
        forward_backward(run, run.loaders.train.batch)
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
    """What the part adds to a step."""
    if part == "HAM":
        run.ham._step(run.optimizer, (), {})
    else:
        run.sparsifier.after_backward(1, run.optimizer)  # no update at step 1
        run.sparsifier.add_decay()
        run.sparsifier.after_step()


def _update(run: Run) -> None:
    if run.sparsifier.after_backward(run.sparsifier.interval, run.optimizer):
        raise RuntimeError("RigL did not rewire")


@contextmanager
def data_sets(quick: bool) -> Iterator[dict[str, tuple[Data, int]]]:
    """Name -> data set and batch size, of those that are there; the rest is told."""
    data = Path(os.environ.get("HAM_DATA", ROOT.parent / "shared" / "data"))
    found: dict[str, tuple[Data, int]] = {"digits": (Digits(), 64)}
    with tempfile.TemporaryDirectory() as folder:
        if (data / "cifar-100-python").is_dir():
            found["CIFAR-100"] = (Cifar100(root=str(data / "cifar-100-python")), 512)
        photos = data / "photos"
        if photos.is_dir() and not quick:
            cores = os.cpu_count() or 1
            shape = dict(num_classes=5, workers=cores)
            found["image folder, 224 px"] = (ImageNetFolder(root=str(photos), **shape), 48)
            script = [sys.executable, str(ROOT / "scripts" / "write_beton.py"), "--from", str(photos)]
            done = subprocess.run([*script, "--to", folder], capture_output=True)
            if done.returncode == 0:
                found["FFCV, 224 px"] = (ImageNetFFCV(root=folder, **shape), 48)
        yield found


def pipeline_rows(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Images per second of each data set's training batches, the best of a few epochs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with data_sets(quick) as found:
        for name, (data, batch_size) in tqdm(found.items(), desc="pipelines", leave=False):
            try:
                train = data.load(batch_size=batch_size, seed=0, device=device).train
            except DataError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            rates = []
            for epoch in range(max(2, min(rounds, 4))):
                images: list[int] = []
                taken = seconds(lambda t=train, e=epoch, i=images: _read(t.batches(e), i))
                rates.append(sum(images) / taken)
            rows.append({"pipeline": name, "batch_size": batch_size, "images_per_second": max(rates)})
    return rows


def _read(batches: Iterator[tuple[Tensor, Tensor]], images: list[int]) -> None:
    images.extend(len(classes) for _, classes in batches)


def table(results: dict[str, Any]) -> str:
    """All results as markdown."""
    lines = ["| pipeline alone | images a batch | images / s |", "|---|---|---|"]
    for r in results["pipelines"]:
        lines.append(f"| {r['pipeline']} | {r['batch_size']} | {r['images_per_second']:,.0f} |")
    lines += [
        "",
        "| model | images a step | step | median ms | images / s | / bare |",
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
        verdict = "kept" if r["share"] <= bound else "exceeded"
        lines.append(
            f"| {r['part']} | {r['ms']:.2f} | {100 * r['share']:.2f} % | {100 * bound:g} % | {verdict} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant")
    parser.add_argument("--batch", type=int, help="images a step, of all models; 8 (ResNet18: 128) on a CPU")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="a tiny ResNet18 and two rounds: does it work?")
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
