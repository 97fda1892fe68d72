"""Images per second of the data pipelines and of the training step, beside a bare loop of torch.

    python benchmarks/throughput.py [--models resnet18 resnet50 deit] [--rounds 7] [--json PATH] [--quick]

Steps of all variants alternate, so that noise of the machine affects all equally; medians are printed. The
bare loop has the same model, optimizer and precision, but no sparsifier, no HAM and no logger.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from overheads import BATCH_SIZE, BUDGETS, overhead_rows
from pipelines import pipeline_rows
from timing import interleaved, medians, spreads
from training_steps import MODELS, bare, full_step, make

from ham.run.provenance import hardware

BARE = "bare torch"
TIMED = ("dense", "AC/DC", "RigL", "STR", "m * w")


def step_rows(model: str, batch_size: int, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Time of a step of every variant; the variants alternate."""
    variants = {BARE: bare(make(model, "dense", False, batch_size, tiny=tiny))}
    for method in TIMED:
        for ham in (False, True) if method != "m * w" else (False,):
            name = f"{method} + HAM" if ham else method
            variants[name] = full_step(make(model, method, ham, batch_size, tiny=tiny))
    times = interleaved(variants, rounds)
    ms, spread = medians(times, 1e-3), spreads(times, 1e-3)
    return [
        {
            "model": model,
            "batch_size": batch_size,
            "step": name,
            "ms": ms[name],
            "spread_ms": spread[name],
            "images_per_second": 1e3 * batch_size / ms[name],
            "over_bare": ms[name] / ms[BARE],
        }
        for name in variants
    ]


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
        f"| part of a ResNet18 step, CIFAR-100, batch {BATCH_SIZE} | ms | share | at most | |",
        "|---|---|---|---|---|",
    ]
    for r in results["overheads"]:
        bound = BUDGETS[r["part"]]
        verdict = "within" if r["share"] <= bound else "exceeded"
        lines.append(
            f"| {r['part']} | {r['ms']:.2f} | {100 * r['share']:.2f} % | {100 * bound:g} % | {verdict} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant")
    parser.add_argument(
        "--batch", type=int, help="batch size of all models; default on a CPU: 8 (ResNet18: 128)"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="smoke test: a tiny ResNet18 and two rounds")
    args = parser.parse_args(argv)
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
