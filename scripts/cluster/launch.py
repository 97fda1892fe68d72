"""Submit the runs of a sweep as SLURM arrays, by the resources of slurm/resources.yaml. Imports no torch."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from paper.plan import ROOT, Run

from cluster.states import JOB, State, SweepError, Sweeps, slurm, waves

SLURM = ROOT / "slurm"


@dataclass(frozen=True)
class Resources:
    """An entry of slurm/resources.yaml, which says what the fields are."""

    sbatch: dict[str, Any]
    images_per_epoch: int
    images_per_second: float
    disk_gb: float

    def gpu_hours(self, run: Run) -> float:
        """Estimated from the assumed images per second of one GPU."""
        if not self.images_per_second:
            return 0.0
        images = run.facts.epochs * run.facts.passes * self.images_per_epoch
        return images / self.images_per_second / 3600


@cache
def resources() -> dict[str, Resources]:
    """Name of a resource class -> what its runs ask for."""
    content = yaml.safe_load((SLURM / "resources.yaml").read_text())
    return {name: Resources(**entry) for name, entry in content.items()}


def resource_class(run: Run) -> str:
    """Name of a run's resource class. Raises SweepError where slurm/resources.yaml lacks it."""
    name = "demo" if run.demo else run.facts.base
    if name not in resources():
        raise SweepError(f"slurm/resources.yaml has no entry {name}: add one")
    return name


def submit(todo: list[Run], states: dict[Run, State], sweeps: Sweeps, extra: list[str]) -> Iterator[str]:
    """Submit the runs as arrays, one per resource class and wave; yields a line about each.

    Runs whose sources are not done wait for those tasks to end, however they end: without masks a run fails
    in one line, where a job that waits for success would stay pending for ever.

    Raises:
        SweepError: sbatch refused one; what was submitted before stays.
    """
    site = site_environment()
    limit = largest_array()
    jobs = {run: state.job for run, state in states.items() if state.live}
    for waiting, base, runs in _arrays(todo, jobs):
        for chunk in (runs[start : start + limit] for start in range(0, len(runs), limit)):
            manifest = sweeps.write(chunk)
            name = manifest.stem.removeprefix("manifest-")
            options = [f"--{key}={value}" for key, value in resources()[base].sbatch.items()]
            sources = sorted({jobs[run.source()] for run in chunk}) if waiting else []
            job = slurm(
                "sbatch",
                "--parsable",
                f"--job-name={JOB}{name}",
                f"--output={sweeps.log(name, '%a')}",
                f"--array=1-{len(chunk)}%{site.get('HAM_ARRAY_THROTTLE', '16')}",
                *options,
                *([f"--dependency=afterany:{':'.join(sources)}"] if sources else []),
                *extra,
                str(SLURM / "array.sbatch"),
                str(manifest),
                environment=site,
            )
            job = job.strip().partition(";")[0]  # the cluster's name may follow
            jobs |= {run: f"{job}_{task}" for task, run in enumerate(chunk, start=1)}
            after = f", after {amount(len(sources))} whose masks they take" if sources else ""
            yield f"submitted array {job}: {amount(len(chunk))}, {base}{after}"


def amount(runs: int) -> str:
    """That many runs, in words."""
    return f"{runs} run" if runs == 1 else f"{runs} runs"


def _arrays(todo: list[Run], jobs: dict[Run, str]) -> Iterator[tuple[bool, str, list[Run]]]:
    """(waits for others, resource class, runs) of each array, sources first; `jobs` grows meanwhile."""
    for wave in waves(todo):
        for waiting in (False, True):
            part = [run for run in wave if (run.source() in jobs) is waiting]
            for base in dict.fromkeys(map(resource_class, part)):
                yield waiting, base, [run for run in part if resource_class(run) == base]


def largest_array() -> int:
    """How many tasks, counted from 1, an array may have on this cluster."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", slurm("scontrol", "show", "config"))
    return max(1, int(found[1]) - 1) if found else 1000


def site_environment() -> dict[str, str]:
    """This environment with the settings of slurm/site.sh."""
    command = ["bash", "-c", '. "$1" && env -0', "bash", str(SLURM / "site.sh")]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"HAM_ROOT": str(ROOT)})
    if done.returncode:
        raise SweepError(f"slurm/site.sh fails: {(done.stderr.decode().strip().splitlines() or ['?'])[-1]}")
    entries = (entry.partition("=") for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, _, value in entries}


@contextmanager
def alone(sweeps: Sweeps) -> Iterator[None]:
    """No other sweep of this folder submits meanwhile. Raises SweepError."""
    sweeps.logs.mkdir(parents=True, exist_ok=True)
    with open(sweeps.folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(f"another sweep of {sweeps.runs} is being started: wait for it") from None
        yield
