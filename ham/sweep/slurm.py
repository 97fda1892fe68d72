"""Submit the runs of a sweep as SLURM arrays, by the resources of slurm/resources.yaml. Imports no torch."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import yaml

from ham.report.spec import ROOT, RunSpec

from .status import JOB, RunStatus, SlurmCommandError, SweepError, Sweeps, dependency_levels, slurm

SLURM = ROOT / "slurm"
CODE = ("--", "train.py", "ham", "pruning", "configs", "scripts/theory_runs.py")  # as ham/run/provenance.py
_LIMITS = ("HAM_ARRAY_THROTTLE", "HAM_MAX_RESTARTS", "HAM_TERM_WAIT")


@dataclass(frozen=True)
class Resources:
    """An entry of slurm/resources.yaml, which says what the fields are."""

    sbatch: dict[str, Any]
    images_per_epoch: int
    images_per_second: float
    disk_gb: float

    def gpu_hours(self, run: RunSpec) -> float:
        """Estimated from the assumed images per second of one GPU."""
        if not self.images_per_second:
            return 0.0
        images = run.info.epochs * run.info.passes * self.images_per_epoch
        return images / self.images_per_second / 3600


@cache
def resources() -> dict[str, Resources]:
    """Name of a resource class -> what its runs ask for. Raises SweepError where the file has an error."""
    try:
        content = yaml.safe_load((SLURM / "resources.yaml").read_text())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SweepError(
            f"slurm/resources.yaml{where}: {getattr(error, 'problem', None) or 'no YAML'}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"slurm/resources.yaml cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise SweepError("slurm/resources.yaml holds no entries")
    return {name: _entry(name, entry) for name, entry in content.items()}


def _entry(name: str, entry: Any) -> Resources:
    wrong = f"slurm/resources.yaml: {name}"
    if not isinstance(entry, dict):
        raise SweepError(f"{wrong} is no mapping")
    known = [field.name for field in fields(Resources)]
    if unknown := [key for key in entry if key not in known]:
        raise SweepError(f"{wrong} has an unknown key {unknown[0]!r}: choose of {', '.join(known)}")
    if missing := [key for key in known if key not in entry]:
        raise SweepError(f"{wrong} has no {missing[0]}")
    for key in known:
        kind = dict if key == "sbatch" else int | float
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            raise SweepError(f"{wrong}: {key} is no {'mapping' if kind is dict else 'number'}")
    return Resources(**entry)


def resource_class(run: RunSpec) -> str:
    """Name of a run's resource class. Raises SweepError where slurm/resources.yaml lacks it."""
    name = "demo" if run.demo else run.info.base.partition("/")[0]  # node/cora_gcn is of class node
    if name not in resources():
        raise SweepError(f"slurm/resources.yaml has no entry {name}: add one")
    return name


def submit(
    todo: list[RunSpec], states: dict[RunSpec, RunStatus], sweeps: Sweeps, extra: list[str]
) -> Iterator[str]:
    """Submit the runs as arrays, one per resource class and wave; yields a line about each.

    Runs whose sources are not done wait for those tasks to end, however they end: without masks a run fails
    in one line, where a job that waits for success would stay pending for ever.

    Where a compute node has no git, jobs tell the commit of their code by $HAM_COMMIT.

    Raises:
        SweepError: a setting is wrong, or sbatch refused one; what was submitted before stays.
    """
    for run in todo:
        resource_class(run)
    site = site_environment()
    for name in _LIMITS:
        if not re.fullmatch(r"0|[1-9]\d*", site.get(name, "0")):
            raise SweepError(f"{name}={site[name]} is no number: set it in slurm/site.sh or the environment")
    if commit := _git("rev-parse", "HEAD"):
        site.pop("HAM_COMMIT", None)
        if not uncommitted():
            site["HAM_COMMIT"] = commit
    limit = largest_array()
    jobs = {run: state.job for run, state in states.items() if state.job}
    for waiting, base, runs in _arrays(todo, jobs):
        for chunk in (runs[start : start + limit] for start in range(0, len(runs), limit)):
            before = set(sweeps.folder.glob("manifest-*"))
            manifest = sweeps.write(chunk)
            name = manifest.stem.removeprefix("manifest-")
            options = [f"--{key}={value}" for key, value in resources()[base].sbatch.items()]
            sources = sorted({jobs[run.depends_on] for run in chunk}) if waiting else []
            command = [
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
            ]
            try:
                job = slurm(*command, environment=site)
            except SlurmCommandError:
                if manifest not in before:  # else its runs would count as launched, and failed
                    manifest.unlink()
                raise
            job = job.strip().partition(";")[0]  # the cluster's name may follow
            jobs |= {run: f"{job}_{task}" for task, run in enumerate(chunk, start=1)}
            after = f", after {pluralize(len(sources))} whose masks they take" if sources else ""
            yield f"submitted array {job}: {pluralize(len(chunk))}, {base}{after}"


def pluralize(runs: int) -> str:
    """That many runs, in words."""
    return f"{runs} run" if runs == 1 else f"{runs} runs"


def _arrays(todo: list[RunSpec], jobs: dict[RunSpec, str]) -> Iterator[tuple[bool, str, list[RunSpec]]]:
    """(waits for others, resource class, runs) of each array, sources first; `jobs` grows meanwhile."""
    for wave in dependency_levels(todo):
        for waiting in (False, True):
            part = [run for run in wave if (run.depends_on in jobs) is waiting]
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


def uncommitted() -> str:
    """Why runs of this code would become no records, "" if they may."""
    if _git("rev-parse", "HEAD"):
        dirty = _git("status", "--porcelain", *CODE)
        return "runs of uncommitted code become no records: commit first" if dirty else ""
    if re.fullmatch(r"[0-9a-f]{7,64}", os.environ.get("HAM_COMMIT", "")):
        return ""
    return "git knows no commit here, and runs without one become no records: set HAM_COMMIT"


def _git(*arguments: str) -> str:
    """What git says, "" where it is missing or fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@contextmanager
def sweep_lock(sweeps: Sweeps) -> Iterator[None]:
    """No other sweep of this folder submits meanwhile. Raises SweepError."""
    sweeps.logs.mkdir(parents=True, exist_ok=True)
    with open(sweeps.folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(f"another sweep of {sweeps.runs} is being started: wait for it") from None
        yield
