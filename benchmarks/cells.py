"""One slice of training: runs side by side that are asked to save before the time is up."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from study import ENOUGH, Cell, Study, pack, placeless_text, top1

STOPPED = 85
_BAR = re.compile(r"\d+/\d+ \[.*\]\s*$")


class UsageError(Exception):
    """What was asked for cannot start; one line with the cure."""


class Slice:
    """Trains what is missing until the time is up, or until it is told to stop.

    Args:
        study: what is wanted.
        jobs: runs side by side.
        stop_at: when runs are asked to save and stop, in seconds of `time.monotonic`.
        kill_at: when those that did not are killed; their last checkpoint remains.
        out: where the archive goes.
    """

    def __init__(self, study: Study, *, jobs: int, stop_at: float, kill_at: float, out: Path) -> None:
        self.study, self.jobs, self.stop_at, self.kill_at, self.out = study, jobs, stop_at, kill_at, out
        self.running: dict[Cell, subprocess.Popen[bytes]] = {}
        self.stopping = False

    def stop(self, *_: object) -> None:
        """Have the slice end now rather than at its time."""
        self.stop_at = time.monotonic()
        self.kill_at = min(self.kill_at, self.stop_at + 20)

    def work(self) -> None:
        """Until nothing is missing or the time is up."""
        queue = deque(self.study.missing())
        (self.study.root / self.study.runs / "logs").mkdir(parents=True, exist_ok=True)
        try:
            while self.running or (queue and not self.stopping):
                if not self.stopping and time.monotonic() >= self.stop_at:
                    self.stopping = True
                    for child in self.running.values():
                        child.send_signal(signal.SIGUSR1)
                while queue and not self.stopping and len(self.running) < self.jobs:
                    self._start(queue.popleft())
                time.sleep(0.1)
                if time.monotonic() >= self.kill_at:
                    self._kill()
                ended = [cell for cell, child in self.running.items() if child.poll() is not None]
                queue.extend(cell for cell in ended if self._end(cell))
        finally:
            self._kill()  # only after an exception of our own is there anything left

    def _start(self, cell: Cell) -> None:
        told = f"from epoch {done + 1}" if (done := self.study.epochs_done(cell)) else "anew"
        say(f"{cell}: begins {told}")
        share = max(1, (os.cpu_count() or 1) // self.jobs)
        environment = {"OMP_NUM_THREADS": str(share)} | os.environ
        with open(self._log(cell, "out"), "ab") as out, open(self._log(cell, "err"), "wb") as err:
            command = self.study.command(cell)
            # a group of its own: Ctrl-C reaches this process alone, which then asks the runs to save
            self.running[cell] = subprocess.Popen(
                command, stdout=out, stderr=err, cwd=self.study.root, env=environment, process_group=0
            )

    def _end(self, cell: Cell) -> bool:
        """Take note of how a run ended; may it be tried once more in this slice?"""
        status = self.running.pop(cell).returncode
        if status == 0 and (summary := self.study.summary(cell)):
            say(f"{cell}: done, {top1(summary)}")
            pack(self.study, self.out)
            return False
        stopped_early = self.stopping and status < 0  # before it could heed a signal: nothing is lost
        if status == STOPPED or stopped_early:
            say(f"{cell}: stopped (status {status})")
            return False
        said = placeless_text(last_line(self._log(cell, "err")) or f"exit status {status}", self.study.root)
        times = self.study.failed(cell, said)
        say(f"{cell}: failed (status {status}, {times} of {ENOUGH} times): {said}")
        return times < ENOUGH

    def _log(self, cell: Cell, kind: str) -> Path:
        return self.study.root / self.study.runs / "logs" / f"{cell.exp}-seed{cell.seed}.{kind}"

    def _kill(self) -> None:
        for child in self.running.values():
            child.kill()
            child.wait()


def say(text: str) -> None:
    print(text, flush=True)


def last_line(path: Path) -> str:
    """The last line on stderr that is no progress bar."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", path.read_text(errors="replace"))]
    return next((line for line in reversed(lines) if line and not _BAR.search(line)), "")


def report(study: Study, before: int, seconds: float) -> None:
    """One line per run, then what is left and how long that takes at this slice's pace."""
    failures = study.failures()
    for cell in study.cells:
        summary, done = study.summary(cell), study.epochs_done(cell)
        said = failures.get(str(cell), [])
        if summary:
            state = f"done, {top1(summary)}"
        elif len(said) >= ENOUGH:
            state = f"failed {len(said)} times: {said[-1]}"
        else:
            state = f"epoch {done} of {study.epochs}" if done else "not started"
        say(f"{cell!s:<32}{state}")
    left = sum(study.epochs - study.epochs_done(cell) for cell in study.missing())
    gained = sum(map(study.epochs_done, study.cells)) - before
    done = sum(study.summary(cell) is not None for cell in study.cells)
    pace = f"about {_duration(left * seconds / gained)} left" if gained > 0 else "time left unknown"
    say(f"{done} of {len(study.cells)} runs done, {left} epochs left" + (f": {pace}" if left else ""))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes else f"{seconds:.0f} s"


def train(study: Study, *, jobs: int, deadline: float, grace: float, out: Path) -> int:
    """One slice of training; returns the exit status.

    Raises:
        UsageError: another slice is under way here.
    """
    with _locked(study.root / study.runs):
        began, before = time.monotonic(), sum(map(study.epochs_done, study.cells))
        piece = Slice(study, jobs=jobs, stop_at=deadline - grace, kill_at=deadline - grace / 4, out=out)
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        handlers = {number: signal.signal(number, piece.stop) for number in wanted}
        try:
            piece.work()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        pack(study, out)
        report(study, before, time.monotonic() - began)
    return STOPPED if study.missing() else int(bool(study.hopeless()))


def _locked(runs: Path) -> TextIO:
    runs.mkdir(parents=True, exist_ok=True)
    lock = open(runs / "lock", "w")  # noqa: SIM115 - held by the caller
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UsageError("another slice is under way here: wait for its end") from None
    return lock
