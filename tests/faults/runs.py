"""Small runs, made once and copied for each test."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TINY = ["+exp=acdc_ham_s90", "+demo=digits", "model.width=4", "batch_size=479", "epochs=2"]


def copier(runs: Path) -> Callable[[Path], list[str]]:
    """`copy(folder)`: copies the runs there; returns the arguments of train.py that resume them."""

    def copy(folder: Path) -> list[str]:
        shutil.copytree(runs, folder)
        return [*TINY, f"runs_dir={folder}"]

    return copy


def assert_one_line(error: BaseException, *words: str) -> None:
    """The message is one line and has these words."""
    text = str(error)
    assert len(text.splitlines()) == 1 and len(text) < 600, text
    for word in words:
        assert word in text


def write_checkpoint(path: Path, content: Any) -> None:
    """A checkpoint file with a valid checksum, of any content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = content if isinstance(content, bytes) else buffer.getvalue()
    path.write_bytes(payload + hashlib.sha256(payload).digest())
