"""Ranks as processes of this machine, as torchrun or srun would start them.

Each is a copy of one server process, which has imported torch and the training program once.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRELOAD = ["torch._dynamo", "torchvision", "hydra", "ham.run.main", "ham.run.finetune"]


class Rank(multiprocessing.get_context("forkserver").Process):
    """A process that runs a script as `python script argv` would, with the interface of subprocess.Popen."""

    def __init__(self, script: Path, argv: list[str], environment: dict[str, str], log: Path) -> None:
        super().__init__(target=run_script, args=(str(script), argv, environment, str(log)), daemon=True)

    @property
    def returncode(self) -> int | None:
        """As of Popen."""
        return self.exitcode

    def poll(self) -> int | None:
        """As of Popen."""
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """As of Popen."""
        os.kill(self.pid, number)

    def wait(self, seconds: float | None = None) -> int:
        """The exit status, negative after a signal. Raises TimeoutError."""
        self.join(seconds)
        if self.exitcode is None:
            raise TimeoutError
        return self.exitcode


def run_script(script: str, argv: list[str], environment: dict[str, str], log: str) -> None:
    """What the process of a rank does."""
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *argv]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


@dataclass
class Ranks:
    """Processes that train together, and what each of them says."""

    processes: list[Rank]
    logs: list[Path]

    def wait(self) -> list[int]:
        """Their exit statuses, -9 after a SIGKILL; the time that a test may take is pytest's own timeout."""
        return [process.wait() for process in self.processes]

    def said(self) -> list[str]:
        """What each rank has written so far."""
        return [log.read_text() if log.exists() else "" for log in self.logs]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition while all are alive."""
        while not condition():
            if any(process.poll() is not None for process in self.processes):
                pytest.fail("a rank ended before the condition held\n" + "\n".join(self.said()))
            time.sleep(0.01)


def launcher() -> Iterator[Callable[..., Ranks]]:
    """`launch(script, *argv, ranks=2, slurm=False, own={}, environment={})`: the script once per rank.

    `own` has further arguments of single ranks, `environment` further variables of all. What still runs at
    the end is killed.
    """
    multiprocessing.set_forkserver_preload(PRELOAD)
    started: list[Rank] = []
    logs = Path(tempfile.mkdtemp(prefix="ranks-"))

    def start(
        script: Path,
        *argv: str,
        ranks: int = 2,
        slurm: bool = False,
        own: dict[int, list[str]] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Ranks:
        own_logs = [logs / f"{len(started)}-rank{rank}.log" for rank in range(ranks)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        names = names if slurm else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        shared |= {"PYTHONPATH": str(ROOT)}
        processes = []
        for rank, log in enumerate(own_logs):
            who = dict(zip(names, map(str, (rank, ranks, rank)), strict=True))
            variables = {**os.environ, **shared, **who, **(environment or {})}
            processes.append(Rank(script, [*argv, *(own or {}).get(rank, [])], variables, log))
        started.extend(processes)
        for process in processes:
            process.start()
        return Ranks(processes, own_logs)

    yield start
    for process in started:
        process.kill()
        process.join()
    shutil.rmtree(logs)
