"""Train every sparsifier scaled down to scikit-learn's digits and print what came of it as one table.

    python scripts/demo_table.py [--seeds 0 1 2] [--jobs 2] [--only TEXT]

These are scaled-down runs: they show that every method trains and reaches its sparsity, and enter no table of
the paper. Runs that are done are not repeated, stopped ones go on; summaries are kept in results/demo, the
table in results/tables/demo.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from records import record_path, write_record
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RECORDS, TABLE = ROOT / "results" / "demo", ROOT / "results" / "tables" / "demo.md"
COLUMNS = {"": "base", "_sign_in": "+ Sign-In", "_ham": "+ HAM"}
METHODS = {
    "random": "Random",
    "acdc": "AC/DC",
    "rigl": "RiGL",
    "spred": "spred",
    "pilot": "PILoT",
    "str": "STR",
    "snip": "SNIP",
    "synflow": "SynFlow",
    "mask_acdc": "AC/DC mask",
    "mask_rigl": "RiGL mask",
    "mask_str": "STR mask",
}
ABOUT = """\
# Scaled-down runs at 90 % sparsity

Not the paper's setting: a narrow ResNet50 with one bottleneck per stage on scikit-learn's 8 x 8 digits (1,437
training and 360 test images), 40 epochs, on a CPU. Last-epoch test top-1 in percent, mean +- sample standard
deviation (number of seeds), then the achieved sparsity; "-": the paper has no such cell. Differences of a few
tenths are single images: this table ranks nothing. Made by `python scripts/demo_table.py`.
"""


def experiments() -> list[str]:
    """Names of the experiments at 90 %, those whose masks others take first."""
    names = [f"{method}{column}_s90" for method in METHODS for column in COLUMNS]
    return [name for name in names if (ROOT / "configs" / "exp" / f"{name}.yaml").exists()]


def train(name: str, seed: int, runs: Path) -> str | None:
    """Carry one run out in a process of its own and keep its summary; returns what went wrong."""
    command = [sys.executable, str(ROOT / "train.py"), f"+exp={name}", "+demo=digits", f"seed={seed}"]
    single = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, f"runs_dir={runs}"], capture_output=True, text=True, env=single)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return f"{name} seed {seed}: {said[-1]}"
    summary = json.loads((runs / f"{name}-digits" / f"seed{seed}" / "summary.json").read_text())
    write_record(record_path(name, seed, RECORDS), summary)
    return None


def cell(name: str) -> str:
    """Accuracy and achieved sparsity over the seeds that have a record; "not run" without one."""
    records = [json.loads(path.read_text()) for path in sorted((RECORDS / name).glob("seed*.json"))]
    if not records:
        return "not run" if name in experiments() else "-"
    top1 = [r["metrics"]["top1_last"] for r in records]
    sparsity = statistics.mean(r["sparsity"]["overall"] for r in records)
    spread = f" +- {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    return f"{statistics.mean(top1):.2f}{spread} ({len(top1)}), {100 * sparsity:.2f} %"


def table() -> str:
    """The table as markdown."""
    head = ["method", *COLUMNS.values()]
    rows = [[label, *(cell(f"{m}{c}_s90") for c in COLUMNS)] for m, label in METHODS.items()]
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join([ABOUT, *lines, ""])


def main() -> int:
    """Train what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--only", default="", help="experiments whose name holds this text")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run directories go")
    args = parser.parse_args()
    chosen = [name for name in experiments() if args.only in name]
    failures: list[str] = []
    for wave in ([n for n in chosen if "mask_" not in n], [n for n in chosen if "mask_" in n]):
        jobs = [(name, seed) for seed in args.seeds for name in wave]
        with ThreadPoolExecutor(args.jobs) as pool:
            ends = pool.map(lambda job: train(*job, args.runs), jobs)
            failures += filter(None, tqdm(ends, total=len(jobs), unit="run"))
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table())
    print(table())
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
