"""A run's directory: its files and the lock that keeps other processes out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ham.files import atomic_write_json, atomic_write_text, lock_file, one_line, sync_folder

from .checkpoint import CheckpointError
from .config import ConfigError

DIVERGED = "diverged.json"
_EARLIER = ("commit", "dirty", "hardware", "ranks")


class RunLockedError(ConfigError):
    """Another process works on this run."""


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None if it is not finished, or if the file is incomplete.

    Raises:
        OSError: the file cannot be read: a finished run must not be taken for an unfinished one.
    """
    try:
        return json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


class RunDirectory:
    """Reads and writes a run's files. metrics.jsonl has no times: a resumed run repeats it exactly.

    Args:
        folder: created if it does not exist, and locked for this process.

    Raises:
        ConfigError: it cannot be written.
        RunLockedError: another process holds its lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_file(folder / "lock")
        except BlockingIOError:
            raise RunLockedError(
                f"another process is running in {folder}: wait for it or choose another seed"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"cannot write runs to {folder}: {one_line(error)}; choose another runs_dir"
            ) from error

    def unlock(self) -> None:
        """Release the lock."""
        self._lock.close()

    def clear(self) -> None:
        """Delete an earlier run."""
        for name in (
            "summary.json",
            "previous.pt",
            "last.pt",
        ):  # first, so that no remainder looks like a run
            (self.folder / name).unlink(missing_ok=True)
        sync_folder(self.folder)
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write_metadata(self, provenance: dict[str, Any], config_yaml: str) -> None:
        """Write config.yaml and provenance.json, which keeps the facts of earlier processes of this run."""
        atomic_write_text(self.folder / "config.yaml", config_yaml)
        earlier = []
        if (self.folder / "provenance.json").exists():
            before = self.provenance()
            earlier = [*before["resumed_from"], {key: before.get(key) for key in _EARLIER}]
        atomic_write_json(self.folder / "provenance.json", provenance | {"resumed_from": earlier})

    def provenance(self) -> dict[str, Any]:
        """Content of provenance.json. Raises CheckpointError if it is damaged."""
        path = self.folder / "provenance.json"
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: start again with resume=false") from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the run as finished."""
        atomic_write_json(self.folder / "summary.json", summary)
        (self.folder / DIVERGED).unlink(missing_ok=True)  # of an earlier attempt

    def write_divergence(self, content: dict[str, Any]) -> None:
        """Write diverged.json, which says why and where the run ended without a result."""
        atomic_write_json(self.folder / DIVERGED, content)

    def append_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Append lines to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def truncate_metrics(self, size: int) -> None:
        """Remove lines written after a checkpoint. Raises CheckpointError if lines of it are missing."""
        path = self.folder / "metrics.jsonl"
        if self.metrics_size() < size:
            raise CheckpointError(
                f"{path} is shorter than its checkpoint expects: start again with resume=false"
            )
        if path.exists():
            os.truncate(path, size)
