"""Submit runs as SLURM arrays, with the resources of slurm/resources.yaml, and read SLURM's queue."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from ham.files import ROOT, git, has_changes, lock_file
from ham.report.spec import RunSpec

from .listing import pluralize
from .manifests import SweepError, manifest_hash
from .resources import SLURM, resource_class, resources
from .status import RunStatus, Status, Sweeps, dependency_levels

JOB = "ham-"  # a job's name is this and the hash of its manifest
_LIMITS = ("HAM_ARRAY_THROTTLE", "HAM_MAX_RESTARTS", "HAM_TERM_WAIT")


class SlurmCommandError(SweepError):
    """A command of SLURM failed and had no effect."""


def submit(
    todo: list[RunSpec], states: dict[RunSpec, RunStatus], sweeps: Sweeps, extra: list[str]
) -> Iterator[str]:
    """Submit the runs as arrays, one per resource class and dependency level; yields a line about each.

    Runs whose sources are not done wait for those tasks to end, successful or not: without masks a run fails
    in one line, whereas a job that waits for success would stay pending forever.

    If compute nodes have no git, jobs read the commit of their code from $HAM_COMMIT.

    Raises:
        SweepError: a setting is wrong, or sbatch refused an array; those submitted before stay.
    """
    for run in todo:
        resource_class(run)
    site = job_environment()
    limit = largest_array()
    jobs = {run: state.job for run, state in states.items() if state.job}
    for waits, name, runs in _arrays(todo, jobs):
        for chunk in (runs[start : start + limit] for start in range(0, len(runs), limit)):
            sources = sorted({jobs[run.depends_on] for run in chunk}) if waits else []
            job = _submit_array(chunk, name, sources, sweeps, site, extra)
            jobs |= {run: f"{job}_{task}" for task, run in enumerate(chunk, start=1)}
            after = f", after {pluralize(len(sources))} whose masks they take" if sources else ""
            yield f"submitted array {job}: {pluralize(len(chunk))}, {name}{after}"


def _submit_array(
    runs: list[RunSpec], name: str, sources: list[str], sweeps: Sweeps, site: dict[str, str], extra: list[str]
) -> str:
    """Submit one array; returns the job's id."""
    before = set(sweeps.folder.glob("manifest-*"))
    manifest = sweeps.write(runs)
    command = [
        "sbatch",
        "--parsable",
        f"--job-name={JOB}{manifest_hash(manifest)}",
        f"--output={sweeps.log(manifest_hash(manifest), '%a')}",
        f"--array=1-{len(runs)}%{site.get('HAM_ARRAY_THROTTLE', '16')}",
        *(f"--{key}={value}" for key, value in resources()[name].sbatch.items()),
        *([f"--dependency=afterany:{':'.join(sources)}"] if sources else []),
        *extra,
        str(SLURM / "array.sbatch"),
        str(manifest),
    ]
    try:
        output = run_slurm(*command, environment=site)
    except SlurmCommandError:
        if manifest not in before:  # else its runs would count as launched, and failed
            manifest.unlink()
        raise
    return output.strip().partition(";")[0]  # the cluster's name may follow


def _arrays(todo: list[RunSpec], jobs: dict[RunSpec, str]) -> Iterator[tuple[bool, str, list[RunSpec]]]:
    """(waits for others, resource class, runs) of each array, sources first; `jobs` grows meanwhile."""
    for level in dependency_levels(todo):
        for waits in (False, True):
            part = [run for run in level if (run.depends_on in jobs) is waits]
            for name in dict.fromkeys(map(resource_class, part)):
                yield waits, name, [run for run in part if resource_class(run) == name]


def read_queue(sweeps: Sweeps) -> None:
    """Read from SLURM what is queued and running. Raises SweepError if there is no SLURM or no answer."""
    manifests = {f"{JOB}{name}": lines for name, lines in sweeps.manifests().items()}
    for line in run_slurm("squeue", "--me", "-h", "-r", "-o", "%j|%F|%K|%T|%r").splitlines():
        name, job, task, status, reason = (line.split("|", 4) + [""] * 5)[:5]
        lines = manifests.get(name, [])
        if task.isdecimal() and 1 <= int(task) <= len(lines):
            kind = Status.QUEUED if status == "PENDING" else Status.RUNNING
            note = reason if kind is Status.QUEUED and reason != "None" else ""
            sweeps.active[lines[int(task) - 1]] = RunStatus(kind, note, f"{job}_{task}")


def run_slurm(*command: str, environment: dict[str, str] | None = None) -> str:
    """Run a SLURM command; returns its output. Raises SweepError."""
    name = command[0]
    if shutil.which(name) is None:
        raise SweepError(f"there is no SLURM here ({name} is not on the PATH): use --local, or a login node")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    except subprocess.TimeoutExpired:
        raise SweepError(f"{name} does not answer: try again later") from None
    if done.returncode:
        output = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()
        clear = [line for line in output if "error" in line]
        clear = clear or [line for line in output if "--help" not in line]
        message = f"{name} failed: {(clear or output)[0].removeprefix(f'{name}: ')}"
        raise (SweepError if "timed out" in message.lower() else SlurmCommandError)(message)
    return done.stdout


def largest_array() -> int:
    """How many tasks, counted from 1, an array may have on this cluster."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", run_slurm("scontrol", "show", "config"))
    return max(1, int(match[1]) - 1) if match else 1000


def job_environment() -> dict[str, str]:
    """The environment of jobs: the site's settings, and the commit if the code has no changes."""
    site = site_environment()
    for name in _LIMITS:
        if not re.fullmatch(r"0|[1-9]\d*", site.get(name, "0")):
            raise SweepError(
                f"{name}={site[name]} is not a number: set it in slurm/site.sh or the environment"
            )
    if head := git("rev-parse", "HEAD"):
        site.pop("HAM_COMMIT", None)
        if not has_changes():
            site["HAM_COMMIT"] = head
    return site


def site_environment() -> dict[str, str]:
    """This environment with the settings of slurm/site.sh."""
    command = ["bash", "-c", '. "$1" && env -0', "bash", str(SLURM / "site.sh")]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"HAM_ROOT": str(ROOT)})
    if done.returncode:
        reason = (done.stderr.decode().strip().splitlines() or ["?"])[-1]
        raise SweepError(f"slurm/site.sh fails: {reason}: correct it")
    entries = (entry.partition("=") for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, _, value in entries}


@contextmanager
def sweep_lock(sweeps: Sweeps) -> Iterator[None]:
    """Prevent other sweeps of this folder from submitting meanwhile. Raises SweepError."""
    sweeps.logs.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_file(sweeps.folder / "lock")
    except BlockingIOError:
        raise SweepError(f"another sweep is submitting runs of {sweeps.runs}: wait for it") from None
    with lock:
        yield
