"""Ranks as processes of this machine, as torchrun or srun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(Path(__file__).parent))  # sharded_training.py, beside the tests


@dataclass
class Ranks:
    """Processes that train together, and what each of them says."""

    processes: list[subprocess.Popen]
    logs: list[Path]

    def wait(self) -> list[int]:
        """Their exit statuses, -9 after a SIGKILL; the time that a test may take is pytest's own timeout."""
        return [process.wait() for process in self.processes]

    def said(self) -> list[str]:
        """What each rank has written so far."""
        return [log.read_text() for log in self.logs]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ranks]]:
    """`launch(script, *argv, ranks=2, slurm=False)`: the script once per rank; what still runs is killed."""
    started: list[subprocess.Popen] = []

    def start(script: Path, *argv: str, ranks: int = 2, slurm: bool = False) -> Ranks:
        folder = tmp_path_factory.mktemp("ranks")
        logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        names = names if slurm else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        own = []
        for rank, log in enumerate(logs):
            who = dict(zip(names, map(str, (rank, ranks, rank)), strict=True))
            environment = {**os.environ, **shared, **who, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
            with log.open("w") as file:
                command = [sys.executable, str(script), *argv]
                own.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
        started.extend(own)
        return Ranks(own, logs)

    yield start
    for process in started:
        process.kill()
        process.wait()
