"""A folder of run directories, and the manifests and logs that sweeps keep in its `.sweeps`."""

from __future__ import annotations

import errno
import os
import re
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from ham.command_line import unusable
from ham.errors import one_line
from ham.files import atomic_write, open_binary, read_bytes
from ham.report.spec import RunSpec

_BAR = re.compile(r"^.*\d+/\d+ \[[^]]*\]")
_NOISE = re.compile(r"srun: (error: .*Exited with exit|launch/slurm|.*Terminat|Job step aborted)")


class SweepError(Exception):
    """The sweep cannot continue; the message is one line and names the cure."""


class RunsFolder:
    """A folder of run directories.

    Args:
        runs: the folder; need not exist.

    Attributes:
        damaged: one line for each manifest that cannot be read or was changed, once `manifests` was called.

    Raises:
        SweepError: its name cannot be part of a manifest, or it is not a folder.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = Path(os.path.realpath(runs))  # a loop of links stays as it is
        if problem := unusable(str(self.runs)) or _interpreted_characters(str(self.runs)):
            raise SweepError(f"{str(self.runs)!a} has {problem}: choose other --runs")
        existing = next(path for path in (self.runs, *self.runs.parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise SweepError(f"{existing} is not a folder: choose other --runs")
        self.folder, self.logs = self.runs / ".sweeps", self.runs / ".sweeps" / "logs"
        self.damaged: list[str] = []

    def argv(self, run: RunSpec) -> list[str]:
        """The run as arguments of train.py."""
        return [*run.argv, f"runs_dir={self.runs}"]

    def line(self, run: RunSpec) -> str:
        """The run's line in a manifest: arguments separated by spaces; the last, runs_dir, may have some."""
        return " ".join(self.argv(run))

    def log(self, manifest: str, task: int | str) -> Path:
        """Log of a manifest's line; all attempts append to it."""
        return self.logs / f"{manifest}-{task}.log"

    def local_log(self, run: RunSpec) -> Path:
        """Log of a run on this machine."""
        return self.logs / f"local-{run.name.replace('/', '-')}-seed{run.seed}.log"

    def write(self, runs: list[RunSpec]) -> Path:
        """Write an immutable manifest of these runs, named by the hash of its content."""
        content = os.fsencode("".join(f"{self.line(run)}\n" for run in runs))
        path = self.folder / f"manifest-{_digest(content)}.txt"
        self.logs.mkdir(parents=True, exist_ok=True)  # SLURM creates log files, but no folders
        if not path.exists():
            atomic_write(path, lambda file: file.write(content))
            path.chmod(0o444)
        elif read_bytes(path) != content:
            raise SweepError(f"{path} was changed after it was written: delete it and submit again")
        return path

    def manifests(self) -> dict[str, list[str]]:
        """Hash of every manifest that can be read -> its lines."""
        known, self.damaged = {}, []
        for path in sorted(self.folder.glob("manifest-*.txt")):
            try:
                content = read_bytes(path)
            except OSError as error:
                self.damaged.append(f"{path} cannot be read ({one_line(error)}): fix that or move it away")
                continue
            if manifest_hash(path) != _digest(content):
                self.damaged.append(f"{path} was changed after it was written: move it away")
            known[manifest_hash(path)] = os.fsdecode(content).removesuffix("\n").split("\n")
        return known

    @cached_property
    def launched(self) -> dict[str, list[Path]]:
        """Line of any manifest -> the logs it may have."""
        known: dict[str, list[Path]] = {}
        for name, lines in self.manifests().items():
            for task, line in enumerate(lines, start=1):
                known.setdefault(line, []).append(self.log(name, task))
        return known


def _digest(content: bytes) -> str:
    """The hash in the name of a manifest with this content."""
    return sha256(content).hexdigest()[:12]


def _interpreted_characters(runs: str) -> str:
    """The characters of a folder's name that SLURM or OmegaConf interprets even in quotes; "" if none."""
    return next((f"the characters {text}" for text in ("\\", "${") if text in runs), "")


def manifest_hash(manifest: Path) -> str:
    """The hash in a manifest's name."""
    return manifest.stem.removeprefix("manifest-")


STOPPED_LINE = "stopped by its sweep: the same command resumes it"
"""The last line of the log of a run that the sweep stopped, without a fault of the run."""


def last_log_line(log: Path, start: int = 0) -> str:
    """The last informative line of a log; bytes before `start` are ignored. See `last_log_lines`."""
    return last_log_lines(log, 1, start)[-1]


def last_log_lines(log: Path, count: int, start: int = 0) -> list[str]:
    """The last informative lines of a log, at least one, without progress bars and srun's echo.

    Args:
        log: the file.
        count: largest number of lines.
        start: bytes before this position are ignored.
    """
    lines = re.split(r"[\r\n]+", log_end(log, start))
    texts = [text for line in lines if (text := _BAR.sub("", line).strip())]
    clear = [line for line in texts if not _NOISE.match(line)]
    last = clear or texts or [_describe_empty_log(log, start)]
    return [line[:200] for line in last[-count:]]


def _describe_empty_log(log: Path, start: int) -> str:
    """The reason for a log without lines after `start`, such as a full disk."""
    problem = f"{log} is empty" if not start else f"it added nothing to {log}"
    is_full = os.statvfs(log).f_bavail == 0
    return f"{problem} ({os.strerror(errno.ENOSPC)}): free space" if is_full else problem


def log_end(log: Path, start: int = 0) -> str:
    """The last 64 KiB of a log; bytes before `start` are ignored."""
    with open_binary(log) as file:
        file.seek(max(start, log.stat().st_size - 2**16))
        return file.read().decode(errors="replace")
