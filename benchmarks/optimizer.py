"""Time and memory of HAM on ResNet50's parameters, compared with torch's fused SGD and the authors' update.

    python benchmarks/optimizer.py [--device cuda] [--json results.json]

The variants alternate, so that noise of the machine affects all equally; medians are printed. The authors'
update is reimplemented from a description of their wrapper: the same operations in the same order.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from timing import interleaved, medians, spreads
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ham import HAM, hyperbolic_step_
from ham.optim import implementations
from ham.optim.implementations import IMPLEMENTATIONS
from ham.run.provenance import hardware

LR, ALPHA, BETA = 1e-4, 200.0, 1e-3  # a small rate keeps the weights in range over hundreds of steps
PLAIN, OURS, AUTHORS = "SGD fused", "SGD fused + HAM", "SGD fused + authors' update"
TRACKED = "SGD fused + HAM, track_clamped"
WITHOUT_C = "SGD fused + HAM, no C compiler"
ALONE = "HYP* alone, {}"
BLOCKS = "fused, no C compiler"


def resnet50_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    for p in model.parameters():
        p.grad = torch.randn_like(p).mul_(1e-3)
    return model


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-5, fused=True)


@torch.no_grad()
def authors_update_(params: list[nn.Parameter], lr: float) -> None:
    for p in params:
        if p.isnan().any() or p.grad.isnan().any():
            continue
        if p.ndim >= 2:
            backup, nonzero = p.clone(), p != 0
            w = p[nonzero]
            exponent = torch.clamp(lr * (-ALPHA * torch.sign(w) * p.grad[nonzero] - BETA), -5, 5)
            p[nonzero] = w * torch.exp(exponent)
            if p.isnan().any():
                p.copy_(backup)
        norm = p.norm()
        if norm > 1000:
            p.mul_(1000 / norm)
    nn.utils.clip_grad_norm_(params, 20)


def plain_step() -> tuple[Callable[[], object], list[object]]:
    optimizer = sgd(resnet50_with_gradients())
    return optimizer.step, [optimizer]


def ham_step(**options: bool | str) -> tuple[Callable[[], object], list[object]]:
    model = resnet50_with_gradients()
    optimizer = sgd(model)
    ham = HAM(optimizer, model=model, alpha=ALPHA, beta=BETA, **options)
    return optimizer.step, [optimizer, ham]


def authors_step() -> tuple[Callable[[], object], list[object]]:
    model = resnet50_with_gradients()
    params, optimizer = list(model.parameters()), sgd(model)

    def step() -> None:
        optimizer.step()
        authors_update_(params, LR)

    return step, [optimizer]


def hyp_step(implementation: str) -> tuple[Callable[[], object], list[object]]:
    """HYP* alone, on the convolutions and the last layer's weight."""
    params = [p for p in resnet50_with_gradients().parameters() if p.ndim >= 2]
    settings = {"lr": LR, "alpha": ALPHA, "beta": BETA, "implementation": implementation}
    return partial(hyperbolic_step_, params, [p.grad for p in params], **settings), []


def without_c(build: Callable[[], tuple[Callable[[], object], list[object]]]) -> Any:
    """The variant with `fused` as it is without a C compiler."""
    step, roots = build()

    def step_without_c() -> object:
        with mock.patch.object(implementations, "_has_c", lambda weight: False):
            return step()

    return step_without_c, roots


VARIANTS: dict[str, Callable[[], tuple[Callable[[], object], list[object]]]] = {
    PLAIN: plain_step,
    OURS: ham_step,
    TRACKED: partial(ham_step, track_clamped=True),
    WITHOUT_C: partial(without_c, partial(ham_step, implementation="fused")),
    **{ALONE.format(name): partial(hyp_step, name) for name in IMPLEMENTATIONS},
    ALONE.format(BLOCKS): partial(without_c, partial(hyp_step, "fused")),
    AUTHORS: authors_step,
}


def steps() -> dict[str, Callable[[], object]]:
    """The step of each variant that this device can run."""
    runnable = {}
    for name, build in VARIANTS.items():
        step, _ = build()
        try:
            step()
        except ValueError as error:
            print(f"{name} is left out: {error}")
        else:
            runnable[name] = step
    return runnable


def reachable_bytes(roots: list[object]) -> int:
    """Bytes of the tensors reachable from `roots`: weights, gradients, state, all of HAM."""
    seen, queue, storages = set(), list(roots), {}
    while queue:
        item = queue.pop()
        if id(item) in seen or inspect.ismodule(item) or inspect.isclass(item) or inspect.isroutine(item):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
            queue.append(item.grad)
        else:
            queue.extend(gc.get_referents(item))
    return sum(storages.values())


def kept_bytes(name: str) -> int:
    """Bytes held after two steps, in addition to the weights and gradients that existed before."""
    step, roots = VARIANTS[name]()
    before = reachable_bytes(roots)
    step()
    step()
    return reachable_bytes(roots) - before


def peak_mib(name: str, device: str) -> float:
    """Peak memory of this process or of the GPU after three steps; run it in a process of its own."""
    step, _ = VARIANTS[name]()
    for _ in range(3):
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # ru_maxrss would start at the parent's size
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_in_a_new_process(name: str, device: str) -> float | None:
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, __file__, "--peak-of", name, "--device", device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed steps per variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--peak-of", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    if args.peak_of:
        print(peak_mib(args.peak_of, args.device))
        return

    times = interleaved(steps(), args.rounds, warmup=2)
    ms, spread = medians(times, 1e-3), spreads(times, 1e-3)
    kept = {name: kept_bytes(name) for name in (PLAIN, OURS, AUTHORS)}
    peaks = {name: peak_in_a_new_process(name, args.device) for name in (PLAIN, OURS, AUTHORS)}
    base_peak = peaks[PLAIN]
    print(
        f"{'ResNet50, 25.6 M parameters':32} {'median ms':>10} {'/ SGD':>7} {'kept MiB':>9} {'peak MiB':>9}"
    )
    for name, value in ms.items():
        row = f"{name:32} {value:10.2f} {value / ms[PLAIN]:7.2f}"
        row += f" {kept[name] / 2**20:9.2f}" if name in kept else f" {'':9}"
        print(row + (f" {peaks[name]:9.0f}" if peaks.get(name) else ""))
    results = {
        "hardware": hardware() | {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "rounds": args.rounds,
        "median_ms": ms,
        "spread_ms": spread,
        "ham_over_sgd": ms[OURS] / ms[PLAIN],
        "authors_over_ours": ms[AUTHORS] / ms[OURS],
        "authors_added_over_ours_alone": {
            name: (ms[AUTHORS] - ms[PLAIN]) / ms[alone]
            for name in (*IMPLEMENTATIONS, BLOCKS)
            if (alone := ALONE.format(name)) in ms
        },
        "bytes_kept_by_ham": kept[OURS] - kept[PLAIN],
        "bytes_kept_by_authors": kept[AUTHORS] - kept[PLAIN],
        "peak_mib_added": {name: peak - base_peak for name, peak in peaks.items() if peak and name != PLAIN},
    }
    print(f"HAM + SGD / SGD: {results['ham_over_sgd']:.2f}")
    print(f"authors' / ours: {results['authors_over_ours']:.1f}")
    print(f"kept by HAM: {results['bytes_kept_by_ham']} bytes")
    for name, peak in results["peak_mib_added"].items():
        print(f"added to the peak by {name}: {peak:.0f} MiB")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
