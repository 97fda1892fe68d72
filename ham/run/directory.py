"""A run's directory: its files and the lock that keeps other processes out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ham.errors import one_line
from ham.files import lock_file, name_file, open_binary, open_text, read_text, sync_folder, temporary_files

from .checkpoint import LAST, PREVIOUS, SAVED, CheckpointError, check_owner, write_owned
from .config import ConfigError

DIVERGED = "diverged.json"
_FIRST = ("summary.json", PREVIOUS, LAST, SAVED)  # deleted first, so that no remainder looks like a run
_FILES = (*_FIRST, "metrics.jsonl", "train.log", "config.yaml", "provenance.json", "masks.pt", DIVERGED)
_DAMAGED = tuple(Path(name).with_suffix(".damaged").name for name in (LAST, PREVIOUS))
FILES = (*_FILES, *_DAMAGED, *(f".{name}.tmp" for name in _FILES))
"""The files that runs write, without the lock; of temporary files those of version 0.6."""
_NOT_CHECKPOINTS = tuple(name for name in FILES if name not in (LAST, PREVIOUS, *_DAMAGED))
FOLDERS = ("checkpoints", "adapter", "adapter.partial", "answers", "wandb")
"""The folders that runs write."""

_METRICS_CURE = "restore it, or start again with resume=false"
_PROVENANCE_KEYS = ("commit", "dirty", "hardware", "ranks")


class RunLockedError(ConfigError):
    """Another process holds the lock of this run."""


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None if it is not finished, or if the file is damaged.

    Raises:
        ConfigError: the file cannot be read: a finished run must not be treated as an unfinished one.
    """
    path = folder / "summary.json"
    try:
        content = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({one_line(error)}): fix that or move it away") from error
    is_complete = isinstance(content, dict) and isinstance(content.get("config_hash"), str)
    return content if is_complete and isinstance(content.get("metrics"), dict) else None


@contextmanager
def explain_os_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError, also one of safetensors, into a CheckpointError of one line.

    Its `shared` is True if all ranks raise it.
    """
    try:
        yield
    except ConnectionError:  # of another process, not of a file
        raise
    except (OSError, SafetensorError) as error:
        path = getattr(error, "filename", None) or folder
        path = f"a safetensors file in {folder}" if isinstance(error, SafetensorError) else path
        text = f"{path} cannot be read or written: {one_line(error)}"
        explained = CheckpointError(f"{text}; fix that and start the same command again to resume")
        explained.shared = getattr(error, "shared", False)
        raise explained from error


class RunDirectory:
    """Reads and writes a run's files. metrics.jsonl has no times: a resumed run repeats it exactly.

    Before the first step an OSError is a ConfigError. Later, see `explain_os_errors`.

    Args:
        folder: created if it does not exist, and locked for this process.

    Raises:
        ConfigError: it cannot be written, or a folder has the name of a file.
        RunLockedError: another process holds its lock.
    """

    _metrics_bytes: int | None = None
    """Size of metrics.jsonl after the last change by this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._explain_start_errors():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._check_no_folders(_NOT_CHECKPOINTS)  # `checkpoint.load` names those
                self._lock = lock_file(folder / "lock")
            except BlockingIOError as error:
                raise RunLockedError(
                    f"another process is running in {folder} ({one_line(error)}): wait for it or choose "
                    "another seed"
                ) from None
        self._delete_temporary()

    def _delete_temporary(self) -> None:
        """Delete temporary files of killed processes; only the holder of the lock may write."""
        for name in _FILES:
            for path in temporary_files(self.folder / name):
                with suppress(OSError):
                    path.unlink()

    @contextmanager
    def _explain_start_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename and error.filename != str(self.folder) else ""
            raise ConfigError(
                f"cannot write runs to {self.folder}: {one_line(error)}{where}; choose another runs_dir"
            ) from error

    def _check_no_folders(self, names: Iterable[str]) -> None:
        """Raise ConfigError if a folder has the name of a file of the run."""
        for name in names:
            if (path := self.folder / name).is_dir() and not path.is_symlink():
                raise ConfigError(f"{path} is a folder, but must be a file of the run: move it away")

    def unlock(self) -> None:
        """Release the lock."""
        self._lock.close()

    def clear(self) -> list[str]:
        """Delete the files of an earlier run; return the names of all other files, which are kept.

        A link is deleted, never its target.

        Raises:
            ConfigError: a file cannot be deleted, or a folder has its name.
        """
        with self._explain_start_errors():
            self._check_no_folders(FILES)
            for name in _FIRST:
                (self.folder / name).unlink(missing_ok=True)
            sync_folder(self.folder)
            self._delete_temporary()
            self._metrics_bytes = None
            kept = []
            for path in sorted(self.folder.iterdir()):
                if path.name in FOLDERS and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name in (*FILES, *FOLDERS):
                    path.unlink()
                elif path.name not in ("lock", "lock.owner"):
                    kept.append(path.name)
            return kept

    def write_metadata(self, provenance: dict[str, Any], config_yaml: str) -> None:
        """Write config.yaml and provenance.json, which keeps the entries of earlier processes of this run."""
        earlier = []
        if os.path.lexists(self.folder / "provenance.json"):
            before = self.provenance()
            earlier = [*before["resumed_from"], {key: before.get(key) for key in _PROVENANCE_KEYS}]
        with self._explain_start_errors():
            self._write("config.yaml", config_yaml)
            self._write_json("provenance.json", provenance | {"resumed_from": earlier})

    def provenance(self) -> dict[str, Any]:
        """Content of provenance.json. Raises CheckpointError if it is damaged."""
        path = self.folder / "provenance.json"
        try:
            content = json.loads(read_text(path))
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({one_line(error)}): fix that, or move it away and start again with "
                "resume=false"
            ) from error
        except (ValueError, RecursionError):
            content = None
        facts = content if isinstance(content, dict) else {}
        if not isinstance(facts.get("resumed_from"), list) or not isinstance(facts.get("config_hash"), str):
            raise CheckpointError(f"{path} is damaged: start again with resume=false")
        return facts

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the run as finished."""
        check_owner(self.folder)
        self.metrics_size()  # checks that they are there
        (self.folder / DIVERGED).unlink(missing_ok=True)  # of an earlier attempt
        self._write_json("summary.json", summary)

    def write_divergence(self, content: dict[str, Any]) -> None:
        """Write diverged.json, which states why and at which step the run ended without a result."""
        self._write_json(DIVERGED, content)

    def append_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Append lines to metrics.jsonl. Raises CheckpointError as `metrics_size` does."""
        check_owner(self.folder)
        self.metrics_size()
        path = self.folder / "metrics.jsonl"
        with name_file(path), open_text(path, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
            self._metrics_bytes = os.fstat(file.fileno()).st_size

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl; 0 if it is missing.

        Raises:
            CheckpointError: it is not what this process has written.
        """
        path = self.folder / "metrics.jsonl"
        try:
            with open_binary(path) as file:
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise
            size = 0
        if self._metrics_bytes not in (None, size):
            change = f"{path} was deleted or changed during the run ({size} bytes, not {self._metrics_bytes})"
            raise CheckpointError(f"{change}: {_METRICS_CURE}")
        return size

    def truncate_metrics(self, size: int, epochs: int = 0) -> None:
        """Remove lines written after a checkpoint.

        Args:
            size: bytes of the file at the checkpoint.
            epochs: number of lines that it must have then.

        Raises:
            CheckpointError: lines are missing.
        """
        path = self.folder / "metrics.jsonl"
        current_size = self.metrics_size()
        if current_size < size or (epochs and _count_lines(path, size) < epochs):
            state = "shorter than its checkpoint expects" if current_size else "empty or missing (purged?)"
            raise CheckpointError(f"{path} is {state}: {_METRICS_CURE}")
        if path.exists():
            os.truncate(path, size)
        self._metrics_bytes = size

    def _write(self, name: str, text: str) -> None:
        write_owned(self.folder, self.folder / name, lambda file: file.write(text.encode()))

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        self._write(name, json.dumps(content, indent=2) + "\n")


def _count_lines(path: Path, size: int) -> int:
    """The number of complete lines in the first `size` bytes of a file; 0 if it is missing."""
    try:
        with open_binary(path) as file:
            return file.read(size).count(b"\n")
    except FileNotFoundError:
        return 0
