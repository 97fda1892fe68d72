"""Submit runs as SLURM arrays, with the resources of slurm/resources.yaml, and read SLURM's queue."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ham.errors import one_line
from ham.files import lock_file
from ham.programs import run_program
from ham.report.spec import RunSpec

from .environment import job_environment, site_environment
from .launchable import dependency_levels
from .listing import pluralize
from .manifests import SweepError, manifest_hash
from .resources import SLURM, resource_class, resources
from .sbatch_options import check_options, join_dependencies
from .status import RunStatus, Status, Sweeps

JOB = "ham-"  # a job's name is this and the hash of its manifest
_SECONDS = 120.0  # for an answer of SLURM
_SUBMITTED = re.compile(r"^(?:Submitted batch job )?(\d+)(?:;.*)?$")  # the cluster's name may follow


class SlurmMissingError(SweepError):
    """This machine has no SLURM."""


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
        SweepError: a setting is wrong, or sbatch rejected an array; earlier arrays stay submitted.
    """
    for name in dict.fromkeys(map(resource_class, todo)):
        check_options([*_sbatch_options(name), *extra])
    site = job_environment()
    limit = largest_array(site)
    jobs = {run: state.job for run, state in states.items() if state.job}
    if any(run.depends_on in jobs or run.depends_on in todo for run in todo):
        join_dependencies(extra, ["1"])  # raises before anything is submitted
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
    dependencies = join_dependencies(extra, sources)
    before = set(sweeps.folder.glob("manifest-*"))
    manifest = sweeps.write(runs)
    command = [
        "sbatch",
        "--parsable",
        f"--job-name={JOB}{manifest_hash(manifest)}",
        f"--output={_pattern(sweeps.logs)}/{sweeps.log(manifest_hash(manifest), '%a').name}",
        f"--array=1-{len(runs)}%{site.get('HAM_ARRAY_THROTTLE', '16')}",
        *_sbatch_options(name),
        *dependencies,
        str(SLURM / "array.sbatch"),
        str(manifest),
    ]
    try:
        output = run_slurm(*command, environment=site)
    except SlurmCommandError:
        if manifest not in before:  # else its runs would count as launched, and failed
            manifest.unlink()
        raise
    return _job_id(output)


def _sbatch_options(name: str) -> list[str]:
    """A resource class as options of sbatch."""
    return [f"--{key}={value}" for key, value in resources()[name].sbatch.items()]


def _job_id(output: str) -> str:
    """The job in what sbatch printed: a site's wrapper may print lines of its own."""
    matches = [match[1] for line in output.splitlines() if (match := _SUBMITTED.match(line.strip()))]
    if not matches:
        text = (output.strip().splitlines() or ["nothing"])[-1]
        raise SweepError(f"sbatch printed no job id, but {text!r}: see squeue before you submit again")
    return matches[-1]


def _pattern(folder: Path) -> str:
    """A folder in --output, where % begins a field of SLURM."""
    return str(folder).replace("%", "%%")


def _arrays(todo: list[RunSpec], jobs: dict[RunSpec, str]) -> Iterator[tuple[bool, str, list[RunSpec]]]:
    """(waits for others, resource class, runs) of each array, sources first; `jobs` grows meanwhile."""
    for level in dependency_levels(todo):
        for waits in (False, True):
            part = [run for run in level if (run.depends_on in jobs) is waits]
            for name in dict.fromkeys(map(resource_class, part)):
                yield waits, name, [run for run in part if resource_class(run) == name]


def read_queue(sweeps: Sweeps) -> None:
    """Read queued and running jobs from SLURM. Raises SweepError if SLURM is missing or does not answer."""
    manifests = {f"{JOB}{name}": lines for name, lines in sweeps.manifests().items()}
    command = ("squeue", "--me", "-h", "-r", "-o", "%j|%F|%K|%T|%r")
    for line in run_slurm(*command, environment=site_environment()).splitlines():
        name, job, task, status, reason = (line.split("|", 4) + [""] * 5)[:5]
        lines = manifests.get(name, [])
        if task.isdecimal() and 1 <= int(task) <= len(lines):
            kind = Status.QUEUED if status == "PENDING" else Status.RUNNING
            note = reason if kind is Status.QUEUED and reason != "None" else ""
            sweeps.active[lines[int(task) - 1]] = RunStatus(kind, note, f"{job}_{task}")


def run_slurm(*command: str, environment: dict[str, str]) -> str:
    """Run a SLURM command; returns its output. Raises SweepError."""
    name = command[0]
    if shutil.which(name, path=environment.get("PATH")) is None:
        problem = f"SLURM is not available ({name} is not on the PATH)"
        raise SlurmMissingError(f"{problem}: use --local, or a login node")
    try:
        result = run_program(command, _SECONDS, environment)
    except subprocess.TimeoutExpired:
        raise SweepError(f"{name} does not answer within {_SECONDS:g} s: try again later") from None
    if result.returncode:
        output = (result.stderr.strip() or f"exit status {result.returncode}").splitlines()
        clear = [line for line in output if "error" in line]
        clear = clear or [line for line in output if "--help" not in line]
        message = f"{name} failed: {(clear or output)[0].removeprefix(f'{name}: ')}"
        raise (SweepError if "timed out" in message.lower() else SlurmCommandError)(message)
    return result.stdout


def largest_array(site: dict[str, str]) -> int:
    """How many tasks, counted from 1, an array may have on this cluster."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", run_slurm("scontrol", "show", "config", environment=site))
    return max(1, int(match[1]) - 1) if match else 1000


@contextmanager
def sweep_lock(sweeps: Sweeps) -> Iterator[None]:
    """Prevent other sweeps of this folder from submitting meanwhile. Raises SweepError."""
    sweeps.logs.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_file(sweeps.folder / "lock")
    except BlockingIOError as error:
        raise SweepError(
            f"another sweep is submitting runs of {sweeps.runs} ({one_line(error)}): wait for it, or end it"
        ) from None
    with lock:
        yield
