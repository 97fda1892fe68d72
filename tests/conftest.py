"""The command line as fixtures, run in this process or in one of its own; CIFAR-100, real and small."""

from __future__ import annotations

import copy
import gc
import importlib.util
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C: not ours
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts: tests share their cores

with suppress(ModuleNotFoundError):  # a machine with a GPU may lack it
    from hypothesis import HealthCheck, settings

    # how long an example takes depends on what else the machine does
    settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "train.py"
_BAR = re.compile(r"\d+/\d+ \[.*\]\s*$")


LONGEST = (
    "test_sweep_life.py",
    "test_contract_ranks.py",
    "test_simulated.py",
    "test_photos.py",
    "test_resume.py",
    "test_sparsifiers.py",
    "test_experiments.py",
    "test_counts.py",
    "test_jobs.py",
    "test_ffcv.py",
    "test_browser.py",
)
"""Files of more than a minute start first: of two workers, one would otherwise run the last one alone."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist start files in the order below, and not those with the most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, in the order of LONGEST."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the garbage collector from looking at everything that was imported, again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Unfreeze them, so that the last collection of the interpreter runs their finalizers."""
    gc.unfreeze()


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


@pytest.fixture(scope="session", autouse=True)
def compose_once() -> Iterator[None]:
    """Keep what Hydra composes of a command line, whatever its runs_dir: it takes 0.15 seconds each time."""
    from ham.run.config import compose

    original, kept = compose._compose, {}

    def composed(overrides: list[str]) -> object:
        folders = [text for text in overrides if text.startswith("runs_dir=")]
        rest = tuple(text for text in overrides if text not in folders)
        if rest not in kept:
            kept[rest] = original(list(rest))
        node = copy.deepcopy(kept[rest])
        for override in compose.parse(folders):
            node.runs_dir = override.value()
        return node

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_compose", composed)
        yield


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
def command(train: ModuleType, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """`command("+exp=...", ...)`: train.py's main in this process.

    With -m, Hydra adds a handler to the root logger, which writes to this test's stdout: it is removed again.
    """
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)

    def run(*argv: str) -> Outcome:
        capsys.readouterr()
        status = train.main(list(argv))
        return Outcome(status, *capsys.readouterr())

    yield run
    root.setLevel(level)
    root.handlers[:] = handlers


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
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the real CIFAR-100 as `cifar-100-python`: $HAM_DATA, or made of the shared images."""
    data = Path(os.environ.get("HAM_DATA", ROOT.parent / "shared" / "data"))
    if (data / "cifar-100-python").is_dir():
        yield data
        return
    make = data.resolve().parent / "bin" / "make_cifar100.py"
    if not (data / "cifar100").is_dir() or not make.is_file():
        pytest.skip(f"no CIFAR-100 at {data}: set HAM_DATA to the parent of cifar-100-python")
    folder = tmp_path_factory.mktemp("cifar100")
    done = subprocess.run([sys.executable, str(make), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)  # pytest would keep three of 184 MB


@pytest.fixture
def small_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `cifar-100-python` of noise, all 100 classes with 3 training images and 1 test image each."""
    import cifar_noise

    from ham.data import cifar_files

    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, each in cifar_noise.PER_CLASS.items():
        monkeypatch.setitem(cifar_files.PER_CLASS, split, each)
        (folder / split).write_bytes(pickle.dumps(cifar_noise.record(split)))
    names = [f"class{number}".encode() for number in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}))
    return folder


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
def betons(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photos as FFCV files, in the format of the paper's code base.

    Written by a process of its own: the writer forks, and a process with the threads of other libraries may
    hold locks at that moment, which its children then wait for.
    """
    folder = tmp_path_factory.mktemp("betons")
    command = [sys.executable, str(ROOT / "scripts" / "write_beton.py"), "--from", str(photos)]
    done = subprocess.run(
        [*command, "--to", str(folder), "--workers", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder
