"""The modes of scripts/sweep.py: dry-run, status, submit and local."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ham.files import ROOT
from ham.report.records import DEMOS
from ham.report.spec import RunSpec
from ham.repository import has_changes, unknown_commit

from .archive import Packer, check_archive
from .launchable import open_runs
from .listing import counted, pluralize, print_estimate, print_line, print_missing, print_overview, warn
from .local import EXIT_INTERRUPTED, EXIT_SAVED, LocalSweep
from .manifests import SweepError
from .resources import resources
from .sbatch_options import check_options
from .selection import Selection
from .slurm import SlurmMissingError, read_queue, submit, sweep_lock
from .status import RunStatus, Status, Sweeps

RUNS = ROOT / "runs"
"""Where run directories go; it exists once a run was launched."""


@dataclass(frozen=True)
class Options:
    """How a sweep works.

    Args:
        mode: dry-run, status, submit or local.
        runs: folder of the run directories.
        brief: True to print only counts.
        allow_dirty: launch code that is not committed, and count its runs as done.
        again: committed records do not count.
        jobs: runs side by side, of mode local.
        seconds: time limit of mode local; None for none.
        archive: path to which mode local packs the finished runs; None for no archive.
        extra: arguments for sbatch, of mode submit.
        html: path to which mode status writes a page; None for no page.

    Raises:
        SweepError: a value is wrong, or belongs to another mode.
    """

    mode: str
    runs: Path
    brief: bool = False
    allow_dirty: bool = False
    again: bool = False
    jobs: int = 1
    seconds: float | None = None
    archive: Path | None = None
    extra: tuple[str, ...] = ()
    html: Path | None = None

    def __post_init__(self) -> None:
        """Raise SweepError on a wrong value, and on options of another mode."""
        if self.jobs < 1:
            raise SweepError(f"--jobs must be at least 1, got {self.jobs}")
        if self.seconds is not None and not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise SweepError(f"--seconds must be finite and above 0, got {self.seconds:g}")
        if self.extra and self.mode != "submit":
            raise SweepError("arguments after -- are for sbatch: give them with --submit")
        check_options(self.extra)
        if self.mode != "local" and (self.archive or self.seconds):
            raise SweepError("--pack and --seconds are for runs on this machine: give --local")
        if self.mode != "local" and self.jobs > 1:
            raise SweepError("--jobs is the number of runs side by side on this machine: give --local")
        if self.mode != "status" and self.html is not None:
            raise SweepError("--html writes the state of the runs as a page: give it with --status")


PageWriter = Callable[[Path, Sweeps, dict[str, list[RunSpec]], dict[RunSpec, RunStatus]], object]


def run_command(selection: Selection, options: Options, write_page: PageWriter | None = None) -> int:
    """Execute the command; returns the exit status.

    Args:
        selection: the runs.
        options: options of the command.
        write_page: writes the page of `options.html`, from its path, the runs' folder, the selected runs and
            their states.

    Raises:
        PlanError, SweepError: the command cannot be executed; one line with the cure.
    """
    sweeps = Sweeps(options.runs, lenient=options.allow_dirty, again=options.again)
    chosen = selection.runs(sweeps)
    runs = _distinct(chosen)
    resources()  # report an error in that file before anything starts
    if options.archive is not None:
        check_archive(options.archive)
    if options.mode == "submit":
        return _submit(selection, sweeps, options)
    try:
        read_queue(sweeps)
    except SweepError as error:
        sweeps.queue_error, sweeps.is_queue_silent = str(error), not isinstance(error, SlurmMissingError)
        if options.mode != "local" or (sweeps.is_queue_silent and sweeps.launched):
            print(f"sweep.py: queued and running runs are unknown: {error}", file=sys.stderr)
    for line in sweeps.damaged:
        print(f"sweep.py: {line}", file=sys.stderr)
    if options.mode == "local":
        return _local_stages(selection, sweeps, options)
    if options.runs != RUNS and not options.runs.exists():
        print(f"sweep.py: --runs {options.runs} does not exist: only records count", file=sys.stderr)
    states = sweeps.survey(runs)
    if options.html is not None and write_page is not None:
        write_page(options.html, sweeps, chosen, states)
    if options.mode == "dry-run":
        return _dry_run(chosen, states, options)
    return max(_status(chosen, states, options), int(bool(sweeps.damaged)))


def _submit(selection: Selection, sweeps: Sweeps, options: Options) -> int:
    with sweep_lock(sweeps):
        read_queue(sweeps)
        if sweeps.damaged:
            raise SweepError(f"{sweeps.damaged[0]}; what it has submitted is unknown")
        states = sweeps.survey(_distinct(selection.runs(sweeps)))
        warn(states)
        todo = open_runs(states)
        if not todo:
            print(f"nothing to submit: {counted(states.values())}")
            return 0
        require_commit(todo, options.allow_dirty)
        for line in submit(todo, states, sweeps, list(options.extra)):
            print_line(line)
    if selection.study:
        print("the study continues when these have ended: repeat the command then")
    return 0


def _distinct(chosen: dict[str, list[RunSpec]]) -> list[RunSpec]:
    return list(dict.fromkeys(run for part in chosen.values() for run in part))


def _local_stages(selection: Selection, sweeps: Sweeps, options: Options) -> int:
    """Run the selection, and then what its results determine: a study chooses its rates by tuning runs."""
    end = time.monotonic() + options.seconds if options.seconds else None
    done: list[RunSpec] = []
    status, elsewhere = 0, 0
    while status in (0, 1) and (runs := selection.in_local_order(_distinct(selection.runs(sweeps)))) != done:
        if end is not None:
            options = replace(options, seconds=max(end - time.monotonic(), 0.001))
        done = runs
        own_status, elsewhere = _local(runs, sweeps, options)
        status = max(status, own_status)
    if elsewhere:
        left = f"{pluralize(elsewhere)} left to other processes or SLURM"
        print_line(f"{left}: repeat this command when they have ended")
    return status or (EXIT_SAVED if elsewhere else 0)


def _local(runs: list[RunSpec], sweeps: Sweeps, options: Options) -> tuple[int, int]:
    """Run these; returns the exit status, and how many runs wait for other processes or for SLURM."""
    states = sweeps.survey(runs)
    warn(states)
    elsewhere = _runs_elsewhere(states)
    todo = [run for run in open_runs(states) if run not in elsewhere]
    if todo:
        require_commit(todo, options.allow_dirty)
    print_line(counted(states.values()))

    packer = Packer(list(states), sweeps.runs, options.archive)
    local = LocalSweep(
        todo, sweeps, jobs=options.jobs, seconds=options.seconds, after_run=packer.pack_sometimes
    )
    status = local.run()
    packer.pack_now()
    after = Sweeps(options.runs, lenient=options.allow_dirty, again=options.again)
    after.active, after.is_queue_silent = sweeps.active, sweeps.is_queue_silent
    ended = after.survey(runs)
    print_line(counted(ended.values()))
    if status in (EXIT_SAVED, EXIT_INTERRUPTED):
        print("sweep.py: stopped; start the same command again to resume", file=sys.stderr)
    unfinished = {run for run, state in ended.items() if state.is_active or state.is_launchable}
    return status, len(unfinished.intersection([*elsewhere, *local.busy(), *_runs_elsewhere(ended)]))


def _runs_elsewhere(states: dict[RunSpec, RunStatus]) -> list[RunSpec]:
    """The runs of other processes and of SLURM, and those that take their masks."""
    active = [run for run, state in states.items() if state.is_active]
    return active + [run for run, state in states.items() if state.is_launchable and run.depends_on in active]


def _status(chosen: dict[str, list[RunSpec]], states: dict[RunSpec, RunStatus], options: Options) -> int:
    print_overview(chosen, states)
    if not options.brief:
        print_missing(states)
    return int(any(state.kind is Status.FAILED or state.is_damaged for state in states.values()))


def _dry_run(chosen: dict[str, list[RunSpec]], states: dict[RunSpec, RunStatus], options: Options) -> int:
    print_overview(chosen, states)
    if not options.brief:
        print_missing(states, (Status.FAILED, Status.NOT_LAUNCHED))
    print_estimate(states)
    warn(states)
    return 0


def require_commit(todo: list[RunSpec], allow_dirty: bool) -> None:
    """Refuse runs of the paper's scale that cannot become records. Raises SweepError."""
    demo = todo[0].demo
    if allow_dirty or demo not in ("", *DEMOS) or not (reason := uncommitted()):
        return
    if not demo:
        raise SweepError(f"{reason}, or give --allow-dirty")
    print(f"sweep.py: {reason} (--allow-dirty counts them as done)", file=sys.stderr)


def uncommitted() -> str:
    """Why runs of this code cannot become records; "" if they can."""
    if reason := unknown_commit():
        return reason
    changes = has_changes()
    if changes is None and "HAM_COMMIT" not in os.environ:
        return "git cannot tell whether the code has changes: see git status, or set HAM_COMMIT to its commit"
    return "runs of uncommitted code cannot become records: commit first" if changes else ""
