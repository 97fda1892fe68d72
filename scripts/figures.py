"""Draw the paper's figures as pdf and png in results/figures.

    python scripts/figures.py                     # 2a, 5, 9, 10 (curves), 11 and 12 (grids), from the records
    python scripts/figures.py --figure 2a 11      # these
    python scripts/figures.py --theory            # 1, 2b, 3, 4, 6, 7, 8, from results/theory
    python scripts/figures.py --demo digits       # demo_*: scaled-down runs, where there are any

Needs matplotlib, no torch. A figure without a record to show is not drawn. Exit status: 0 done, 1 a record
was left out, 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain, printable
from ham.files import short_path
from ham.report.odd_files import check_results, check_target
from ham.report.plan import figure_name
from ham.report.records import DEMOS, RESULTS, InvalidRecord, read_all, read_diverged
from ham.report.spec import PlanError


def main(argv: list[str] | None = None) -> int:
    """Draw the figures; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--figure", nargs="+", metavar="NAME", help="2a, 11, figure05, ...")
    choice.add_argument("--all", action="store_true", help="all figures (the default)")
    parser.add_argument("--theory", action="store_true", help="the figures of the theory instead")
    parser.add_argument("--demo", default="", choices=DEMOS, help="use scaled-down runs instead")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the records (default: results)"
    )
    parser.add_argument("--to", type=Path, help="folder to write to (default: results/figures)")
    args = parser.parse_args(argv)
    if args.theory and args.demo:
        print("figures.py: theory figures have no runs: omit --demo", file=sys.stderr)
        return 2
    folder = args.to or args.results / "figures"
    try:
        check_results(args.results)
        check_target("--to", folder)
        problems = draw(args, folder)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        print("figures.py: matplotlib is missing: pip install -e '.[run]'", file=sys.stderr)
        return 2
    except (PlanError, InvalidRecord, OSError) as error:
        print(f"figures.py: {explain(error)}", file=sys.stderr)
        return 2
    for problem in dict.fromkeys(problems):
        print(f"figures.py: left out {problem}", file=sys.stderr)
    return 1 if problems else 0


def draw(args: argparse.Namespace, folder: Path) -> list[str]:
    """Draw and print the paths; returns a line for each record that was left out."""
    from ham.report import figures, theory_figures

    problems: list[str] = []
    if args.theory:
        names = list(map(figure_name, args.figure or theory_figures.FIGURES))
        drawn = [("", theory_figures.draw(names, folder, args.results / "theory", problems))]
    else:
        records, problems = read_all(args.demo, args.results)
        diverged, damaged = read_diverged(args.demo, args.results)
        problems += damaged
        drawn = figures.draw_all(args.figure, records, folder, args.demo, problems, diverged)
    for name, paths in drawn:
        for path in paths:
            print(f"wrote {printable(short_path(path))}")
        if not paths:
            print(f"{name}: none of its runs has a record to show, not drawn")
    return problems


if __name__ == "__main__":
    sys.exit(run_script(main))
