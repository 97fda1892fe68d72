"""A real SLURM of two fake nodes on this machine, for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for private.py beside this file
from private import ROOT, Slurm, Toy

UP = Path(__file__).parent / "up.sh"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A private SLURM, taken down at the end."""
    if os.geteuid() != 0:
        pytest.skip("a private SLURM needs root")
    if not shutil.which("slurmctld") and not shutil.which("apt-get"):
        pytest.skip("no SLURM, and no apt-get to install it")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own folders are too deep for a socket's name
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for free in (a, b, c):
            free.bind(("127.0.0.1", 0))
        ports = [str(free.getsockname()[1]) for free in (a, b, c)]
    try:
        up = subprocess.run([UP, folder, "up", *ports], capture_output=True, text=True, timeout=300)
        if up.returncode == 3:
            pytest.skip(f"SLURM cannot be installed: {(up.stderr.strip().splitlines() or ['?'])[-1]}")
        assert up.returncode == 0, f"the private SLURM does not start\n{up.stderr}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "HAM_"))}
        binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"SLURM_CONF": f"{folder}/slurm.conf", "HAM_VENV": sys.prefix, "PATH": binaries}
        yield Slurm(folder, clean | own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    finally:
        subprocess.run([UP, folder, "down"], capture_output=True, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A stand-in for train.py."""
    return Toy(tmp_path)
