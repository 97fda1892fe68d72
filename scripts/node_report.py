"""Evaluate Tables 14, 15, 17 and 18 as paired differences, with test metrics and numbers of nodes.

    python scripts/node_report.py [--runs DIR]

Reads results/runs/node/<exp>/seed<k>.json and writes results/tables/node_reading.md; with --runs it reads
those run directories and writes node_reading.md among them. What choosing a pair gains by chance is computed
from results/node_grid. Needs no torch. Exit status: 0 done, 1 a summary or record was left out, 2 wrong use.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain, printable
from ham.files import RESULTS, atomic_write_text
from ham.report.grid import FOLDER, read_all
from ham.report.node_report import PAGE, page
from ham.report.node_rows import build_report
from ham.report.odd_files import check_file_target, check_folder
from ham.report.spec import PlanError


def main(argv: list[str] | None = None) -> int:
    """Write the page; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="read run directories instead of the committed records")
    parser.add_argument("--to", type=Path, metavar="FILE", help="the page to write")
    args = parser.parse_args(argv)
    target = args.to or (args.runs / PAGE.name if args.runs else PAGE)
    try:
        if args.runs:
            check_folder("--runs", args.runs)
        check_file_target("--to", target)
        report = build_report(args.runs)
        grids, invalid = read_all(FOLDER)
        problems = [*report.problems, *invalid]
        for problem in problems:
            print(f"node_report.py: left out {problem}", file=sys.stderr)
        if not report.rows:
            source = args.runs or RESULTS
            raise PlanError(
                f"no node run in {source}: run python scripts/sweep.py --table 17 18 --local first"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        source = "run directories" if args.runs else "the committed records"
        atomic_write_text(target, page(report, grids, source))
    except (PlanError, OSError) as error:
        print(f"node_report.py: {explain(error)}", file=sys.stderr)
        return 2
    print(printable(target))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
