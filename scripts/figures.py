"""Draw the paper's figures as pdf and png in results/figures.

    python scripts/figures.py                     # 2a, 5, 9, 10 (curves), 11 and 12 (grids), from the records
    python scripts/figures.py --figure 2a 11      # these
    python scripts/figures.py --theory            # 1, 2b, 3, 4, 6, 7, 8, from results/theory
    python scripts/figures.py --demo digits       # demo_*: scaled-down runs, where there are any

Needs matplotlib, no torch. A figure none of whose runs has a record is not drawn. Exit status: 0 done, 1 a
record was left out, 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ham.report.plan import full_name
from ham.report.records import DEMOS, RESULTS, InvalidRecord, read_all
from ham.report.spec import PlanError

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Draw the figures; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--figure", nargs="+", metavar="NAME", help="2a, 11, figure05, ...")
    which.add_argument("--all", action="store_true", help="all of them (the default)")
    parser.add_argument("--theory", action="store_true", help="those of the theory, all or the chosen")
    parser.add_argument("--demo", default="", choices=DEMOS, help="the scaled-down runs instead")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the records are (results)")
    parser.add_argument("--to", type=Path, help="where the figures go (results/figures)")
    args = parser.parse_args(argv)
    try:
        from ham.report import figures as drawing
        from ham.report import style
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        print("figures.py: matplotlib is missing: pip install -e '.[run]'", file=sys.stderr)
        return 2
    if not args.results.is_dir():
        parser.error(f"--results {args.results} is no folder of records")
    folder = args.to or args.results / "figures"
    if args.theory:
        return _theory(args, folder)
    records, problems = read_all(args.demo, args.results)
    try:
        for figure in drawing.by_name(args.figure):
            with style.styled():
                picture = drawing.draw(figure, records, args.demo, problems)
                if picture is None:
                    print(f"{figure.name}: none of its runs has a record to show, not drawn")
                    continue
                name = f"demo_{figure.name}" if args.demo else figure.name
                _tell(style.save(picture, folder / name))
    except (PlanError, InvalidRecord, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    for problem in dict.fromkeys(problems):
        print(f"figures.py: left out {problem}", file=sys.stderr)
    return 1 if problems else 0


def _theory(args: argparse.Namespace, folder: Path) -> int:
    from ham.report import theory_figures as theory

    if args.demo:
        print("figures.py: --demo is for runs, and the theory has none: leave it out", file=sys.stderr)
        return 2
    try:
        names = [full_name(name) for name in args.figure or theory.FIGURES]
        _tell(theory.draw(names, folder, args.results / "theory"))
    except (PlanError, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    return 0


def _tell(paths: list[Path]) -> None:
    for path in paths:
        print(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


if __name__ == "__main__":
    sys.exit(main())
