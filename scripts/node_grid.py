"""Evaluate the search for (alpha, beta) of Tables 16 and 19: all pairs of a set and architecture.

    python scripts/sweep.py --grid node/cora_sage --local   # the runs
    python scripts/node_grid.py --runs runs                 # record complete grids, write the page

A record is results/node_grid/<set>_<arch>.json; the page results/tables/node_grid.md is made of the records
alone. Needs no torch. Exit status: 0 done, 1 a grid was left out, 2 wrong use or no grid.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain, printable
from ham.files import atomic_write_text
from ham.report.grid import FOLDER, read_all, record_all
from ham.report.grid_page import PAGE, page
from ham.report.odd_files import check_file_target, check_folder, check_target
from ham.report.spec import PlanError


def main(argv: list[str] | None = None) -> int:
    """Record grids and write the page; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="first record the complete grids of these run directories")
    records = "folder of the recorded grids (default: results/node_grid)"
    parser.add_argument("--records", type=Path, default=FOLDER, metavar="DIR", help=records)
    parser.add_argument("--to", type=Path, default=PAGE, metavar="FILE", help="the page to write")
    args = parser.parse_args(argv)
    try:
        if args.runs:
            check_folder("--runs", args.runs)
        check_file_target("--to", args.to)
        if args.runs:
            check_target("--records", args.records)
        elif os.path.lexists(args.records):
            check_folder("--records", args.records)
        problems = record_all(args.runs, args.records) if args.runs else []
        grids, invalid = read_all(args.records)
        problems += invalid
        for problem in problems:
            print(f"node_grid.py: left out {problem}", file=sys.stderr)
        if not grids and not invalid:
            raise PlanError(
                f"no complete grid in {args.records}: run python scripts/sweep.py --grid EXP --local first"
            )
        if not grids:
            return 2
        args.to.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(args.to, page(grids))
    except (PlanError, OSError) as error:
        print(f"node_grid.py: {explain(error)}", file=sys.stderr)
        return 2
    print(printable(args.to))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
