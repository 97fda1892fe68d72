"""What a sweep on this machine prints: how each run ended, and about how long the rest takes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable

from ham.files import read_json
from ham.report.spec import RunSpec

from .listing import pluralize, print_line
from .pace import Pace, duration, seconds_left
from .schedule import Ending, Outcome, Schedule
from .status import Sweeps


class LocalReport:
    """Prints a line for each run that ends. The time left follows from their seconds per epoch.

    Args:
        sweeps: the runs' folder.
        jobs: number of runs side by side.
        total: number of all runs.
    """

    def __init__(self, sweeps: Sweeps, jobs: int, total: int) -> None:
        self._sweeps, self._jobs, self._total = sweeps, jobs, total
        self._started: dict[RunSpec, tuple[float, int]] = {}
        self._pace = Pace()
        self._failures: Counter[str] = Counter()

    def start(self, run: RunSpec) -> None:
        """A run starts or resumes."""
        self._started[run] = time.monotonic(), self._sweeps.epochs_done(run)

    def end(self, run: RunSpec) -> None:
        """A run has ended, done or not."""
        since, before = self._started.pop(run)
        self._pace.add(run, time.monotonic() - since, max(0, self._sweeps.epochs_done(run) - before))

    def print_outcome(self, run: RunSpec, outcome: Outcome, schedule: Schedule) -> None:
        """Print how a run ended."""
        if outcome.ending is Ending.FAILED:
            self.print_failure(run, outcome.reason)
        elif outcome.ending is Ending.STOPPED:
            print_line(f"{run}: stopped after {self._sweeps.epochs_done(run)} of {run.info.epochs} epochs")
        elif outcome.ending is Ending.BUSY:
            print_line(f"{run}: {outcome.reason or 'another process trains it'}")
        elif outcome.ending is Ending.DONE:
            done = sum(end.ending is Ending.DONE for end in schedule.outcomes.values())
            print_line(
                f"{run}: {self._result(run)}  [{done}/{self._total}, {self.eta_line(schedule.remaining())}]"
            )

    def print_failure(self, run: RunSpec, reason: str) -> None:
        """Print why a run failed; of runs that share a reason, such as missing data, only the first."""
        self._failures[reason] += 1
        if self._failures[reason] == 1:
            print(f"failed: {run}: {reason}", file=sys.stderr, flush=True)

    def print_end(self, schedule: Schedule) -> None:
        """Print what is left."""
        for reason, count in self._failures.items():
            if count > 1:
                print(f"failed: {pluralize(count - 1)} more: {reason}", file=sys.stderr)
        if left := schedule.remaining():
            print_line(f"{pluralize(len(left))} left to do, {self.eta_line(left)}")

    def eta_line(self, left: Iterable[RunSpec]) -> str:
        """About how long these runs will take, in words."""
        seconds, unknown = seconds_left(left, self._sweeps, self._pace.of_any)
        return "time left unknown" if unknown else f"about {duration(seconds / self._jobs)} left"

    def _result(self, run: RunSpec) -> str:
        summary = read_json(run.folder(self._sweeps.runs) / "summary.json")
        if summary is None:  # another process made its record meanwhile
            return "done"
        metrics = (f"{name} {summary['metrics'][name]:.2f}" for name in dict.fromkeys(run.info.reported))
        return f"{', '.join(metrics)}, {summary['timing']['seconds']:.0f} s"
