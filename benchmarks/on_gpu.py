"""What needs a GPU, in slices that end by themselves: its tests, the throughput, the cells of Table 7.

    benchmarks/gpu.sh [--seconds 540] [--jobs 3] [--tiny] [tests] [bench] [cells]

`cells` trains the next runs of Table 7 that have neither a summary in runs/gpu nor a record in results/runs,
several side by side. Before the time is up they are asked to save and stop, and the next slice goes on with
them. A run that fails twice is left out; runs/gpu/failures.json says why, and without that file it is tried
anew. What is worth keeping of the finished runs goes to $OUT (out/ if not set) as one archive, cells.tar.gz,
without places on this machine; `python scripts/collect.py out/cells.tar.gz` makes records of it.

Exit status: 0 nothing is left to do, 1 something failed, 2 wrong use or missing data, 85 runs are left: the
same command again goes on, 130 Ctrl-C (`cells` then has its runs save, as at the end of its time: 85).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from cells import STOPPED, UsageError, say, train
from study import ROOT, Cell, Study, placeless_text

from ham.report import plan
from ham.report.records import RECORDS

STAGES = ("tests", "bench", "cells")
SEEDS = (0, 1, 2)


def require_data(root: Path = ROOT) -> None:
    """CIFAR-100 is where the runs look for it."""
    data = Path(os.environ.get("HAM_DATA", "."))
    if (root / data / "cifar-100-python").is_dir():
        return
    cure = f"python scripts/prepare_data.py cifar100 --to {data}"
    for shared in (root / "shared", root.parent / "shared"):
        maker = shared / "bin" / "make_cifar100.py"
        if (shared / "data" / "cifar100").is_dir() and maker.is_file():
            place = os.path.relpath(maker, root)
            cure = f"python {place} {data} && {cure}"
            break
    else:
        cure += " [--from DIR_OR_TARGZ]"
    raise UsageError(
        f"CIFAR-100 is not at {data / 'cifar-100-python'}: run {cure}; $HAM_DATA names the folder"
    )


def require_gpu() -> None:
    """A GPU is there, and so is the commit that the records will name."""
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", ask], stderr=subprocess.DEVNULL).returncode:
        raise UsageError("torch sees no GPU here; `benchmarks/gpu.sh cells --tiny` tries it without one")


def require_commit(root: Path = ROOT) -> None:
    """The records will name the commit of this code."""
    git = ["git", "rev-parse", "HEAD"]
    try:
        known = subprocess.run(git, cwd=root, capture_output=True).returncode == 0
    except OSError:
        known = False
    if not known and not os.environ.get("HAM_COMMIT"):
        raise UsageError(
            "git knows no commit here: set HAM_COMMIT to what git rev-parse HEAD says of this code"
        )


def tests(out: Path, seconds: float) -> int:
    """tests/gpu; what pytest says goes to tests.txt."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "--no-header"]
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        say(f"tests: not done within {seconds:.0f} s")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    said = placeless_text(done.stdout + done.stderr)
    (out / "tests.txt").write_text(said)
    say("tests: " + (said.strip().splitlines() or ["pytest said nothing"])[-1])
    return 0 if done.returncode == 0 and " passed" in said else 1


def bench(out: Path, seconds: float) -> int:
    """benchmarks/throughput.py; its numbers go to throughput.json."""
    if not (ROOT / "benchmarks" / "throughput.py").exists():
        say("bench: benchmarks/throughput.py is not here: left out")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "benchmarks/throughput.py", "--json", str(out / "throughput.json")]
    try:
        return 1 if subprocess.run(command, cwd=ROOT, timeout=seconds).returncode else 0
    except subprocess.TimeoutExpired:
        say(f"bench: not done within {seconds:.0f} s")
        return 1


def full(args: argparse.Namespace) -> Study:
    """Table 7 as it is in the paper."""
    base = (ROOT / "configs" / "base" / "cifar100_rn18.yaml").read_text()
    epochs = int(re.search(r"^epochs: (\d+)$", base, re.MULTILINE)[1])
    return Study(_order(args), args.runs or Path("runs/gpu"), epochs, records=RECORDS)


def tiny(args: argparse.Namespace) -> Study:
    """The same runs scaled down to a few epochs on the digits, to try the script on a CPU."""
    overrides = ("+demo=digits", f"epochs={args.epochs}")
    return Study(_order(args), args.runs or Path("runs/tiny"), args.epochs, overrides)


def _order(args: argparse.Namespace) -> tuple[Cell, ...]:
    """Seed by seed, so that the whole table is there early and then gains in certainty."""
    names = args.experiments or [cell.exp for cell in plan.table("7").cells]
    return tuple(Cell(exp, seed) for seed in args.seeds for exp in names)


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="tests|bench|cells", help="all, in this order, if none")
    parser.add_argument("--seconds", type=float, default=540, help="within which this ends (540)")
    parser.add_argument("--jobs", type=int, default=3, help="runs side by side (3)")
    parser.add_argument("--experiments", type=_list, help="a,b,... (Table 7's eight)")
    parser.add_argument("--seeds", type=_numbers, default=SEEDS, help="a,b,... (0,1,2)")
    parser.add_argument("--runs", type=Path, help="where run directories go (runs/gpu, or runs/tiny)")
    parser.add_argument("--tiny", action="store_true", help="scaled down to the digits, on a CPU")
    parser.add_argument("--epochs", type=int, default=4, help="of a run with --tiny (4)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Carry the stages out; returns the exit status."""
    began = time.monotonic()
    parser = _parser()
    args = parser.parse_args(argv)
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"no stage is called {min(unknown)}: choose from {', '.join(STAGES)}")
    if args.jobs < 1 or args.seconds <= 0:
        parser.error("--jobs and --seconds must be above 0")
    chosen = [stage for stage in STAGES if stage in args.stages or not args.stages]
    out, deadline = Path(os.environ.get("OUT", ROOT / "out")).absolute(), began + args.seconds
    try:
        if "cells" in chosen and not args.tiny:
            require_data()
            require_commit()
        if not args.tiny:
            require_gpu()
        statuses = []
        for stage in chosen:
            left = deadline - time.monotonic()
            if stage == "cells":
                grace = min(30.0, args.seconds / 4)
                study = tiny(args) if args.tiny else full(args)
                statuses.append(train(study, jobs=args.jobs, deadline=deadline, grace=grace, out=out))
            else:
                statuses.append({"tests": tests, "bench": bench}[stage](out, left / 2))
    except UsageError as error:
        print(f"gpu.sh: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu.sh: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"gpu.sh: {error}; mend that and start the same command again to go on", file=sys.stderr)
        return 1
    return next((status for status in (2, STOPPED, 1) if status in statuses), 0)


if __name__ == "__main__":
    sys.exit(main())
