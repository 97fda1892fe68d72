"""Time of a mask update on ResNet50's 25.5 M weights: global magnitude top-k compared with torch's functions.

    python benchmarks/masks.py [--device cuda] [--json results.json]

The variants alternate, so that noise of the machine affects all equally; medians are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from timing import interleaved, medians, spreads
from torch import Tensor

from ham.run.provenance import hardware
from pruning import prunable_weights
from pruning.allocate import kept_counts
from pruning.rigl import update_mask
from pruning.scores import magnitude
from pruning.topk import global_topk, kept_count, kth_largest

SPARSITY = 0.9
OURS = "global magnitude top-k"


def variants() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    weights = prunable_weights(torchvision.models.resnet50())
    values = {name: weight.value for name, weight in weights.items()}
    kept = kept_count(sum(v.numel() for v in values.values()), SPARSITY)
    flat = torch.cat([v.abs().flatten() for v in values.values()])
    gradients = {name: torch.randn_like(v) for name, v in values.items()}
    layers = kept_counts({n: tuple(v.shape) for n, v in values.items()}, SPARSITY, "erk")
    masks = {n: torch.rand_like(v).flatten().argsort().view(v.shape) < layers[n] for n, v in values.items()}

    def rigl() -> list[Tensor]:
        return [update_mask(v, gradients[n], masks[n], int(layers[n] * 0.3)) for n, v in values.items()]

    return {
        OURS: lambda: global_topk(magnitude(values), kept),
        "its threshold alone": lambda: kth_largest(flat, kept),
        "torch.kthvalue, threshold alone": lambda: torch.kthvalue(flat, len(flat) - kept + 1),
        "torch.sort, threshold alone": lambda: flat.sort(descending=True).values[kept - 1],
        "RigL update of all layers": rigl,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed calls per variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    times = interleaved(variants(), args.rounds)
    seconds, spread = medians(times), spreads(times)
    print(f"{'ResNet50, 25.5 M prunable weights':36} {'median s':>9} {'/ ours':>7}")
    for name, value in seconds.items():
        print(f"{name:36} {value:9.3f} {value / seconds[OURS]:7.2f}")
    if args.json:
        facts = {"hardware": hardware() | {"threads": torch.get_num_threads(), "torch": torch.__version__}}
        content = facts | {
            "rounds": args.rounds,
            "sparsity": SPARSITY,
            "median_s": seconds,
            "spread_s": spread,
        }
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
