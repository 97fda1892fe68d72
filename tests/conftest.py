"""The command line as fixtures: run in this process, or in one of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts: tests share their cores

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
_BAR = re.compile(r"\d+/\d+ \[.*\]\s*$")


@dataclass(frozen=True)
class Outcome:
    """How a command line ended."""

    status: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr, progress bars apart."""
        return [line for line in re.split(r"[\r\n]+", self.err) if line.strip() and not _BAR.search(line)]


@pytest.fixture(scope="session")
def train() -> ModuleType:
    """train.py as a module."""
    spec = importlib.util.spec_from_file_location("train", TRAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(train: ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`command("+exp=...", ...)`: train.py's main in this process."""

    def run(*argv: str) -> Outcome:
        capsys.readouterr()
        status = train.main(list(argv))
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Outcome]:
    """`process("+exp=...", ...)`: `python train.py` in a process of its own, in an empty folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()

    def run(*argv: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, str(TRAIN), *argv], cwd=folder, capture_output=True, text=True, timeout=300
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run
