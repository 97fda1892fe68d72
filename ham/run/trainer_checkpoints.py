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

from ham.files import NotRegularError, open_binary, read_text, sync_folder

from .checkpoint import SAVED, CheckpointError, write_owned

FOLDER = "checkpoints"
MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_CURE = "restore what is damaged or missing, or start again with resume=false"


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
    content = json.dumps({"state": state, "sha256": digests}, indent=2) + "\n"
    write_owned(path.parent.parent, path / MARK, lambda file: file.write(content.encode()))
    sync_folder(path.parent)


def rotate(folder: Path) -> None:
    """Delete the checkpoints that are neither one of the newest two nor the best one of these."""
    newest = _complete(folder, verify=False)[0][-2:]
    kept = {checkpoint.path.name for checkpoint in newest} | {checkpoint.best for checkpoint in newest}
    _delete_others(folder, kept)


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint; None without any. Incomplete and damaged ones are deleted.

    Args:
        folder: folder of the checkpoints.
        warn: function called with a line about each damaged checkpoint.

    Raises:
        CheckpointError: all are damaged or have lost their marks, or the best one is damaged or missing,
            which is loaded at the end.
    """
    good, faults = _complete(folder)
    marked = [path for path in _folders(folder) if os.path.lexists(path / MARK)]
    if not good and (marked or os.path.lexists(folder.parent / SAVED)) and faults:
        reasons = "; ".join(faults[path] for path in marked or faults)
        raise CheckpointError(f"no checkpoint in {folder} is complete ({reasons}): {_CURE}")
    for path in marked:
        if path in faults:
            warn(f"{faults[path]}; trying the checkpoint before {path.name}")
    names = {checkpoint.path.name for checkpoint in good}
    if good and good[-1].best and good[-1].best not in names:
        best = folder / good[-1].best
        raise CheckpointError(f"the best checkpoint: {faults.get(best, f'{best} is missing')}: {_CURE}")
    _delete_others(folder, names)
    return good[-1] if good else None


def _delete_others(folder: Path, kept: set[str]) -> None:
    """Delete all checkpoints except these; of a link, only the link."""
    for path in _folders(folder):
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _folders(folder: Path) -> list[Path]:
    """Folders of the checkpoints, sorted by step."""
    paths = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=_step)


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _complete(folder: Path, *, verify: bool = True) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The complete checkpoints by step, with `verify` the undamaged ones; and the faults of all others."""
    good, faults = [], {}
    for path in _folders(folder):
        try:
            good.append(_read(path, verify))
        except CheckpointError as error:
            faults[path] = str(error)
    return good, faults


def _read(path: Path, verify: bool) -> Checkpoint:
    """The checkpoint. Raises CheckpointError, which names the file, and OSError if a disk fails."""
    file, state = path / MARK, {}
    try:
        mark = json.loads(read_text(file))
        state, digests = mark["state"], mark["sha256"]
        is_damaged = "best_step" not in state
        if verify and not is_damaged:
            for name, digest in digests.items():
                file = path / name
                if is_damaged := _digest(file) != digest:
                    break
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{file} is missing") from None
    except (IsADirectoryError, NotRegularError):
        raise CheckpointError(f"{file} is not a regular file") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_damaged = True
    if is_damaged:
        raise CheckpointError(f"{file} is damaged (truncated or altered)")
    return Checkpoint(path, _step(path), state)


def _digest(path: Path, *, flush: bool = False) -> str:
    """SHA-256 of a file; with `flush` its content is first written to the disk."""
    with open_binary(path) as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
