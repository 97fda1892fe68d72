"""What is known of each run of a sweep: done, running, queued, failed, stale, or not launched yet.

Knows run directories, committed records, manifests and logs in <runs>/.sweeps, and squeue; imports no torch.
A run is done where the rules of records say so: what they refuse would be missing from tables and figures.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ham.report.records import (
    DEMOS,
    RESULTS,
    InvalidRecord,
    check,
    metrics_path,
    path_of,
    read,
    stores_history,
)
from ham.report.spec import PlanError, RunSpec, with_sources

JOB = "ham-"  # a job's name is this and its manifest's hash
_SAFE = re.compile(r"[\w./@+=:-]+")
_BAR = re.compile(r"^.*\d+/\d+ \[[^]]*\]")
_NOISE = re.compile(r"srun: (error: .*Exited with exit|launch/slurm|.*Terminat|Job step aborted)")


class SweepError(Exception):
    """A sweep that cannot go on; the message is one line and names the cure."""


class SlurmCommandError(SweepError):
    """A command of SLURM has answered no, and has done nothing."""


class Status(StrEnum):
    """States of a run."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    FAILED = "failed"
    STALE = "stale"
    NOT_LAUNCHED = "not launched"


@dataclass(frozen=True)
class RunStatus:
    """A run's state; `note`: why it failed, waits or is stale; `job`: <array>_<task> of what SLURM has."""

    kind: Status
    note: str = ""
    job: str = ""

    @property
    def is_active(self) -> bool:
        """Is it under way, with SLURM or on this machine?"""
        return self.kind in (Status.RUNNING, Status.QUEUED)

    @property
    def is_launchable(self) -> bool:
        """Is it to be launched?"""
        return self.kind in (Status.FAILED, Status.NOT_LAUNCHED)


class Sweeps:
    """The runs of one folder, and what sweeps have left of them in its `.sweeps`.

    Args:
        runs: where run directories go.
        live: line of a manifest -> state, of what SLURM has; see `queue`.
        lenient: finished runs count as done although the rules of records refuse them.

    Raises:
        SweepError: the folder's name cannot stand in a manifest, or it is no folder.
    """

    def __init__(self, runs: Path, live: dict[str, RunStatus] | None = None, lenient: bool = False) -> None:
        self.runs, self._lenient = runs.resolve(), lenient
        there = next(path for path in (self.runs, *self.runs.parents) if path.exists())
        if not there.is_dir():
            raise SweepError(f"{there} is no folder: choose other --runs")
        if not _SAFE.fullmatch(str(self.runs)):
            raise SweepError(f"{self.runs} has a space or another sign that Hydra reads: choose other --runs")
        self.folder, self.logs = self.runs / ".sweeps", self.runs / ".sweeps" / "logs"
        self.live = live or {}

    def line(self, run: RunSpec) -> str:
        """The run as arguments of train.py, separated by spaces."""
        return " ".join([*run.argv, f"runs_dir={self.runs}"])

    def log(self, manifest: str, task: int | str) -> Path:
        """Log of a manifest's line, which all its attempts append to."""
        return self.logs / f"{manifest}-{task}.log"

    def local_log(self, run: RunSpec) -> Path:
        """Log of a run that was carried out without SLURM."""
        return self.logs / f"local-{run.name}-seed{run.seed}.log"

    def write(self, runs: list[RunSpec]) -> Path:
        """An immutable manifest of these runs, named by the hash of its content."""
        content = "".join(f"{self.line(run)}\n" for run in runs).encode()
        path = self.folder / f"manifest-{sha256(content).hexdigest()[:12]}.txt"
        self.logs.mkdir(parents=True, exist_ok=True)  # SLURM makes log files, not folders
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(content)
            temporary.chmod(0o444)
            temporary.replace(path)
        elif path.read_bytes() != content:
            raise SweepError(f"{path} was changed after it was written: delete it and submit again")
        return path

    @cached_property
    def launched(self) -> dict[str, list[Path]]:
        """Line -> the logs it may have, of every manifest."""
        known: dict[str, list[Path]] = {}
        for path in sorted(self.folder.glob("manifest-*.txt")):
            for task, line in enumerate(_lines(path), start=1):
                known.setdefault(line, []).append(self.log(_hash(path), task))
        return known

    def queue(self) -> None:
        """Ask SLURM what it has. Raises SweepError where there is none or it does not answer."""
        manifests = {f"{JOB}{_hash(path)}": _lines(path) for path in self.folder.glob("manifest-*.txt")}
        for line in slurm("squeue", "--me", "-h", "-r", "-o", "%j|%F|%K|%T|%r").splitlines():
            name, job, task, status, reason = (line.split("|", 4) + [""] * 5)[:5]
            lines = manifests.get(name, [])
            if task.isdecimal() and 1 <= int(task) <= len(lines):
                kind = Status.QUEUED if status == "PENDING" else Status.RUNNING
                note = reason if kind is Status.QUEUED and reason != "None" else ""
                self.live[lines[int(task) - 1]] = RunStatus(kind, note, f"{job}_{task}")

    def state(self, run: RunSpec, masks: bool = False) -> RunStatus:
        """A run's state.

        Args:
            run: which.
            masks: another run will need its masks.pt, which no committed record holds.
        """
        folder, expected = run.folder(self.runs), run.info.config_hash
        live = self.live.get(self.line(run))
        summary = _json(folder / "summary.json")
        begun = summary or ((folder / "last.pt").exists() and _json(folder / "provenance.json"))
        if begun and begun.get("config_hash") != expected:
            was, cure = str(begun.get("config_hash"))[:8], "move it away to run it anew"
            return RunStatus(Status.STALE, f"{folder} is of configuration {was}, now {expected[:8]}: {cure}")
        if summary and masks and not (folder / "masks.pt").exists():
            cure = "delete it to run it anew"
            return RunStatus(Status.STALE, f"{folder} has no masks.pt, which others need: {cure}")
        ended = summary is not None and summary.get("status") == "done"
        refusal = self._refusal(run, folder, summary) if ended else ""
        if ended and not refusal:
            return RunStatus(Status.DONE)
        if live:
            return live
        if _is_locked(folder):
            return RunStatus(Status.RUNNING, "on this machine")
        recorded = None if masks else _recorded(run)
        if refusal and (recorded is None or recorded.kind is not Status.DONE):
            return RunStatus(Status.STALE, f"{folder}: {refusal} (move it away first)")
        return recorded or self._unfinished(run, folder)

    def _refusal(self, run: RunSpec, folder: Path, summary: dict[str, Any]) -> str:
        """Why a finished run becomes no record, "" if it may, or if its scale has no records."""
        if self._lenient or run.demo not in ("", *DEMOS):
            return ""
        try:
            told = check(summary)
        except (InvalidRecord, PlanError) as error:
            return str(error)
        if (told.name, told.seed) != (run.name, run.seed):
            return f"it says that it is {told}, which lies in {told.name}/seed{told.seed}"
        if stores_history(run) and not (folder / "metrics.jsonl").exists():
            return "it has no metrics.jsonl: run it again"
        return ""

    def _unfinished(self, run: RunSpec, folder: Path) -> RunStatus:
        """A run that is nowhere done: was it launched, and what were its last words?"""
        logs = [*self.launched.get(self.line(run), []), self.local_log(run), folder / "train.log"]
        found = sorted((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime)
        if found:
            return RunStatus(Status.FAILED, last_log_line(found[-1]))
        if self.line(run) in self.launched:
            return RunStatus(Status.FAILED, "ended before it started")
        return RunStatus(Status.NOT_LAUNCHED)

    def survey(self, chosen: list[RunSpec]) -> dict[RunSpec, RunStatus]:
        """The chosen runs and those whose masks they still need, no run before its source."""
        states, needed, asked = {}, set(), set(chosen)
        for run in reversed(with_sources(chosen)):
            if run not in asked and run not in needed:
                continue
            state = states[run] = self.state(run, masks=run in needed)
            waits = state.is_launchable or state.kind is Status.QUEUED
            if waits and not (run.folder(self.runs) / "last.pt").exists():  # a checkpoint holds the masks
                needed.add(run.depends_on)
        return dict(reversed(states.items()))


def open_runs(states: dict[RunSpec, RunStatus]) -> list[RunSpec]:
    """What is to be launched: neither done nor live nor stale, and whose masks are there or will come."""
    held = set(blocked(states))
    return [run for run, state in states.items() if state.is_launchable and run not in held]


def blocked(states: dict[RunSpec, RunStatus]) -> list[RunSpec]:
    """Runs that cannot be launched: the run whose masks they take is stale, or SLURM cannot wait for it."""
    unsure = {run for run, s in states.items() if s.kind is Status.STALE or (s.is_active and not s.job)}
    return [run for run, state in states.items() if state.is_launchable and run.depends_on in unsure]


def dependency_levels(todo: list[RunSpec]) -> list[list[RunSpec]]:
    """The runs in groups, each after the sources of its members; `todo` has sources first."""
    depth: dict[RunSpec, int] = {}
    for run in todo:
        depth[run] = depth.get(run.depends_on, -1) + 1
    return [
        [run for run in todo if depth[run] == level] for level in range(max(depth.values(), default=-1) + 1)
    ]


def slurm(*command: str, environment: dict[str, str] | None = None) -> str:
    """What a SLURM command prints. Raises SweepError."""
    if shutil.which(command[0]) is None:
        raise SweepError(
            f"there is no SLURM here ({command[0]} is not on the PATH): use --local, or a login node"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    except subprocess.TimeoutExpired:
        raise SweepError(f"{command[0]} does not answer: try again later") from None
    if done.returncode:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()
        clear = [line for line in said if "error" in line] or [line for line in said if "--help" not in line]
        told = f"{command[0]} failed: {(clear or said)[0].removeprefix(f'{command[0]}: ')}"
        raise (SweepError if "timed out" in told.lower() else SlurmCommandError)(told)
    return done.stdout


def last_log_line(log: Path, start: int = 0) -> str:
    """The last line of a log that tells something, without progress bars and srun's echo.

    Args:
        log: the file.
        start: what stands before this byte does not count.
    """
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 2**16))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    told = [text for line in lines if (text := _BAR.sub("", line).strip())]
    clear = [line for line in told if not _NOISE.match(line)]
    return (clear or told or [f"{log} is empty" if not start else f"it added nothing to {log}"])[-1][:200]


def _recorded(run: RunSpec) -> RunStatus | None:
    """What its committed record says; None where there is none, or its epochs are missing."""
    path = path_of(run, RESULTS)
    if run.demo not in ("", *DEMOS) or not path.exists():
        return None
    try:
        read(path)
    except InvalidRecord as error:
        return RunStatus(Status.STALE, f"{error} (delete it first)")
    whole = metrics_path(path).exists() or not stores_history(run)
    return RunStatus(Status.DONE) if whole else None


def _is_locked(folder: Path) -> bool:
    """Does a process on this machine train in this run directory, or in one of a search's trials?"""
    for path in (folder / "lock", *folder.glob("trial*/lock")):
        try:
            with path.open() as lock:  # closing it gives it free at once
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is none, or this file system has no locks
            continue
    return False


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _lines(manifest: Path) -> list[str]:
    return manifest.read_text(errors="replace").splitlines()


def _hash(manifest: Path) -> str:
    return manifest.stem.removeprefix("manifest-")
