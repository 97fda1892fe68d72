"""Write docs/benchmarks.md from benchmarks/page.md and the results in benchmarks/results.

    python benchmarks/page.py            # after a benchmark: make bench runs all of them
    python benchmarks/page.py --print    # also show the page

page.md has the text, with the name of a table or a figure in braces where it belongs.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from roofline import GPUS, milliseconds

HERE = Path(__file__).parent
RESULTS, TEMPLATE = HERE / "results", HERE / "page.md"
PAGE = HERE.parent / "docs" / "benchmarks.md"
NOTE = "<!-- benchmarks/page.py writes this page from benchmarks/page.md: change it there -->\n"
MODELS = {"resnet18": "ResNet18", "resnet50": "ResNet50", "deit": "DeiT-Small", "llama1b": "Llama 3.2 1B"}
NOT_MEASURED = "not measured yet"
BARE, LOOP = "bare step", "ham.run's step"
SGD, OURS, TRACKED = "SGD fused", "SGD fused + HAM", "SGD fused + HAM, track_clamped"
WITHOUT_C = "SGD fused + HAM, no C compiler"
AUTHORS = "SGD fused + authors' update"
FORMULAS = {
    "fused": "HAM's default; in C where there is a compiler",
    "compiled": "in C",
    "fused, no C compiler": "torch's operations, in blocks that stay in the cache",
    "foreach": "by torch's multi-tensor kernels",
    "reference": "tensor by tensor",
}
GPU = "A100 80 GB"
"""Where the share of what is added is computed."""

Results = dict[str, Any]


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_spread(value: float, spread: Sequence[float] | None, digits: int = 1) -> str:
    """The value, and the smallest and largest one where they were recorded."""
    text = f"{value:,.{digits}f}"
    return f"{text} ({spread[0]:,.{digits}f} to {spread[1]:,.{digits}f})" if spread else text


def ham(r: Results) -> dict[str, str]:
    """HAM on ResNet50's parameters."""
    ms, spread, peak = r["median_ms"], r.get("spread_ms", {}), r["peak_mib_added"]
    labels = {
        SGD: ("torch SGD with momentum, fused", "its momentum"),
        OURS: ("torch SGD + HAM", _more(r["bytes_kept_by_ham"])),
        TRACKED: ("the same, clamped exponents counted as in ham.run", "two counts"),
        WITHOUT_C: ("torch SGD + HAM, no C compiler", "nothing more"),
        AUTHORS: ("torch SGD + the authors' published update", _more(r.get("bytes_kept_by_authors", 0))),
    }
    rows = [
        (label, with_spread(ms[name], spread.get(name)), f"{ms[name] / ms[SGD]:.1f}", kept)
        + (f"{peak[name]:.0f} MiB" if name in peak else "-",)
        for name, (label, kept) in labels.items()
        if name in ms
    ]
    added = ms[AUTHORS] - ms[SGD]
    alone = []
    for implementation, how in FORMULAS.items():
        if (name := f"HYP* alone, {implementation}") in ms:
            ratios = (f"{ms[name] / ms[SGD]:.2f}", f"{added / ms[name]:.0f}")
            alone.append((f"{implementation}: {how}", with_spread(ms[name], spread.get(name)), *ratios))
    return {
        "ham": markdown(("step", "median ms", "/ SGD", "memory kept", "peak added"), rows),
        "ham_alone": markdown(("formula", "median ms", "/ SGD", "authors' update / this"), alone),
        "ham_added": f"{ms[OURS] - ms[SGD]:.1f}",
        "authors_over_ours": f"{ms[AUTHORS] / ms[OURS]:.0f}",
    }


def _more(bytes_kept: int) -> str:
    return f"{bytes_kept:,} bytes more" if bytes_kept else "nothing more"


def masks(r: Results) -> dict[str, str]:
    """Mask updates on ResNet50's weights."""
    spread = r.get("spread_s", {})
    rows = [(name, with_spread(s, spread.get(name), 2)) for name, s in r["median_s"].items()]
    return {"masks": markdown(("operation", "median s"), rows), "mask_sparsity": f"{100 * r['sparsity']:g} %"}


def throughput(r: Results) -> dict[str, str]:
    """Pipelines, complete steps and what each part adds to one."""
    overheads = {row["part"]: row for row in r["overheads"]}
    parts = [
        (part, with_spread(row["ms"], row.get("spread_ms")), f"{100 * row['share']:.1f} %")
        if (row := overheads.get(part))
        else (part, NOT_MEASURED, "")
        for part in ("HAM", "AC/DC", "RigL", "STR", "m * w")
    ]
    models = list(dict.fromkeys(row["model"] for row in r["steps"]))
    steps: dict[str, list[str]] = {}
    for row in r["steps"]:
        text = with_spread(row["ms"], row.get("spread_ms"), 0)
        steps.setdefault(row["step"], []).append(f"{text} | {row['over_bare']:.2f}")
    head = ("step", *(word for model in models for word in (f"{MODELS[model]}, ms", "/ bare")))
    speeds = [
        (row["pipeline"], row["batch_size"], f"{row['images_per_second']:,.0f}") for row in r["pipelines"]
    ]
    return {
        "hardware": f"{r['hardware']['cores']} CPU cores ({r['hardware']['cpu']})",
        "overheads": markdown(("part", "ms", "share of the step"), parts),
        "step_batch": ", ".join(sorted({str(row["batch_size"]) for row in r["steps"]})),
        "steps": markdown(head, [(name, *values) for name, values in steps.items()]),
        "pipelines": markdown(("pipeline alone", "batch size", "images/s"), speeds),
    }


def loops(r: Results) -> dict[str, str]:
    """Epochs and pipelines beside those of others."""
    names = {"resnet18": "ResNet18", "deit_tiny": "DeiT-Tiny"}
    epochs = [
        (names[row["model"]], with_spread(row["seconds"]["ours"], row["spread"]["ours"], 2))
        + tuple(
            with_spread(row[key][peer], row.get(f"{key}_spread", {}).get(peer), 2)
            for peer in ("timm", "bare")
            for key in ("steps_over", "over")
        )
        + (f"{row['after_steps']:.2f}",)
        for row in r["epochs"]
    ]
    head = ("epoch", "ours, s", "steps: timm / ours", "epoch: timm / ours")
    head += ("steps: bare / ours", "epoch: bare / ours", "ours after the steps, s")
    rates = [
        (row["pipeline"], row["workers"])
        + tuple(
            with_spread(row["images_per_second"][name], row["spread"][name], 0)
            for name in ("ours", row["peer"])
        )
        + (row["peer"], with_spread(row["over_peer"], row.get("over_peer_spread"), 2))
        for row in r["pipelines"]
    ]
    first = r["epochs"][0]
    versions = list(r.get("versions", {}).items()) or [("timm",), ("FFCV",)]
    return {
        "epochs": markdown(head, epochs),
        "epoch_steps": str(first["steps"]),
        "epoch_batch": str(first["batch_size"]),
        "peer_images": str(r["pipelines"][0]["images"]) if rates else NOT_MEASURED,
        "peers": markdown(
            ("pipeline", "workers", "ours, images/s", "peer, images/s", "peer", "ratio"), rates
        ),
        "peer_versions": " and ".join(" ".join(peer) for peer in versions),
        "loop_threads": "one core" if r["threads"] == 1 else f"{r['threads']} cores",
    }


def graphs(r: Results) -> dict[str, str]:
    """The lowest and highest ratio of each architecture."""
    rows = []
    for arch in dict.fromkeys(row["arch"] for row in r["rows"]):
        own = [row for row in r["rows"] if row["arch"] == arch and "ratio" in row]
        low, high = (pick(own, key=lambda row: row["ratio"]) for pick in (min, max))
        rows.append((arch, len(own), *(f"{row['ratio']:.1f} ({row['set']})" for row in (low, high))))
    return {"graphs": markdown(("layers", "sets", "lowest ratio", "highest ratio"), rows)}


def molecules(r: Results) -> dict[str, str]:
    """Graph classification."""
    labels = {
        "step": "training step",
        "messages": "a batch, and the messages of four layers, forward and backward",
    }
    rows = [
        (label, *(with_spread(r[name][side], spread.get(side)) for side in ("ours", "stock")))
        + (f"{r[name]['ratio']:.1f}",)
        for name, label in labels.items()
        for spread in [r[name].get("spread", {})]
    ]
    return {
        "molecules": markdown(("CPU ms", "ours", "PyTorch Geometric", "ratio"), rows),
        "molecule_threads": "one core" if r["threads"] == 1 else f"{r['threads']} cores",
        "molecule_epoch": f"{r['epoch_seconds']:,}",
    }


def counts(r: Results) -> dict[str, str]:
    """A table of each model."""
    parts = []
    for name, facts in r["models"].items():
        batch = f" at batch size {facts['batch_size']}" if facts["batch_size"] else ", AdamW's step alone"
        parts.append(f"### {MODELS[name]}, {facts['weights'] / 1e6:,.1f} M weights{batch}")
        parts.append(count_table(facts, r["launch_us"]))
    return {
        "counts": "\n\n".join(parts),
        "cuda": str(r["cuda"]),
        "launch_us": f"{r['launch_us']:g}",
        "bandwidths": ", ".join(f"{gpu}: {speed:,} GB/s" for gpu, speed in GPUS.items()),
    }


def gpu(r: Results) -> dict[str, str]:
    """What was read of the results of one GPU."""
    times = [(name, f"{ms:.2f}") for part in ("optimizer_ms", "masks_ms") for name, ms in r[part].items()]
    shares = [
        (f"{row['part']}, added to a ResNet18 step", f"{row['ms']:.2f} ({100 * row['share']:.0f} %)")
        for row in r["overheads"]
    ]
    return {
        "gpu": markdown(("on a GPU", "ms"), [*times, *shares]),
        "gpu_hardware": f"an {r['hardware']['gpus'][0]} with torch {r['torch']}",
        "gpu_commit": r["commit"],
    }


def count_table(facts: Results, launch_us: float) -> str:
    """Launches, bytes, host syncs and time of each row; what it adds to ham.run's step, and memory."""
    rows = {row["step"]: row for row in facts["rows"]}
    base = rows.get(LOOP) or rows[BARE]
    head = ("step", "launches", "added", "GB moved", "added, bytes a weight", "host syncs")
    head += ("kept, bytes a weight", "peak, bytes a weight", *(f"{gpu}, ms" for gpu in GPUS), "time added")
    lines = []
    for name, row in rows.items():
        moved, before = (each["read"] + each["written"] for each in (row, base))
        times = {gpu: milliseconds(row, gpu, launch_us) for gpu in GPUS}
        launches = a_weight = kept = peak = share = "-"
        if name not in (BARE, LOOP):
            more = (moved - before, *(row[key] - base[key] for key in ("live", "peak")))
            a_weight, kept, peak = (f"{each / facts['weights']:.1f}" for each in more)
            launches = f"{row['launches'] - base['launches']:,}"
            share = f"{100 * (times[GPU] / milliseconds(base, GPU, launch_us) - 1):.1f} %"
        cells = (name, f"{row['launches']:,}", launches, f"{moved / 1e9:.2f}", a_weight, row["syncs"])
        lines.append((*cells, kept, peak, *(f"{ms:.2f}" for ms in times.values()), share))
    return markdown(head, lines)


def figures(results: Path = RESULTS) -> dict[str, str]:
    """Name -> text of every table and figure."""
    texts: dict[str, str] = {}
    for name, write in {
        "optimizer": ham,
        "masks": masks,
        "throughput-cpu": throughput,
        "loops": loops,
        "graphs": graphs,
        "molecules": molecules,
        "counts": counts,
        "gpu": gpu,
    }.items():
        texts |= write(json.loads((results / f"{name}.json").read_text()))
    return texts


def page(template: str, texts: dict[str, str]) -> str:
    """The template with each {name} replaced. Raises KeyError for an unknown name."""
    return NOTE + re.sub(r"\{(\w+)\}", lambda name: texts[name[1]], template)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="also show the page")
    args = parser.parse_args(argv)
    text = page(TEMPLATE.read_text(), figures())
    PAGE.write_text(text)
    if args.print:
        print(text)


if __name__ == "__main__":
    main()
