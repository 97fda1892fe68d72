"""Write the pages that show the records in a browser.

    python scripts/report.py                 # results/site; open results/site/index.html
    python scripts/report.py --to DIR        # elsewhere

The pages need neither a server nor a network; docs/report.md says how to publish them. Needs jinja2 and
vl-convert-python, no torch. Exit status: 0 done, 1 a record was left out, 2 wrong use or a missing package.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain, printable
from ham.files import short_path
from ham.report.odd_files import check_results, check_target
from ham.report.records import RESULTS, InvalidRecord
from ham.report.spec import PlanError

PACKAGES = {"jinja2": "jinja2", "markupsafe": "jinja2", "vl_convert": "vl-convert-python"}
"""Module -> the package that has it."""


def main(argv: list[str] | None = None) -> int:
    """Write the pages; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the records (default: results)"
    )
    parser.add_argument("--to", type=Path, help="folder to write to (default: results/site)")
    args = parser.parse_args(argv)
    target = args.to or args.results / "site"
    try:
        check_results(args.results)
        check_target("--to", target)
        from ham.site.build import write_site

        paths, problems = write_site(args.results, target)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        print(f"report.py: {PACKAGES[error.name]} is missing: pip install -e '.[site]'", file=sys.stderr)
        return 2
    except (PlanError, InvalidRecord, OSError) as error:
        print(f"report.py: {explain(error)}", file=sys.stderr)
        return 2
    print(f"wrote {len(paths)} pages: open {printable(short_path(target / 'index.html'))}")
    for problem in problems:
        print(f"report.py: left out {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
