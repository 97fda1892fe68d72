"""Write the pages that link and count the results: results/README.md, tables/coverage.md, figures/README.md.

    python scripts/index.py    # after tables.py, figures.py and the others; make results runs them all

Needs no torch. Exit status: 0 done, 1 a record was left out, 2 wrong use, or a file has no caption.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain, printable
from ham.files import short_path
from ham.report.index import write_index
from ham.report.odd_files import check_results
from ham.report.records import RESULTS
from ham.report.spec import PlanError


def main(argv: list[str] | None = None) -> int:
    """Write the pages; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the results (default: results)"
    )
    args = parser.parse_args(argv)
    try:
        check_results(args.results)
        paths, problems = write_index(args.results)
    except (PlanError, OSError) as error:
        print(f"index.py: {explain(error)}", file=sys.stderr)
        return 2
    for path in paths:
        print(f"wrote {printable(short_path(path))}")
    for problem in dict.fromkeys(problems):
        print(f"index.py: left out {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
