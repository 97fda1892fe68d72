"""Turn finished runs into committed records.

    python scripts/collect.py                        # runs/<name>/seed<k>, the paper's setting
    python scripts/collect.py out/cells.tar.gz       # the archive that benchmarks/gpu.sh writes
    python scripts/collect.py --demo digits          # runs scaled down to the digits

Writes results/runs/<name>/seed<k>.json and, beside it, the epochs in seed<k>.metrics.jsonl; for a demo
results/demo/<exp>/seed<k>.json, with epochs only where a figure shows the curve. An existing record is kept,
unless its epochs are missing. Runs that cannot become records are reported, one line each. Exit status: 0 all
collected, 1 a run was left out, 2 wrong use or a damaged archive.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain, printable
from ham.files import ROOT, short_path
from ham.report.collect import CollectResult, UsageError, collect
from ham.report.odd_files import check_results, check_target
from ham.report.records import DEMOS, RESULTS
from ham.report.spec import PlanError


def main(argv: list[str] | None = None) -> int:
    """Collect finished runs; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="folders of runs or archives (default: runs)")
    parser.add_argument("--demo", default="", choices=DEMOS, help="collect scaled-down runs instead")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the records (default: results)"
    )
    args = parser.parse_args(argv)
    try:
        check_target("--results", args.results)
        if args.results.exists():
            check_results(args.results, is_read=False)
        result = collect(args.sources or [ROOT / "runs"], args.demo, args.results)
    except (UsageError, PlanError, OSError) as error:
        print(f"collect.py: {explain(error)}", file=sys.stderr)
        return 2
    print_result(result, args.demo)
    return 1 if result.left_out or result.damaged else 0


def print_result(result: CollectResult, demo: str) -> None:
    """Print the new records and how many runs have none."""
    for line in result.damaged:
        print(printable(f"collect.py: {line}"), file=sys.stderr)
    for path in map(short_path, result.written):
        print(printable(path))
    for source in result.empty:
        print(printable(f"{short_path(source)}: no run has finished there"))
    counts = (len(result.written), result.existing, len(result.left_out))
    print("new records: {}, already recorded: {}, left out: {}".format(*counts))
    if result.other_scale:
        other = "of the paper's setting (without --demo)" if demo else "scaled down (--demo)"
        print(f"runs that are {other}: {result.other_scale}")
    if result.grid_points:
        print(f"runs of search grids (recorded by scripts/node_grid.py): {result.grid_points}")
    for line in result.left_out:
        print(f"collect.py: left out {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_script(main))
