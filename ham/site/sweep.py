"""The page of a sweep in progress, one file that reloads itself: scripts/sweep.py --status --html FILE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ham.errors import one_line, printable
from ham.files import atomic_write_text, read_text
from ham.report.odd_files import check_target
from ham.report.spec import PlanError, RunSpec
from ham.sweep.launchable import open_runs
from ham.sweep.listing import MASKS, counted, mask_sources, pluralize
from ham.sweep.manifests import last_log_lines
from ham.sweep.pace import duration, measured_pace, seconds_left
from ham.sweep.resources import resource_class, resources
from ham.sweep.status import RunStatus, Status, Sweeps

from . import pages

RELOAD_SECONDS = 60
LOG_LINES = 3  # of each run
_GROUPS = {
    "Active runs": (Status.RUNNING, Status.QUEUED),
    "Failed runs": (Status.FAILED,),
    "Diverged and stale runs": (Status.DIVERGED, Status.STALE),
}
States = dict[RunSpec, RunStatus]


GENERATOR = '<meta name="generator" content="scripts/sweep.py of HAM">'
"""What this page has, and no file of others."""


def write_page(file: Path, sweeps: Sweeps, chosen: dict[str, list[RunSpec]], states: States) -> None:
    """Write the page of a sweep; a reader finds the old page or the new one.

    Args:
        file: the page; its folder is created. It may replace an earlier page, and no other file.
        sweeps: the folder of the runs.
        chosen: name of each part -> its runs.
        states: status of these runs and of those whose masks they need.

    Raises:
        PlanError: the file cannot be written there.
        OSError: writing fails.
    """
    if file.exists() and not file.is_file():
        raise PlanError(f"--html {printable(file)} exists and is not a regular file: give another name")
    if file.exists() and GENERATOR not in read_text(file, errors="replace"):
        raise PlanError(
            f"--html {printable(file)} is not a page of sweep.py: give another name, or remove it"
        )
    check_target("--html", file.absolute().parent)
    text = page(sweeps, chosen, states, datetime.now(UTC))
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(file, text)


def page(sweeps: Sweeps, chosen: dict[str, list[RunSpec]], states: States, now: datetime) -> str:
    """The page as HTML; arguments as in `write_page`, and the time that it states."""
    sources = mask_sources(chosen, states)
    parts = chosen | ({MASKS: sources} if sources else {})
    counts = Counter(state.kind for state in states.values())
    return pages.render(
        "sweep.html",
        page="sweep.html",
        title=f"Sweep: {', '.join(chosen)}",
        generator=Markup(GENERATOR),
        style=Markup(read_text(pages.ROOT / "assets" / "site.css")),
        seconds=RELOAD_SECONDS,
        written=now.strftime("%Y-%m-%d %H:%M:%S UTC"),
        queue_error=printable(sweeps.queue_error),
        counts=[(str(kind), counts[kind]) for kind in Status if counts[kind]],
        parts=[_part(name, [states[run] for run in runs]) for name, runs in parts.items()],
        time_left=_time_left(sweeps, states),
        groups=[
            (heading, [_row(run, state, sweeps) for run, state in states.items() if state.kind in kinds])
            for heading, kinds in _GROUPS.items()
        ],
    )


def _part(name: str, states: Sequence[RunStatus]) -> dict[str, Any]:
    done = sum(state.kind is Status.DONE for state in states)
    return {"name": name, "done": done, "total": len(states), "counts": counted(states)}


def _row(run: RunSpec, state: RunStatus, sweeps: Sweeps) -> dict[str, Any]:
    """What the page shows of a run."""
    return {
        "name": str(run),
        "status": str(state.kind),
        "about": printable("  ".join(text for text in (state.job, state.note) if text)),
        "done": min(sweeps.epochs_done(run), run.info.epochs),
        "epochs": run.info.epochs,
        "log": [printable(line) for line in _log(run, sweeps)],
    }


def _log(run: RunSpec, sweeps: Sweeps) -> list[str]:
    """The last lines of a run's latest log."""
    try:
        logs = sweeps.existing_logs(run)
        return last_log_lines(logs[-1], LOG_LINES) if logs else []
    except OSError as error:
        return [f"its log cannot be read: {one_line(error)}"]


def _time_left(sweeps: Sweeps, states: States) -> str:
    """About how long the runs that are neither done nor lost take, in a sentence that names its source."""
    active = [run for run, state in states.items() if state.is_active]
    left = [*active, *open_runs(states)]
    if not left:
        return "none, because no run is left."
    pace = measured_pace(states, sweeps)
    seconds, unknown = seconds_left(left, sweeps, lambda run: pace.of(run) or _assumed_pace(run))
    measured = sum(pace.of(run) is not None for run in left)
    if unknown == len(left):
        return f"unknown, because no run like the {pluralize(unknown)} left has been timed."
    running = sum(states[run].kind is Status.RUNNING for run in active)
    how = f"{running} side by side as now" if running > 1 else "one after the other"
    time = f"{'at least' if unknown else 'about'} {duration(seconds / max(1, running))}"
    sources = {
        "the pace of runs that ended or are running": measured,
        "the speed that slurm/resources.yaml assumes": len(left) - measured - unknown,
    }
    named = (f"by {source} ({pluralize(count)})" for source, count in sources.items() if count)
    missing = f" {pluralize(unknown)} more: unknown." if unknown else ""
    return f"{time} with runs {how}, {' and '.join(named)}.{missing}"


def _assumed_pace(run: RunSpec) -> float | None:
    """Seconds per epoch by slurm/resources.yaml; None if it assumes no speed for such a run."""
    hours = resources()[resource_class(run)].gpu_hours(run)
    return hours * 3600 / run.info.epochs if hours else None
