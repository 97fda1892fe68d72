"""List, estimate, launch and monitor the runs behind tables, figures, experiments and searches.

    python scripts/sweep.py --table 4 10 [--figure 11] [--all]                 what is missing, by name
    python scripts/sweep.py --table 4 --submit [-- --account=me --qos=long]    submit it to SLURM
    python scripts/sweep.py --exp 'node/cora_*' --local --jobs 2               run it on this machine
    python scripts/sweep.py --grid node/cora_sage --local --jobs 2             the search over (alpha, beta)
    python scripts/sweep.py --study cifar16 --local --jobs 2                   the study of docs/study.md
    python scripts/sweep.py --table 7 --local --seconds 540 --pack out.tar.gz  run it in time slices
    python scripts/sweep.py --table 4 --status                                 what runs, and why runs failed
    python scripts/sweep.py --table 4 --status --html sweep.html               the same as a page

Runs whose masks others take are added and come first. A run that several tables show exists once. The same
command again launches what is neither done nor active: failed and stopped runs resume from their
checkpoints. Sweeps on one folder of runs, also from several machines, share the work.

Exit status: 0 fine; 1 a run failed (--local, --status), or a file of a run cannot be read (--status); 2 wrong
use, no SLURM, or a run that cannot start, such as one whose data are missing; 85 stopped by a signal or
--seconds, or runs of other processes have not ended: unfinished runs remain; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ham.command_line import Parser, run_script
from ham.errors import explain
from ham.report.spec import PlanError, lock
from ham.report.study import studies
from ham.sweep.commands import RUNS, Options, run_command
from ham.sweep.manifests import SweepError
from ham.sweep.selection import Selection

MODES = {
    "dry-run": "print what is missing, and estimate it; the default",
    "submit": "submit it to SLURM; arguments after -- go to sbatch",
    "local": "run it on this machine, without SLURM",
    "status": "print every run that is not done, with the reason if it failed",
}


def parser() -> Parser:
    """The options."""
    about, _, more = __doc__.partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    result = Parser(prog="sweep.py", description=about, epilog=more, formatter_class=raw)
    several = {"nargs": "+", "action": "extend", "default": []}
    add = result.add_argument_group("selection").add_argument
    add("--table", **several, metavar="N", help="tables: 4, table04 or control_str")
    add("--figure", **several, metavar="N", help="figures: 11, 2a or figure11")
    add("--all", action="store_true", help="every table and figure")
    add("--exp", **several, metavar="NAME", help="experiments, or globs such as 'node/cora_*'")
    add(
        "--grid",
        **several,
        metavar="EXP",
        help="the search over (alpha, beta) of a baseline experiment or glob",
    )
    add("--study", default="", choices=studies(), help="a planned study, stage by stage: docs/study.md")
    add("--only", nargs="+", default=[], metavar="TEXT", help="only experiments whose name contains TEXT")
    add("--seeds", type=int, nargs="+", help="these seeds instead of the paper's")
    add(
        "--demo",
        default="",
        choices=[name for name in lock() if name],
        help="the runs scaled down to this demo",
    )
    add = result.add_argument_group("launch").add_argument
    add("--runs", type=Path, default=RUNS, help="where run directories go")
    add("--again", action="store_true", help="also runs that have a committed record")
    add("--allow-dirty", action="store_true", help="launch uncommitted code, and count its runs as done")
    add("--brief", action="store_true", help="with --dry-run and --status: counts only")
    add("--jobs", type=int, default=1, metavar="N", help="with --local: number of runs side by side")
    add("--seconds", type=float, help="with --local: save and stop before this time is over")
    add("--pack", type=Path, metavar="FILE", help="with --local: write an archive of the finished runs")
    add("--html", type=Path, metavar="FILE", help="with --status: write a page that reloads itself")
    modes = result.add_argument_group("mode").add_mutually_exclusive_group()
    for name, text in MODES.items():
        modes.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=text)
    result.set_defaults(mode="dry-run")
    return result


def parse(argv: list[str]) -> tuple[Selection, Options]:
    """The command line; arguments after `--` are for sbatch. Raises SweepError."""
    own, extra = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = parser().parse_args(own)
    seeds = tuple(dict.fromkeys(args.seeds)) if args.seeds else None
    selection = Selection(
        *(args.table, args.figure, args.all, args.exp, args.grid, args.only, seeds, args.demo, args.study)
    )
    launch = (args.brief, args.allow_dirty, args.again, args.jobs, args.seconds, args.pack, tuple(extra))
    return selection, Options(args.mode, args.runs, *launch, html=args.html)


def write_page(*state: Any) -> None:
    """Write the page of --html; jinja2 is imported only then. Raises SweepError if it is missing."""
    try:
        from ham.site import sweep
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "markupsafe"):
            raise
        raise SweepError("--html needs jinja2: pip install -e '.[site]'") from None
    sweep.write_page(*state)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        return run_command(*parse(sys.argv[1:] if argv is None else argv), write_page)
    except (PlanError, SweepError, OSError) as error:
        print(f"sweep.py: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sweep.py: stopped; start the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run_script(main))
