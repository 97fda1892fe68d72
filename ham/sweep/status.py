"""The status of each run: done, running, queued, failed, diverged, stale, or not launched.

This is the one definition of done.

It follows from run directories, committed records, the manifests and logs in <runs>/.sweeps, and squeue.
A run is done if it has the current configuration hash and the rules of records accept it: otherwise it would
be missing in tables and figures.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from ham.errors import one_line
from ham.files import is_locked, open_binary, read_bytes, read_json
from ham.report.collect import check_first_outcome, history, read_directory
from ham.report.odd_files import parse_json
from ham.report.records import (
    DEMOS,
    RESULTS,
    InvalidRecord,
    check,
    check_divergence,
    diverged_path,
    metrics_path,
    path_of,
    read,
    stores_history,
)
from ham.report.spec import PlanError, RunSpec, with_sources

from .manifests import STOPPED_LINE, RunsFolder, last_log_line

_FILES = ("summary.json", "diverged.json", "provenance.json", "metrics.jsonl", "train.log")  # read here

_RESULT_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  )?run {10}\S")
"""The last line of a run that is done, see `ham.run.main.print_summary`."""
_REQUEUED = re.compile(r"CANCELLED .*DUE TO (JOB REQUEUE|PREEMPTION)|  slurm: saved; requeueing ")
"""The last line of a job that starts again, see slurm/job.sh."""


class Status(StrEnum):
    """What a run's status can be."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    FAILED = "failed"
    DIVERGED = "diverged"
    STALE = "stale"
    NOT_LAUNCHED = "not launched"


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Args:
        kind: the status.
        note: reason why it failed, waits or is stale.
        job: SLURM's <array>_<task> if it is running or queued there.
        is_damaged: True if a file of the run cannot be read; the note names it.
    """

    kind: Status
    note: str = ""
    job: str = ""
    is_damaged: bool = False

    @property
    def is_active(self) -> bool:
        """True if the run is queued or running, under SLURM or by another process."""
        return self.kind in (Status.RUNNING, Status.QUEUED)

    @property
    def is_launchable(self) -> bool:
        """True if the run may be launched."""
        return self.kind in (Status.FAILED, Status.NOT_LAUNCHED)


class Sweeps(RunsFolder):
    """The runs of one folder and their status.

    Args:
        runs: the folder of run directories.
        lenient: True to count finished runs as done even if the rules of records reject them.
        again: committed records do not count, only run directories do.

    Attributes:
        active: line of a manifest -> status, of what SLURM has; `ham.sweep.slurm.read_queue` fills it.
        queue_error: reason why SLURM's runs are unknown; "" if they are known.
        is_queue_silent: True if SLURM exists and does not answer: it may have runs that were submitted.

    Raises:
        SweepError: the folder's name cannot be part of a manifest, or it is not a folder.
    """

    def __init__(self, runs: Path, *, lenient: bool = False, again: bool = False) -> None:
        super().__init__(runs)
        self._lenient, self._again = lenient, again
        self.active: dict[str, RunStatus] = {}
        self.queue_error = ""
        self.is_queue_silent = False

    def state(self, run: RunSpec, masks: bool = False) -> RunStatus:
        """A run's status.

        Args:
            run: the run.
            masks: another run needs its masks.pt, or the checkpoint that replaces it, which committed records
                do not hold.

        A run with a file that cannot be read is stale, unless it is active.
        """
        try:
            _check_files(run.folder(self.runs))
            return self._state(run, masks)
        except OSError as error:
            path = error.filename or run.folder(self.runs)
            problem = f"{path} cannot be read ({one_line(error)}): fix that or move it away"
        other = RunStatus(Status.RUNNING if self.is_locked(run) else Status.STALE)
        return replace(self.active.get(self.line(run), other), note=problem, is_damaged=True)

    def _state(self, run: RunSpec, masks: bool) -> RunStatus:
        folder, expected = run.folder(self.runs), run.info.config_hash
        summary = read_json(folder / "summary.json")
        started = summary or ((folder / "last.pt").exists() and read_json(folder / "provenance.json"))
        if started and started.get("config_hash") != expected:
            saved, cure = str(started.get("config_hash"))[:8], "move it away to run it again"
            return RunStatus(Status.STALE, f"{folder} has configuration {saved}, now {expected[:8]}: {cure}")
        if summary and masks and not any((folder / name).exists() for name in ("masks.pt", "last.pt")):
            cure = "delete it to run it again"
            return RunStatus(Status.STALE, f"{folder} has no masks.pt, which others need: {cure}")
        finished = summary is not None and summary.get("status") == "done"
        rejection = self._rejection(run, folder) if finished else ""
        if finished and not rejection:
            return RunStatus(Status.DONE)
        if active := self.active.get(self.line(run)):
            return active
        if self.is_locked(run):
            return RunStatus(Status.RUNNING, "by another process")
        if not summary and (note := self._divergence(run)):
            return RunStatus(Status.DIVERGED, note)
        recorded = None if masks or self._again else _status_of_record(run)
        if rejection and (recorded is None or recorded.kind is not Status.DONE):
            return RunStatus(Status.STALE, f"{folder}: {rejection}")
        return recorded or self._status_of_unfinished(run)

    def _divergence(self, run: RunSpec) -> str:
        """Why the run diverged, by its directory or its committed record, and the cure; "" if it did not."""
        files = [run.folder(self.runs) / "diverged.json"]
        if not self._again:
            files.append(diverged_path(path_of(run, RESULTS)))
        for path in files:
            content = read_json(path)
            if isinstance(content, dict) and content.get("config_hash") == run.info.config_hash:
                with suppress(InvalidRecord):
                    if not self._lenient:
                        check_divergence(content)
                    to_delete = path.parent if path == files[0] else path
                    return f"{content.get('reason')}: delete {to_delete} to run it again"
        return ""

    def outcome(self, run: RunSpec) -> float | None:
        """The accuracy at the last epoch of a run that is done, in percent.

        Raises:
            KeyError: its files have no such metric.
        """
        folder = run.folder(self.runs)
        summary = read_json(folder / "summary.json")
        if not summary or self._rejection(run, folder):
            summary = read_json(path_of(run, RESULTS))
        return summary["metrics"][run.info.reported[0]]

    def is_locked(self, run: RunSpec) -> bool:
        """Return True if a process trains in the run's directory, or in a trial of its calibration."""
        folder = run.folder(self.runs)
        return any(map(is_locked, (folder / "lock", *folder.glob("trial*/lock"))))

    def epochs_done(self, run: RunSpec) -> int:
        """Epochs that its directory has metrics of; a language model's have several lines each."""
        try:
            content = read_bytes(run.folder(self.runs) / "metrics.jsonl")
        except OSError:
            return 0
        return len(set(re.findall(rb'^\{"epoch": (\d+)', content, re.MULTILINE)))

    def existing_logs(self, run: RunSpec) -> list[Path]:
        """The logs of all its attempts, the latest last."""
        folder = run.folder(self.runs)
        logs = [*self.launched.get(self.line(run), []), self.local_log(run), folder / "train.log"]
        return sorted((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime)

    def _rejection(self, run: RunSpec, folder: Path) -> str:
        """Why collect.py rejects a finished run; "" if it does not, or if its scale has no records."""
        if self._lenient or run.demo not in ("", *DEMOS):
            return ""
        try:
            finished = read_directory(folder)
            summary = parse_json(finished.content("summary.json") or b"")
            named = check(summary)
            if (named.name, named.seed) != (run.name, run.seed):
                return f"its summary is of {named}: move it to {named.name}/seed{named.seed}"
            if not self._again:
                check_first_outcome(path_of(run, RESULTS))
            history(finished, summary, run)
        except (InvalidRecord, PlanError) as error:
            return str(error)
        return ""

    def _status_of_unfinished(self, run: RunSpec) -> RunStatus:
        """The status of a run without a result, by the list of launched runs and the end of its log."""
        if logs := self.existing_logs(run):
            last = last_log_line(logs[-1])
            if last == STOPPED_LINE:  # by the end of a local sweep or of its time: nothing went wrong
                return RunStatus(Status.NOT_LAUNCHED, "stopped")
            if _RESULT_LINE.match(last):
                return RunStatus(
                    Status.NOT_LAUNCHED, "it finished, but its summary.json is missing or damaged"
                )
            if _REQUEUED.search(last) and self.is_queue_silent:
                return RunStatus(Status.QUEUED, f"it was requeued, and {self._silence()}")
            if _REQUEUED.search(last):
                return RunStatus(Status.NOT_LAUNCHED, "it was requeued, and its job is gone")
            return RunStatus(Status.FAILED, last)
        if self.line(run) in self.launched:
            if self.is_queue_silent:
                return RunStatus(Status.QUEUED, f"it was submitted, and {self._silence()}")
            return RunStatus(Status.FAILED, "ended before it started")
        return RunStatus(Status.NOT_LAUNCHED)

    def _silence(self) -> str:
        return f"SLURM does not answer: if no job is left, delete {self.folder}/manifest-*.txt"

    def survey(self, chosen: list[RunSpec]) -> dict[RunSpec, RunStatus]:
        """The chosen runs and the sources that they still need, no run before its source."""
        states, needed, selected = {}, set(), set(chosen)
        for run in reversed(with_sources(chosen)):
            if run not in selected and run not in needed:
                continue
            state = states[run] = self.state(run, masks=run in needed)
            waits = state.is_launchable or state.kind is Status.QUEUED
            if waits and not (run.folder(self.runs) / "last.pt").exists():  # a checkpoint holds the masks
                needed.add(run.depends_on)
        return dict(reversed(states.items()))


def _check_files(folder: Path) -> None:
    """Raise OSError if a file of a run directory cannot be read, or is not a regular file.

    The log matters only where it gives the reason of a failure: not beside a summary.
    """
    try:
        names = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in _FILES:
        if name in names and not (name == "train.log" and "summary.json" in names):
            with suppress(FileNotFoundError):
                open_binary(folder / name).close()


def _status_of_record(run: RunSpec) -> RunStatus | None:
    """The status by the committed record of a run; None without a record, or if its epochs are missing."""
    path = path_of(run, RESULTS)
    if run.demo not in ("", *DEMOS) or not path.exists():
        return None
    try:
        read(path)
    except InvalidRecord as error:
        return RunStatus(Status.STALE, str(error))
    is_complete = metrics_path(path).exists() or not stores_history(run)
    return RunStatus(Status.DONE) if is_complete else None
