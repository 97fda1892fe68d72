"""Get a data set, check it and put it where the experiments look for it.

    python scripts/prepare_data.py cifar100 [--from DIR_OR_TARGZ] [--to DIR]
    python scripts/prepare_data.py commonsense [--from DIR] [--to DIR]

cifar100 creates DIR/cifar-100-python with the three official files and their SHA256SUMS, which every run
verifies; without --from it downloads them. commonsense copies and checks the questions of LLM-Adapters in
DIR/commonsense; it downloads nothing, and without --from it checks the existing folder. DIR is $HAM_DATA if
not given, else the current folder. The new folder appears complete or not at all; an existing one is checked
and kept, or renamed to *.damaged and replaced. Exit status: 0 done; 2 the data cannot be obtained or are
wrong (a one-line error); 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.data import DataError
from ham.data.prepare import RECIPES, prepare
from ham.errors import explain
from ham.report.odd_files import check_target
from ham.report.spec import PlanError


def main(argv: list[str] | None = None) -> int:
    """Prepare one data set; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="name", metavar="DATA", required=True)
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=recipe.about, description=recipe.about)
        command.add_argument("--from", dest="source", type=Path, help="existing files, instead of a download")
        to = "folder of all data sets (default: $HAM_DATA, else the current folder)"
        command.add_argument("--to", type=Path, default=Path(os.environ.get("HAM_DATA", ".")), help=to)
    args = parser.parse_args(argv)
    try:
        check_target("--to", args.to)
        print(prepare(RECIPES[args.name], args.source, args.to))
    except (DataError, PlanError, OSError) as error:
        print(f"prepare_data.py: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare_data.py: interrupted; nothing is changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
