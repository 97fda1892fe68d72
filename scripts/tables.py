"""Render the paper's tables, and the controls it lacks, from the committed records.

    python scripts/tables.py                          # all, as md, csv and tex in results/tables
    python scripts/tables.py --table 4 control_str    # these, and print them
    python scripts/tables.py --demo digits            # demo_*: scaled-down runs, where there are any

Needs no torch. A cell without a record says "not run". Records that are none by the rules of
paper/rules.py are named and left out. Exit status: 0 done, 1 a record was left out, 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ham.report import plan, render
from ham.report.hyperparameters import SHEETS
from ham.report.records import DEMOS, RESULTS, InvalidRecord, Record, read_all
from ham.report.spec import PlanError, RunSpec
from ham.report.tables import report

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("md", "csv", "tex")


def names(chosen: list[str] | None) -> list[str]:
    """Full names of the chosen tables, of all if none. Raises PlanError."""
    if chosen is None:
        return sorted([*plan.tables(), *SHEETS])
    full = [f"table{int(name):02}" if name.isdecimal() else name for name in chosen]
    if unknown := [name for name in full if name not in (*SHEETS, *plan.tables())]:
        known = ", ".join(sorted([*plan.tables(), *SHEETS]))
        raise PlanError(f"there is no table {unknown[0]!r}: choose one of {known}")
    return list(dict.fromkeys(full))


def contents(name: str, records: Mapping[RunSpec, Record], demo: str) -> tuple[str, dict[str, str]] | None:
    """A table's file name and its text by format; None where it shows scaled-down runs and there are none."""
    if name in SHEETS:
        sheet = SHEETS[name]()
        return None if demo else _texts(sheet.text(), sheet.comma_separated)
    if not plan.table(name).has_scale(demo):
        return None
    made = report(name, records, demo)
    if demo and not any(entry.ours for entry in made.entries):
        return None
    return _texts(render.text(made), lambda: render.comma_separated(made))


def _texts(text: render.Text, csv: Callable[[], str]) -> tuple[str, dict[str, str]]:
    return text.name, {"md": render.markdown(text), "csv": csv(), "tex": render.latex(text)}


def main(argv: list[str] | None = None) -> int:
    """Write the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--table", nargs="+", metavar="NAME", help="4, table04, control_str, ...")
    which.add_argument("--all", action="store_true", help="all of them (the default)")
    parser.add_argument("--demo", default="", choices=DEMOS, help="the scaled-down runs instead")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS, help="all three if not said")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the records are (results)")
    parser.add_argument("--to", type=Path, help="where the tables go (results/tables)")
    args = parser.parse_args(argv)
    if not args.results.is_dir():
        parser.error(f"--results {args.results} is no folder of records")
    folder = args.to or args.results / "tables"
    records, problems = read_all(args.demo, args.results)
    try:
        made = {name: contents(name, records, args.demo) for name in names(args.table)}
        folder.mkdir(parents=True, exist_ok=True)
        for name, texts in made.items():
            if texts is None:
                print(f"{name}: no run at demo={args.demo}, not rendered")
                continue
            for ending in args.format:
                path = folder / f"{texts[0]}.{ending}"
                path.write_text(texts[1][ending])
                print(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
            if args.table:
                print(f"\n{texts[1]['md']}")
    except (PlanError, InvalidRecord, OSError) as error:
        print(f"tables.py: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"tables.py: left out {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
