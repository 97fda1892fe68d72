"""Checkpoints of the Trainer of transformers: which of them are complete, and which are deleted.

The Trainer writes the files of a checkpoint one after the other. A mark file, written last and atomically,
states that they are complete; it contains their SHA-256 and the rest of the state that a resumed run needs.
The Trainer loads its own files with torch.load(weights_only=True) and safetensors, which execute no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ham.files import atomic_write_json, open_binary, read_text, sync_folder

from .checkpoint import CheckpointError

FOLDER = "checkpoints"
MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Args:
        path: folder of the checkpoint.
        step: number of optimizer steps that were taken.
        state: plain values that were passed to `mark`.
    """

    path: Path
    step: int
    state: dict[str, Any]

    @property
    def best(self) -> str:
        """Name of the folder of the best checkpoint at this step; "" without one."""
        best = self.state["best_step"]
        return f"checkpoint-{best}" if best else ""


def mark(path: Path, state: dict[str, Any]) -> None:
    """Declare a checkpoint complete.

    Args:
        path: folder of the checkpoint, with all files written.
        state: plain values; `best_step` is the step of the best checkpoint, or None.
    """
    digests = {file.name: _digest(file, flush=True) for file in sorted(path.iterdir()) if file.name != MARK}
    sync_folder(path)
    atomic_write_json(path / MARK, {"state": state, "sha256": digests})
    sync_folder(path.parent)


def rotate(folder: Path) -> None:
    """Delete the checkpoints that are neither one of the newest two nor the best one of these."""
    newest = _marked(folder, verify=False)[-2:]
    kept = {checkpoint.path.name for checkpoint in newest} | {checkpoint.best for checkpoint in newest}
    _delete_others(folder, kept)


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint; None without any. Incomplete and damaged ones are deleted.

    Args:
        folder: folder of the checkpoints.
        warn: function called with a line about each damaged checkpoint.

    Raises:
        CheckpointError: all are damaged, or the best one, which the end of the training loads.
    """
    marked = [path for path in _folders(folder) if os.path.lexists(path / MARK)]
    good = _marked(folder)
    names = {checkpoint.path.name for checkpoint in good}
    for path in marked:
        if path.name not in names:
            warn(f"checkpoint {path} is damaged (truncated or altered); trying the one before it")
    if (marked and not good) or (good and good[-1].best and good[-1].best not in names):
        which = "the best checkpoint" if good else "every checkpoint"
        raise CheckpointError(f"{which} in {folder} is damaged: start again with resume=false")
    _delete_others(folder, names)
    return good[-1] if good else None


def _delete_others(folder: Path, kept: set[str]) -> None:
    """Delete all checkpoints except these; of a link, only the link."""
    for path in _folders(folder):
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _folders(folder: Path) -> list[Path]:
    """Folders of the checkpoints, sorted by step."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _marked(folder: Path, *, verify: bool = True) -> list[Checkpoint]:
    """The complete checkpoints by step; with `verify` those whose files are undamaged."""
    found = (_read(path, verify) for path in _folders(folder))
    return [checkpoint for checkpoint in found if checkpoint is not None]


def _read(path: Path, verify: bool) -> Checkpoint | None:
    """The checkpoint; None if it is incomplete or damaged. Raises OSError if a disk fails."""
    try:
        mark = json.loads(read_text(path / MARK))
        state, digests = mark["state"], mark["sha256"]
        is_undamaged = "best_step" in state and (
            not verify or all(_digest(path / name) == digest for name, digest in digests.items())
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return Checkpoint(path, _step(path), state) if is_undamaged else None


def _digest(path: Path, *, flush: bool = False) -> str:
    """SHA-256 of a file; with `flush` its content is first written to the disk."""
    with open_binary(path) as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
