"""Which runs can be launched, and in which order: a run that takes masks comes after their source."""

from __future__ import annotations

from ham.report.spec import RunSpec

from .status import RunStatus, Status


def open_runs(states: dict[RunSpec, RunStatus]) -> list[RunSpec]:
    """The runs to launch: neither done, active nor stale, and their masks exist or will."""
    held = set(blocked(states))
    return [run for run, state in states.items() if state.is_launchable and run not in held]


def blocked(states: dict[RunSpec, RunStatus]) -> list[RunSpec]:
    """Runs that cannot be launched: their source is stale or diverged, or SLURM cannot wait for it."""
    without_masks = (Status.STALE, Status.DIVERGED)
    unavailable = {
        run
        for run, state in states.items()
        if state.kind in without_masks or (state.is_active and not state.job)
    }
    return [run for run, state in states.items() if state.is_launchable and run.depends_on in unavailable]


def dependency_levels(todo: list[RunSpec]) -> list[list[RunSpec]]:
    """The runs in groups, each after the sources of its members; `todo` has sources first."""
    depth: dict[RunSpec, int] = {}
    for run in todo:
        depth[run] = depth.get(run.depends_on, -1) + 1
    return [
        [run for run in todo if depth[run] == level] for level in range(max(depth.values(), default=-1) + 1)
    ]
