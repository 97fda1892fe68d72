"""What a sweep prints: the runs of each table by status, what is missing, and what it will cost."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from ham.command_line import OutputError, ignore_broken_pipe
from ham.report.spec import RunSpec

from .launchable import blocked, open_runs
from .resources import resource_class, resources
from .status import RunStatus, Status

SHOWN = (Status.FAILED, Status.DIVERGED, Status.STALE, Status.RUNNING, Status.QUEUED, Status.NOT_LAUNCHED)

MASKS = "their masks"
"""The name of the part with the runs of `mask_sources`."""


def pluralize(runs: int) -> str:
    """1 run, 2 runs."""
    return f"{runs} run" if runs == 1 else f"{runs} runs"


def counted(states: Iterable[RunStatus]) -> str:
    """The number of runs of each status: 3 done, 2 running."""
    counts = Counter(state.kind for state in states)
    return ", ".join(f"{counts[kind]} {kind}" for kind in Status if counts[kind]) or "nothing"


def print_overview(chosen: dict[str, list[RunSpec]], states: dict[RunSpec, RunStatus]) -> None:
    """Print the runs of each table by status."""
    for name, runs in chosen.items():
        cells, seeds = len({run.spec for run in runs}), len({run.seed for run in runs})
        size = f"x {seeds} seed{'s' if seeds > 1 else ''}"
        if cells * seeds != len(runs):  # cells differ in their number of seeds
            size = f"with {pluralize(len(runs))}"
        print(f"{name:<20} {cells:>3} cells {size}: {counted(states[run] for run in runs)}")
    if sources := mask_sources(chosen, states):
        print(f"{MASKS:<20} {len(sources):>3} more runs: {counted(states[run] for run in sources)}")


def mask_sources(chosen: dict[str, list[RunSpec]], states: dict[RunSpec, RunStatus]) -> list[RunSpec]:
    """The runs that nobody selected, whose masks selected ones still need."""
    selected = {run for runs in chosen.values() for run in runs}
    return [run for run in states if run not in selected]


def print_missing(states: dict[RunSpec, RunStatus], kinds: Sequence[Status] = SHOWN) -> None:
    """Print every run of these statuses; runs that differ only in their seed share a line."""
    for kind in kinds:
        groups: dict[tuple[str, str, str], list[int]] = {}
        for run, state in states.items():
            if state.kind is kind:
                details = "  ".join(text for text in (state.job, state.note) if text)
                groups.setdefault((run.spec, run.demo, details), []).append(run.seed)
        for (spec, demo, details), seeds in groups.items():
            name = spec + (f" ({demo})" if demo else "")
            plural = "s" if len(seeds) > 1 else ""
            line = f"{name:<32}  seed{plural} {' '.join(map(str, sorted(seeds)))}  {kind}"
            print(f"{line}  {details}" if details else line)


def print_estimate(states: dict[RunSpec, RunStatus]) -> None:
    """Print what the runs to be launched request and how long they will take."""
    todo = open_runs(states)
    if not todo:
        print("nothing is left to launch")
        return
    print(f"\n{'to launch':<16}{'runs':>6}{'GPU hours':>12}{'disk GB':>10}   each")
    hours = disk = 0.0
    for name in dict.fromkeys(map(resource_class, todo)):
        runs, requested = [run for run in todo if resource_class(run) == name], resources()[name]
        gpu, space = sum(map(requested.gpu_hours, runs)), requested.disk_gb * len(runs)
        hours, disk = hours + gpu, disk + space
        each = " ".join(f"--{key}={value}" for key, value in requested.sbatch.items())
        print(f"{name:<16}{len(runs):>6}{gpu:>12,.0f}{space:>10,.1f}   {each}")
    print(f"{'total':<16}{len(todo):>6}{hours:>12,.0f}{disk:>10,.1f}")
    if hours:
        print("GPU hours follow from the images per second assumed in slurm/resources.yaml")
    waiting = [
        run for run in todo if run.depends_on in states and states[run.depends_on].kind is not Status.DONE
    ]
    if waiting:
        sources = len({run.depends_on for run in waiting})
        print(f"waiting for masks: {pluralize(len(waiting))}, for those of {pluralize(sources)}")


def warn(states: dict[RunSpec, RunStatus]) -> None:
    """Print the stale runs with their cure, and how many others they hold up, to stderr."""
    for run, state in states.items():
        if state.kind is Status.STALE:
            print(f"sweep.py: {run} is stale: {state.note}", file=sys.stderr)
    if held := blocked(states):
        print(
            f"sweep.py: {pluralize(len(held))} not launched: the runs whose masks they take are stale, "
            "diverged, run on this machine or may be queued",
            file=sys.stderr,
        )


def print_line(line: str) -> None:
    """Print at once; a reader that has left, as of `| head`, stops neither a submission nor a run."""
    try:
        print(line, flush=True)
    except (BrokenPipeError, OutputError):
        ignore_broken_pipe()
