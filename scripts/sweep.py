"""Carry out the runs behind tables and figures: what is missing, what it costs, and off it goes.

    python scripts/sweep.py --table 4 10 [--figure 11] [--all]                    what there is to do
    python scripts/sweep.py --table 4 --submit [-- --account=me --qos=long]       send it to SLURM
    python scripts/sweep.py --table 4 --local --jobs 2 --demo digits              do it here
    python scripts/sweep.py --table 4 --status                                    how it goes; why runs failed

Runs whose masks others take are added and come first; a run that several tables show exists once. The same
command again submits, or carries out, what is neither done nor under way: that is also how failed runs are
tried again, and they go on from their checkpoints. Exit status: 0 fine, 1 a run failed (with --local and
--status), 2 wrong use, or SLURM is missing or refuses, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from signal import SIGPIPE
from typing import NoReturn

from ham.report.plan import figure, figures, table, tables
from ham.report.records import DEMOS
from ham.report.spec import ROOT, PlanError, RunSpec, lock
from ham.sweep.local import carry_out
from ham.sweep.slurm import pluralize, resource_class, resources, submit, sweep_lock, uncommitted
from ham.sweep.status import RunStatus, Status, SweepError, Sweeps, blocked, open_runs

TOLD = (Status.FAILED, Status.STALE, Status.RUNNING, Status.QUEUED)


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; what stands after `--` is for sbatch."""
    own, extra = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    about, _, more = __doc__.partition("\n\n")
    parser = Parser(
        prog="sweep.py", description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--table",
        nargs="+",
        action="extend",
        default=[],
        metavar="N",
        help="tables: 4, table04 or control_str",
    )
    add("--figure", nargs="+", action="extend", default=[], metavar="N", help="figures: 11, 2a or figure11")
    add("--all", action="store_true", help="every table and figure")
    add("--seeds", type=int, nargs="+", help="instead of those of the tables")
    add("--demo", default="", choices=[name for name in lock() if name], help="scaled down")
    add("--only", nargs="+", default=[], metavar="TEXT", help="runs whose experiment holds one of these")
    add("--runs", type=Path, default=ROOT / "runs", help="where run directories go")
    add("--jobs", type=int, default=1, help="with --local: runs side by side")
    add(
        "--allow-dirty",
        action="store_true",
        help="launch code that is not committed, and count its runs as done although they become no records",
    )
    mode = parser.add_mutually_exclusive_group()
    for name, what in (
        ("dry-run", "count what there is to do and estimate it; the default"),
        ("submit", "send what is neither done nor under way to SLURM; arguments after -- go to sbatch"),
        ("local", "carry it out on this machine, without SLURM"),
        ("status", "every run that is not done, with the reason where it failed; exit status 1 if one did"),
    ):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=what)
    args = parser.parse_args(own)
    if not (args.table or args.figure or args.all):
        parser.error("nothing chosen: give --table N, --figure N or --all")
    if args.jobs < 1 or not all(0 <= seed < 2**32 for seed in args.seeds or []):
        parser.error("--jobs counts from 1, and --seeds from 0 to 2^32 - 1")
    args.mode, args.extra = args.mode or "dry-run", extra
    if extra and args.mode != "submit":
        parser.error("arguments after -- are for sbatch: give them with --submit")
    return args


def shown(args: argparse.Namespace) -> dict[str, list[RunSpec]]:
    """The chosen tables and figures with their runs. Raises PlanError."""
    named = [table(name) for name in (tables() if args.all else args.table)]
    named = [item for item in named if not args.all or item.has_scale(args.demo)]
    drawn = [figure(name) for name in (figures() if args.all else args.figure)]
    seeds = tuple(dict.fromkeys(args.seeds)) if args.seeds else None
    content = {}
    for item in {item.name: item for item in [*named, *drawn]}.values():
        runs = item.runs(seeds, args.demo)
        content[item.name] = [run for run in runs if not args.only or any(t in run.spec for t in args.only)]
    return content


def counted(states: list[RunStatus]) -> str:
    """States and how often each: 3 done, 2 running."""
    counts = Counter(state.kind for state in states)
    return ", ".join(f"{counts[kind]} {kind}" for kind in Status if counts[kind]) or "nothing"


def overview(chosen: dict[str, list[RunSpec]], states: dict[RunSpec, RunStatus]) -> None:
    """Print each table's runs by state."""
    for name, runs in chosen.items():
        cells, seeds = len({run.spec for run in runs}), len({run.seed for run in runs})
        plural = "s" if seeds > 1 else ""
        print(f"{name:<20} {cells:>3} cells x {seeds} seed{plural}: {counted([states[run] for run in runs])}")
    asked = {run for runs in chosen.values() for run in runs}
    if sources := [state for run, state in states.items() if run not in asked]:
        print(f"{'their masks':<20} {len(sources):>3} more runs: {counted(sources)}")


def estimate(states: dict[RunSpec, RunStatus]) -> None:
    """Print what the runs to be launched ask for and will use."""
    todo = open_runs(states)
    if not todo:
        print("nothing is left to launch")
        return
    print(f"\n{'to launch':<16}{'runs':>6}{'GPU hours':>12}{'disk GB':>10}   each")
    hours = disk = 0.0
    for name in dict.fromkeys(map(resource_class, todo)):
        runs, asks = [run for run in todo if resource_class(run) == name], resources()[name]
        gpu, space = sum(map(asks.gpu_hours, runs)), asks.disk_gb * len(runs)
        hours, disk = hours + gpu, disk + space
        each = " ".join(f"--{key}={value}" for key, value in asks.sbatch.items())
        print(f"{name:<16}{len(runs):>6}{gpu:>12,.0f}{space:>10,.1f}   {each}")
    print(f"{'total':<16}{len(todo):>6}{hours:>12,.0f}{disk:>10,.1f}")
    if hours:
        print("GPU hours rest on images per second that are assumed, see slurm/resources.yaml")
    waiting = [
        run for run in todo if run.depends_on in states and states[run.depends_on].kind is not Status.DONE
    ]
    if waiting:
        print(f"{len(waiting)} runs wait for the masks of {len({run.depends_on for run in waiting})}")


def warn(states: dict[RunSpec, RunStatus]) -> None:
    """Name the stale runs with their cure."""
    for run, state in states.items():
        if state.kind is Status.STALE:
            print(f"sweep.py: {run} is stale: {state.note}", file=sys.stderr)
    if held := blocked(states):
        print(
            f"sweep.py: {pluralize(len(held))} not launched, for want of the masks of runs that are stale "
            "or run on this machine",
            file=sys.stderr,
        )


def details(states: dict[RunSpec, RunStatus]) -> None:
    """Print every run that is not done, with what is known of it."""
    for kind in TOLD:
        for run, state in states.items():
            if state.kind is kind:
                print(f"{kind:<8} {run}" + "".join(f"  {text}" for text in (state.job, state.note) if text))


def demand_a_commit(args: argparse.Namespace) -> None:
    """Runs of the paper's scale are too dear to be no records. Raises SweepError."""
    if args.allow_dirty or args.demo not in ("", *DEMOS) or not (reason := uncommitted()):
        return
    if not args.demo:
        raise SweepError(f"{reason}, or give --allow-dirty")
    print(f"sweep.py: {reason} (--allow-dirty counts them as done)", file=sys.stderr)


def tell(line: str) -> None:
    """Print at once; a reader that has left stops no submission."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Nobody reads stdout any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def carry_on(args: argparse.Namespace) -> int:
    """Do what the command line asks; returns the exit status."""
    chosen, sweeps = shown(args), Sweeps(args.runs, lenient=args.allow_dirty)
    runs = list(dict.fromkeys(run for part in chosen.values() for run in part))
    if not runs:
        raise SweepError(f"no run's experiment holds {' or '.join(args.only)}: see python train.py --list")
    if args.mode in ("dry-run", "submit"):
        resources()  # an error in that file is told first
    if args.mode == "submit":
        with sweep_lock(sweeps):
            sweeps.queue()
            states = sweeps.survey(runs)
            warn(states)
            if todo := open_runs(states):
                demand_a_commit(args)
                for line in submit(todo, states, sweeps, args.extra):
                    tell(line)
        if not todo:
            print(f"nothing to submit: {counted(list(states.values()))}")
        return 0
    try:
        sweeps.queue()
    except SweepError as error:
        if args.mode != "local":
            print(f"sweep.py: queued and running runs are not known: {error}", file=sys.stderr)
    states = sweeps.survey(runs)
    if args.mode == "local":
        warn(states)
        elsewhere = {run for run, state in states.items() if state.is_active}
        todo = [run for run in open_runs(states) if run.depends_on not in elsewhere]
        if todo:
            demand_a_commit(args)
        failures = carry_out(todo, sweeps, args.jobs)
        print(counted(list(Sweeps(args.runs, lenient=args.allow_dirty).survey(runs).values())))
        return 1 if failures else 0
    overview(chosen, states)
    if args.mode == "status":
        details(states)
        return int(any(state.kind is Status.FAILED for state in states.values()))
    estimate(states)
    warn(states)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        status = carry_on(arguments(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # | head
        silence()
        return 128 + SIGPIPE
    except (PlanError, SweepError, OSError) as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sweep.py: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
