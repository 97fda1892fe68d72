"""Run a sweep on this machine, side by side, perhaps within a time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from ham.errors import explain, is_of_machine, names_error_of_machine, one_line
from ham.files import ROOT, open_text
from ham.report.spec import RunSpec

from .manifests import STOPPED_LINE, last_log_line
from .progress import LocalReport
from .resources import is_short
from .schedule import MAX_FAILURES, Ending, Failures, Outcome, Schedule
from .status import Status, Sweeps
from .worker import Worker

TRAIN = ROOT / "train.py"
EXIT_SAVED, EXIT_INTERRUPTED = 85, 130  # exit statuses after SIGTERM and the like, and after Ctrl-C
_STOP_TIMEOUT = 60.0  # seconds for runs to save and end
_BLOCKING_REASONS = {
    Ending.FAILED: "failed",
    Ending.BUSY: "runs in another process",
    Ending.STOPPED: "was stopped",
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class LocalSweep:
    """Runs on this machine.

    Short runs share processes, the others get a process each. A signal that stops a sweep, and the end of its
    time, has the active runs save; the same command resumes them.

    Args:
        todo: the runs in the order in which they start, except that sources come first.
        sweeps: their folder.
        jobs: number of runs side by side.
        seconds: the time limit; None for none. Before it, runs get a signal to save; later they are killed.
        after_run: function called after each run that succeeded.
    """

    def __init__(
        self,
        todo: list[RunSpec],
        sweeps: Sweeps,
        *,
        jobs: int,
        seconds: float | None = None,
        after_run: Callable[[], object] = lambda: None,
    ) -> None:
        self._sweeps, self._after_run = sweeps, after_run
        self._jobs = max(1, min(jobs, len(todo)))
        self._failures = Failures(sweeps) if seconds else None
        self._exhausted = self._failures.exhausted(todo) if self._failures else []
        self._schedule = Schedule(self._sort_by_failures([run for run in todo if run not in self._exhausted]))
        self._sources = {run.depends_on for run in todo}
        self._report, self._lock = LocalReport(sweeps, self._jobs, len(todo)), threading.Lock()
        self._active: set[Worker] = set()
        self._stop_status, self._stop_signal = 0, 0
        grace = min(30.0, (seconds or 0) / 4)
        start = time.monotonic()
        self._stop_at = start + seconds - grace if seconds else float("inf")
        self._kill_at = start + seconds - grace / 4 if seconds else float("inf")

    def _sort_by_failures(self, todo: list[RunSpec]) -> list[RunSpec]:
        """Order the runs that failed in an earlier slice last."""
        return sorted(todo, key=lambda run: len(self._failures.reasons(run)) if self._failures else 0)

    def run(self) -> int:
        """Run them; returns the exit status: 0, 1, 2, 85 or 130."""
        self._sweeps.logs.mkdir(parents=True, exist_ok=True)
        for run in self._exhausted:
            self._report.print_failure(run, f"left out: {self._failures.why_exhausted(run)}")
        with self._catch_signals(), ThreadPoolExecutor(self._jobs) as pool:
            threads = [pool.submit(self._worker_loop) for _ in range(self._jobs)]
            try:
                self._watch(threads)
            except BaseException:
                self._stop(EXIT_SAVED)
                wait(threads, _STOP_TIMEOUT)
                self._kill()
                raise
        self._report.print_end(self._schedule)
        return self._exit_status()

    def busy(self) -> list[RunSpec]:
        """The runs that another process trained when their turn came, and those that take their masks."""
        return [run for run, end in self._schedule.outcomes.items() if end.ending is Ending.BUSY]

    def _watch(self, threads: list[Future[None]]) -> None:
        """Wait for the threads; react to signals and to the time limit."""
        while True:
            ended, active = wait(threads, 0.1, FIRST_EXCEPTION)
            for thread in ended:
                thread.result()
            if not active:
                return
            if self._stop_signal:
                self._stop(EXIT_INTERRUPTED if self._stop_signal == signal.SIGINT else EXIT_SAVED)
                self._kill_at = min(self._kill_at, time.monotonic() + _STOP_TIMEOUT)
            elif time.monotonic() >= self._stop_at:
                self._stop(EXIT_SAVED)
            if time.monotonic() >= self._kill_at:
                self._kill()

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        def note(number: int, _: object) -> None:
            self._stop_signal = number

        before = {number: signal.signal(number, note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, status: int) -> None:
        """Start no more runs and have the active ones save, once."""
        with self._lock:
            if self._stop_status:
                return
            self._stop_status = status
            for worker in self._active:
                worker.signal(signal.SIGTERM)
        self._schedule.stop()

    def _kill(self) -> None:
        """Kill the runs that did not save; their last checkpoints remain."""
        with self._lock:
            for worker in self._active:
                worker.signal(signal.SIGKILL)

    def _worker_loop(self) -> None:
        """Run one after the other until none is left. Each thread executes this, with a worker of its own."""
        worker = None
        try:
            while (run := self._schedule.take()) is not None:
                outcome = self._outcome_by_other_process(run)
                if outcome is None:
                    if worker is not None and not (is_short(run) and worker.is_reusable):
                        worker.close()
                        worker = None
                    worker = worker or self._new_worker(run)
                    outcome = self._train(run, worker)
                self._finish(run, outcome, self._may_retry(run, outcome))
        finally:
            if worker is not None:
                worker.close()

    def _new_worker(self, run: RunSpec) -> Worker:
        """A process whose runs share the cores of this one with those of the other threads."""
        cores_per_run = max(1, len(os.sched_getaffinity(0)) // self._jobs)
        threads = {}
        if is_short(run):
            threads = {"OMP_NUM_THREADS": "1"}
        elif self._jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            threads = {"OMP_NUM_THREADS": str(cores_per_run)}
        return Worker(TRAIN, threads, is_short(run))

    def _outcome_by_other_process(self, run: RunSpec) -> Outcome | None:
        """The outcome of a run that another process finished or trains; None if there is none."""
        kind = self._sweeps.state(run, masks=run in self._sources).kind
        return {Status.DONE: Outcome(Ending.DONE), Status.RUNNING: Outcome(Ending.BUSY)}.get(kind)

    def _train(self, run: RunSpec, worker: Worker) -> Outcome:
        log = self._sweeps.local_log(run)
        try:
            self._sweeps.logs.mkdir(parents=True, exist_ok=True)  # someone may have removed it
            with open_text(log, "a") as file:
                start = os.fstat(file.fileno()).st_size
        except OSError as error:
            return Outcome(Ending.FAILED, 1 if is_of_machine(error) else 2, explain(error))
        with self._lock:
            if self._stop_status:
                return Outcome(Ending.STOPPED)
            self._active.add(worker)
        self._report.start(run)
        # a resumed run sets the number of threads of its checkpoint, which the next one must not inherit
        threads = ["compute.threads=1"] if is_short(run) else []
        status = worker.run([*self._sweeps.argv(run), *threads], log)
        with self._lock:
            self._active.discard(worker)
            self._report.end(run)
        if status == 0:
            return Outcome(Ending.DONE)
        killed = self._stop_status and status < 0  # its last checkpoint remains: no failure
        if status == EXIT_SAVED or killed:
            with contextlib.suppress(OSError), open_text(log, "a") as file:  # it resumes in any case
                file.write(f"\n{STOPPED_LINE}\n")
            return Outcome(Ending.STOPPED, status)
        other = self._outcome_by_other_process(run)  # another process may have started it first
        try:
            reason = last_log_line(log, start)
        except OSError as error:
            reason = f"{log} was removed ({one_line(error)}): start the same command again"
        return other or Outcome(Ending.FAILED, status, f"{reason} (exit status {status})")

    def _finish(self, run: RunSpec, outcome: Outcome, retry: bool = False) -> None:
        """Note and print how a run ended, and that its dependents cannot start if it failed."""
        with self._lock:
            blocked = self._schedule.finish(run, outcome, retry)
            self._report.print_outcome(run, outcome, self._schedule)
        if outcome.ending is Ending.DONE:
            self._after_run()
        why = _BLOCKING_REASONS[outcome.ending] if blocked else ""
        for other in blocked:
            reason = f"not started, since {run} {why}, whose masks it takes"
            self._finish(other, Outcome(outcome.ending, outcome.status, reason))

    def _may_retry(self, run: RunSpec, outcome: Outcome) -> bool:
        """Record a failure within a slice; return True if the run may be retried in it."""
        if self._failures is None or outcome.ending is not Ending.FAILED:
            return False
        if self._sweeps.state(run).kind is Status.DIVERGED:  # a result
            return False
        # missing data, a full disk: a retry helps only once the data are there or the disk has space
        if outcome.status == 2 or names_error_of_machine(outcome.reason):
            return False
        try:
            return self._failures.add(run, outcome.reason) < MAX_FAILURES
        except OSError:  # it is tried in the next slice
            return False

    def _exit_status(self) -> int:
        ends = [end for end in self._schedule.outcomes.values() if end.ending is Ending.FAILED]
        if self._stop_signal and self._stop_status:
            return self._stop_status
        if self._schedule.remaining():
            return EXIT_SAVED
        if any(end.status == 2 for end in ends):
            return 2
        return int(bool(ends or self._exhausted))
