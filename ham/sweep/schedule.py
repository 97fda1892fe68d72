"""Which run is next: sources before dependents; how each ended; and how often runs have failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

from ham.files import atomic_write_json, lock_file, read_json
from ham.report.spec import RunSpec

from .manifests import RunsFolder

_POLL_SECONDS = 0.05
MAX_FAILURES = 2  # of a run, before time slices leave it out


class Ending(Enum):
    """How a run ended here."""

    DONE = auto()
    FAILED = auto()
    STOPPED = auto()  # with its checkpoint
    BUSY = auto()  # another process trains it


@dataclass(frozen=True)
class Outcome:
    """How a run ended, with train.py's exit status; `reason`: why it failed."""

    ending: Ending
    status: int = 0
    reason: str = ""


class Schedule:
    """Hands runs to threads, in the order given but for sources, which come before their dependents.

    Args:
        todo: the runs; the masks of sources that are not among them exist.
    """

    def __init__(self, todo: list[RunSpec]) -> None:
        self._waiting, self._running = list(todo), set[RunSpec]()
        self._changed, self._stopping = threading.Condition(), False
        self.outcomes: dict[RunSpec, Outcome] = {}

    def take(self) -> RunSpec | None:
        """The next run, as soon as its source is done; None if no more are to be started."""
        with self._changed:
            while self._waiting and not self._stopping:
                unfinished = self._running.union(self._waiting)
                ready = [run for run in self._waiting if run.depends_on not in unfinished]
                if ready:
                    self._waiting.remove(ready[0])
                    self._running.add(ready[0])
                    return ready[0]
                self._changed.wait()
            return None

    def finish(self, run: RunSpec, outcome: Outcome, retry: bool = False) -> list[RunSpec]:
        """Note how a run ended.

        Args:
            run: the run.
            outcome: result of the run.
            retry: try it again, after all others.

        Returns:
            dependents that cannot start, since the run failed, was stopped, or is trained by another process.
        """
        with self._changed:
            self._running.discard(run)
            self.outcomes[run] = outcome
            if retry:
                self._waiting.append(run)
            blocked = []
            if not retry and outcome.ending is not Ending.DONE:
                blocked = [other for other in self._waiting if other.depends_on == run]
                self._waiting = [other for other in self._waiting if other not in blocked]
            self._changed.notify_all()
            return blocked

    def stop(self) -> None:
        """Start no more runs."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def remaining(self) -> list[RunSpec]:
        """Runs that were not started, that run, or that were stopped."""
        with self._changed:
            stopped = [run for run, end in self.outcomes.items() if end.ending is Ending.STOPPED]
            return list(dict.fromkeys([*self._waiting, *self._running, *stopped]))


class Failures:
    """What each run printed last when it failed, in <runs>/.sweeps/failures.json.

    The next time slice reads it: a time slice is one call of sweep.py with --seconds.

    Delete the file, or change the run's configuration, to have its runs tried again.
    """

    def __init__(self, folder: RunsFolder) -> None:
        self._path = folder.folder / "failures.json"

    def reasons(self, run: RunSpec) -> list[str]:
        """Why a run failed, once per failure."""
        return (read_json(self._path) or {}).get(self._key(run), [])

    def add(self, run: RunSpec, reason: str) -> int:
        """Record a failure; returns how many there were of this run."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._hold_lock():  # against other threads and other sweeps of this folder
            reasons = [*self.reasons(run), reason]
            atomic_write_json(self._path, (read_json(self._path) or {}) | {self._key(run): reasons})
        return len(reasons)

    @contextmanager
    def _hold_lock(self) -> Iterator[None]:
        while True:
            try:
                lock = lock_file(self._path.with_suffix(".lock"))
                break
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
        with lock:
            yield

    def exhausted(self, todo: list[RunSpec]) -> list[RunSpec]:
        """The runs that failed so often that time slices leave them out, and the dependents of those."""
        known = {run for run in todo if len(self.reasons(run)) >= MAX_FAILURES}
        return [run for run in todo if run in known or run.depends_on in known]

    def why_exhausted(self, run: RunSpec) -> str:
        """Why slices leave a run out, and the cure."""
        reasons = self.reasons(run)
        if not reasons:
            return "the run whose masks it takes failed"
        cure = f"delete {self._path}, or omit --seconds, to try it again"
        return f"{reasons[-1]}; it failed {len(reasons)} times: {cure}"

    def _key(self, run: RunSpec) -> str:
        return f"{run.name}/seed{run.seed} {run.info.config_hash[:8]}"
