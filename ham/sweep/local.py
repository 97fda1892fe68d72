"""Carry the runs of a sweep out on this machine, a process each. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from ham.report.spec import ROOT, RunSpec

from .status import Sweeps, dependency_levels, last_log_line

_PATIENCE = 60  # seconds for a run to save and end


def carry_out(todo: list[RunSpec], sweeps: Sweeps, jobs: int) -> list[str]:
    """Carry the runs out, sources first; returns a line about each that failed.

    Ctrl-C, SIGTERM and a lost terminal ask those that run to save, and no more are started; the
    KeyboardInterrupt goes on to the caller.
    """
    sweeps.logs.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the runs would outlive this process
        signal.signal(number, signal.default_int_handler)
    here, failures = Processes(sweeps), {}
    with tqdm(total=len(todo), unit="run", smoothing=0) as bar, ThreadPoolExecutor(jobs) as pool:

        def ended(run: RunSpec, reason: str) -> None:
            bar.update()
            if reason:
                failures[run] = f"{run}: {reason}"
                bar.write(f"failed: {failures[run]}", file=sys.stderr)

        try:
            for wave in dependency_levels(todo):
                ends = {pool.submit(here.run, run): run for run in wave if run.depends_on not in failures}
                for run in wave:
                    if run not in ends.values():
                        ended(run, f"not started, since {run.depends_on} failed, whose masks it takes")
                for end in as_completed(ends):
                    ended(ends[end], end.result())
        except BaseException:
            here.stop()
            raise
    return list(failures.values())


class Processes:
    """The processes that run here now."""

    def __init__(self, sweeps: Sweeps) -> None:
        self._sweeps, self._lock, self._stopping = sweeps, threading.Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, run: RunSpec) -> str:
        """One run to its end; returns why it failed, or ""."""
        command = [sys.executable, str(ROOT / "train.py"), *self._sweeps.line(run).split()]
        single = {"OMP_NUM_THREADS": "1"} if run.demo else {}
        log = self._sweeps.local_log(run)
        with self._lock:
            if self._stopping:
                return "stopped"
            with log.open("ab") as file:
                start = file.tell()
                process = subprocess.Popen(  # in a session of its own: Ctrl-C is ours to pass on
                    command, stdout=file, stderr=file, env=os.environ | single, start_new_session=True
                )
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        return f"{last_log_line(log, start)} (exit status {status})" if status else ""

    def stop(self) -> None:
        """Ask all to save and end, kill those that do not, and start no more."""
        with self._lock:
            self._stopping, left = True, list(self._running)
        for process in left:
            process.send_signal(signal.SIGTERM)
        for process in left:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
