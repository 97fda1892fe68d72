"""Render the paper's tables, and the controls it lacks, from the committed records.

    python scripts/tables.py                          # all, as md, csv and tex in results/tables
    python scripts/tables.py --table 4 control_str    # these, which are also printed
    python scripts/tables.py --demo digits            # demo_*: scaled-down runs, where there are any

Needs no torch. A cell without a record says "not run" or "diverged". Invalid records of the chosen tables,
and files in a folder that belongs to no run, are reported and left out. Exit status:
0 done, 1 a record was left out, 2 wrong use.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain, printable
from ham.files import short_path
from ham.report.odd_files import check_results, check_target
from ham.report.records import DEMOS, RESULTS, InvalidRecord, read_diverged
from ham.report.spec import PlanError
from ham.report.table_files import FORMATS, full_names, read_records, render_table, write_table


def main(argv: list[str] | None = None) -> int:
    """Write the tables; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--table", nargs="+", metavar="NAME", help="4, table04, control_str, ...")
    choice.add_argument("--all", action="store_true", help="all tables (the default)")
    parser.add_argument("--demo", default="", choices=DEMOS, help="use scaled-down runs instead")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS, help="default: all three")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the records (default: results)"
    )
    parser.add_argument("--to", type=Path, help="folder to write to (default: results/tables)")
    args = parser.parse_args(argv)
    target = args.to or args.results / "tables"
    try:
        check_results(args.results)
        check_target("--to", target)
        names = full_names(args.table)
        records, problems = read_records(args.table, args.demo, args.results)
        diverged, damaged = read_diverged(args.demo, args.results)
        problems += damaged
        for name, table in [(name, render_table(name, records, args.demo, diverged)) for name in names]:
            if table is None:
                print(f"{name}: no run at demo={args.demo}, not rendered")
                continue
            for path in write_table(table, target, args.format):
                print(f"wrote {printable(short_path(path))}")
            if args.table:
                print(f"\n{table.text['md']}")
    except (PlanError, InvalidRecord, OSError) as error:
        print(f"tables.py: {explain(error)}", file=sys.stderr)
        return 2
    for problem in dict.fromkeys(problems):
        print(f"tables.py: left out {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
