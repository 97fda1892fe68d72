"""Launches, bytes, host syncs and memory of training steps on a GPU, counted without one.

    python benchmarks/counts.py [--models resnet18 resnet50 deit llama1b] [--json PATH] [--operations]

The steps run on a simulated device. They are those of `ham.run` with the paper's experiments: model, batch
size, mixed precision, optimizer; the "bare step" is a plain loop of torch. Llama has no training step, only
the optimizer's on parameters of its shapes. dispatch_counter.py says what is a launch and what a byte.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from dispatch_counter import DispatchCounter
from multi_tensor import LIMITS
from roofline import GPUS, LAUNCH_US, milliseconds
from simulated_device import NAME, SimulatedDevice, run_and_exit
from torch import nn
from torch.nn import functional as F
from training_steps import METHODS, MODELS, bare, full_step, make

from ham import HAM
from ham.optim.hyperbolic import IMPLEMENTATIONS
from ham.run.state import Run

LLAMA = "llama1b"
BARE, LOOP = "bare step", "ham.run's step"
NOT_COUNTED = {"fused": "for the CPU alone", "compiled": "torch.compile's kernels are not dispatched"}
"""Implementation of HAM -> why it has no rows."""

COUNTED = "track_clamped"
"""HAM counts the clamped exponents: ham.run does, the library only if asked."""

STEPS = {
    "dense": {LOOP: 3},
    "RigL": {"RigL": 3, "RigL, mask update": 100},
    "GMP": {"GMP": 101, "GMP, mask update": 100},
    "STR": {"STR": 4, "STR, measurement": 3},
}
"""Method -> row -> number of the step, where steps differ; of the others, step 3 is counted."""


def llama_shapes() -> Iterator[tuple[int, ...]]:
    """Shapes of Llama 3.2 1B's parameters; the output layer is the embedding."""
    width, keys, hidden = 2048, 512, 8192
    yield 128256, width
    for _ in range(16):
        yield from ((width, width), (keys, width), (keys, width), (width, width))  # q, k, v, o
        yield from ((hidden, width), (hidden, width), (width, hidden), (width,), (width,))
    yield (width,)


def flash_attention(query: Any, key: Any, value: Any, **options: Any) -> Any:
    """The kernel that CUDA chooses for attention in bfloat16 without a mask."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


class Simulation:
    """Counts steps on a new simulated device, which has to be entered.

    Args:
        cuda: version of CUDA.
    """

    def __init__(self, cuda: int) -> None:
        self.device, self.counter = SimulatedDevice(), DispatchCounter(NAME, cuda)

    @contextmanager
    def used(self) -> Iterator[Simulation]:
        """Enter the device and the counter."""
        attention = patch.object(F, "scaled_dot_product_attention", flash_attention)
        with self.device.used(), attention, self.counter:
            yield self

    def count(self, name: str, step: Callable[[], object], *, operations: bool = False) -> dict[str, Any]:
        """What one call does; `live`: bytes that exist after it, `peak`: the most that did during it."""
        gc.collect()
        gc.disable()  # a collection would free memory at any moment
        counter = self.counter
        before, syncs, launches = counter.total, self.device.syncs.total(), counter.launches.copy()
        counter.peak = counter.live
        step()
        gc.enable()
        gc.collect()
        if operations:
            print(f"{name}: {_list_launches(counter.launches - launches)}")
        waits = self.device.syncs.total() - syncs
        row = {"step": name, **asdict(counter.total - before), "syncs": waits}
        return row | {"live": counter.live, "peak": counter.peak}


def _list_launches(launches: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in launches.most_common())


def ham_variants() -> list[tuple[str, str, bool]]:
    """(row, implementation, True if clamped exponents are counted)."""
    names = [name for name in IMPLEMENTATIONS if name not in NOT_COUNTED]
    return [
        (f"HAM, {name}{f', {COUNTED}' if counted else ''}", name, counted)
        for name in names
        for counted in (False, True)
    ]


def image_rows(model: str, cuda: int, operations: bool = False) -> list[dict[str, Any]]:
    """The rows of a model: a plain loop's step, ham.run's, that with HAM, that with each method."""
    batch_size, device = MODELS[model][4], torch.device(NAME)
    rows = []
    for method in METHODS:
        with Simulation(cuda).used() as simulation:
            run = make(model, method, False, batch_size, device=device)
            rows += method_rows(run, method, partial(simulation.count, operations=operations))
    with Simulation(cuda).used() as simulation:
        run = make(model, "dense", True, batch_size, device=device)
        step = full_step(run)
        step()
        for name, implementation, counted in ham_variants():
            run.ham.implementation, run.ham.track_clamped = implementation, counted
            rows.append(simulation.count(name, step, operations=operations))
    order = [BARE, LOOP, *(name for name, _, _ in ham_variants())]
    order += [name for method in METHODS for name in steps_of(method)]
    return sorted(rows, key=lambda row: order.index(row["step"]))


def steps_of(method: str) -> dict[str, int]:
    """Row -> number of the step."""
    return STEPS.get(method, {method: 3})


def method_rows(run: Run, method: str, count: Callable[..., dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a method, after a step that creates the optimizer's state."""
    run.step, step = 1, full_step(run)
    step()
    for name, number in sorted(steps_of(method).items(), key=lambda row: row[1]):
        run.step = number
        yield count(name, step)
    if method == "dense":
        yield count(BARE, bare(run))


def llama_rows(cuda: int, operations: bool = False) -> list[dict[str, Any]]:
    """AdamW's step on Llama's parameters, and the same with HAM."""
    rows = []
    for name, implementation, counted in [(BARE, "", False), *ham_variants()]:
        with Simulation(cuda).used() as simulation:
            params = [nn.Parameter(torch.empty(shape, device=NAME)) for shape in llama_shapes()]
            for p in params:
                p.grad = torch.empty_like(p)
            optimizer = torch.optim.AdamW(params, lr=1e-5, fused=True)
            if implementation:
                HAM(optimizer, implementation=implementation, track_clamped=counted)
            optimizer.step()
            rows.append(simulation.count(name, optimizer.step, operations=operations))
    return rows


def weights(model: str) -> int:
    """The model's number of parameters."""
    if model == LLAMA:
        return sum(torch.Size(shape).numel() for shape in llama_shapes())
    with SimulatedDevice().used():
        run = make(model, "dense", False, MODELS[model][3], device=torch.device(NAME))
        return sum(p.numel() for p in run.model.parameters())


def table(name: str, facts: dict[str, Any]) -> str:
    """The counts of one model as text."""
    lines = [f"{name}: {facts['weights'] / 1e6:,.1f} M weights, batch size {facts['batch_size']}"]
    times = "".join(f"{gpu + ' ms':>16}" for gpu in GPUS)
    lines.append(f"{'step':50}{'launches':>9}{'GB':>9}{'syncs':>7}{'live MiB':>10}{'peak MiB':>10}{times}")
    for row in facts["rows"]:
        memory = f"{row['live'] / 2**20:10.0f}{row['peak'] / 2**20:10.0f}"
        times = "".join(f"{milliseconds(row, gpu):16.3f}" for gpu in GPUS)
        moved = (row["read"] + row["written"]) / 1e9
        lines.append(f"{row['step']:50}{row['launches']:9}{moved:9.3f}{row['syncs']:7}{memory}{times}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*MODELS, LLAMA]
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL")
    parser.add_argument("--cuda", type=int, choices=LIMITS, default=13, help="version; it limits a launch")
    parser.add_argument("--operations", action="store_true", help="also list each row's launches")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(argv)
    run_and_exit(lambda device: write(args))


def write(args: argparse.Namespace) -> None:
    """Count, print, write."""
    setting = {
        "torch": torch.__version__.partition("+")[0],
        "cuda": args.cuda,
        "launch_us": LAUNCH_US,
    }
    models = {}
    for model in args.models:
        facts = {"weights": weights(model), "batch_size": None if model == LLAMA else MODELS[model][4]}
        rows = llama_rows if model == LLAMA else partial(image_rows, model)
        models[model] = facts | {"rows": rows(args.cuda, args.operations)}
        print(table(model, models[model]), flush=True)
    if args.json:
        merge_into(args.json, setting, models)


def merge_into(path: Path, setting: dict[str, Any], models: dict[str, Any]) -> None:
    """Write a results file; its other models stay if they were counted in the same setting."""
    before = json.loads(path.read_text()) if path.exists() else {}
    if {key: before.get(key) for key in setting} == setting:
        models = before["models"] | models
    ordered = {name: models[name] for name in (*MODELS, LLAMA) if name in models}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(setting | {"models": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
