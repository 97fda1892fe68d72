"""A private SLURM, processes under it, and a stand-in for train.py that needs no torch."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOY = """\
#!/usr/bin/env bash
# In the place of python: trains until a signal, then "saves"; started again, it is done at once.
say() { echo "rank $SLURM_PROCID of $SLURM_STEP_NUM_TASKS start ${SLURM_RESTART_COUNT:-0}: $*" >>"$TOY_LOG"; }
[ "$1" != -c ] || exit 0 # it has torch
trap 'say USR1; exit 85' USR1
trap 'say TERM; exit 85' TERM
say "nodes $SLURM_STEP_NUM_NODES gpus ${CUDA_VISIBLE_DEVICES:-none} cpus $SLURM_CPUS_PER_TASK: $*"
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
for _ in {1..600}; do sleep 0.2; done
exit 1
"""


@dataclass(frozen=True)
class Slurm:
    """Commands of the SLURM at `folder`, and the environment that jobs are submitted with."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *command: str, cwd: Path = ROOT, status: int = 0, **extra: str) -> str:
        """What a command prints; it must end with this exit status."""
        environment = self.environment | extra
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *command: str, cwd: Path = ROOT, **extra: str) -> str:
        """Submit; returns the job's id."""
        return self("sbatch", "--parsable", *command, cwd=cwd, **extra)

    def show(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job or of one task of an array."""
        text = self("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def wait(self, job: str, seconds: float = 90) -> dict[str, str]:
        """What scontrol knows of a job at its end."""
        gone = lambda: not self("squeue", "--noheader", "-j", job)  # noqa: E731
        until(gone, seconds, lambda: self("squeue"))
        return self.show(job)


def until(
    condition: Callable[[], object],
    seconds: float = 60,
    describe: Callable[[], object] = str,
    every: float = 0.2,
) -> object:
    """Wait until a condition holds; returns its value. `every` is the time between two looks, in seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"nothing happened in {seconds} s\n{describe()}")
        time.sleep(every)
    return value


class Toy:
    """The stand-in for python in a folder of its own: what its ranks said, and the job's log."""

    def __init__(self, folder: Path) -> None:
        self.log, self.said = folder / "job.log", folder / "toy.log"
        binaries = folder / "venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "python").write_text(TOY)
        (binaries / "python").chmod(0o755)
        (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
        self.environment = {"HAM_VENV": str(binaries.parent), "TOY_LOG": str(self.said)}

    def submit(self, slurm: Slurm, *command: str, cwd: Path = ROOT, **extra: str) -> str:
        """Submit a batch script whose python this is; returns the job."""
        return slurm.sbatch(f"--output={self.log}", *command, cwd=cwd, **self.environment, **extra)

    def started(self, count: int) -> None:
        """Wait until that many ranks have started."""
        until(lambda: len(lines(self.said, "start 0: nodes")) == count, 60)

    def ranks(self, pattern: str) -> set[str]:
        """The ranks that said something like that."""
        return {line.split()[1] for line in lines(self.said, pattern)}


def lines(path: Path, pattern: str) -> list[str]:
    """Lines of a file that match."""
    return (
        [line for line in path.read_text().splitlines() if re.search(pattern, line)] if path.exists() else []
    )


class Training:
    """The process that trains an experiment, held at its first step so that no test comes too late."""

    def __init__(self, exp: str, runs: Path) -> None:
        self.exp = exp
        self._marks = (f"+exp={exp}", f"runs_dir={runs}")
        self.pid = until(self._caught, 180, lambda: f"{exp} did not start training", every=0.05)
        os.kill(self.pid, signal.SIGSTOP)

    def _caught(self) -> int | None:
        """The process, once it has its handlers for signals: training has begun."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and self._is_mine(entry) and self._mask(entry, "SigCgt"):
                return int(entry.name)
        return None

    def _is_mine(self, entry: Path) -> bool:
        try:
            words = (entry / "cmdline").read_text().split("\0")
        except OSError:
            return False
        return words[0].endswith("python") and all(mark in words for mark in self._marks)

    def _mask(self, entry: Path, name: str) -> bool:
        """Is SIGUSR1 in this mask of the process?"""
        try:
            lines = (entry / "status").read_text().splitlines()
        except OSError:
            return False
        mask = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "0")
        return bool(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1)

    def continue_when_signaled(self) -> None:
        """Wait until SIGUSR1 has reached the process, then let it continue."""
        until(lambda: self._mask(Path(f"/proc/{self.pid}"), "ShdPnd"), 60, lambda: "no SIGUSR1 came")
        os.kill(self.pid, signal.SIGCONT)
