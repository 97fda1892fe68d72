"""The command line as fixtures: run in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts: tests share their cores

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "train.py"
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
    return _module(TRAIN)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
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


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of real photos in five classes: the shared ones, else pieces of scikit-learn's two."""
    shared = Path(os.environ.get("HAM_DATA", ROOT.parent / "shared" / "data")) / "photos"
    if shared.is_dir():
        return shared
    from PIL import Image
    from sklearn.datasets import load_sample_images

    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    whole = load_sample_images().images
    for split, count in (("train", 48), ("val", 10)):
        for name in "abcde":
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = draw.integers(160, 420, 2)
                top, left = draw.integers(0, (427 - height, 640 - width))
                piece = whole[number % 2][top : top + height, left : left + width]
                Image.fromarray(piece).save(root / split / name / f"{number}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def write_beton() -> ModuleType:
    """scripts/write_beton.py as a module."""
    return _module(ROOT / "scripts" / "write_beton.py")


@pytest.fixture(scope="session")
def betons(photos: Path, write_beton: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photos as FFCV files, in the format of the paper's code base."""
    folder = tmp_path_factory.mktemp("betons")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert write_beton.main(["--from", str(photos), "--to", str(folder), "--workers", "2"]) == 0
    return folder
