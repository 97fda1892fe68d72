"""The environment of SLURM's commands and of jobs: slurm/site.sh, without variables that change them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from ham.files import ROOT
from ham.programs import run_program
from ham.repository import GitError, git, has_changes

from .manifests import SweepError
from .resources import SLURM

_LIMITS = ("HAM_ARRAY_THROTTLE", "HAM_MAX_RESTARTS", "HAM_TERM_WAIT")
_SECONDS = 60.0  # for slurm/site.sh
_OF_SLURM = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SCONTROL|SINFO|SACCT)_.*", re.DOTALL)
_KEPT = (
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS"),  # how to reach SLURM
    *(f"SBATCH_{name}" for name in ("ACCOUNT", "CLUSTERS", "CONSTRAINT", "PARTITION", "QOS")),
    *("SBATCH_RESERVATION", "SBATCH_WCKEY"),
)
"""The user's settings. Others change what squeue prints or how sbatch works, or are of an enclosing job."""


def job_environment() -> dict[str, str]:
    """The environment of jobs: the site's settings, and the commit if the code has no changes.

    Raises:
        SweepError: slurm/site.sh fails, or a setting is wrong.
    """
    site = site_environment(warn=True)
    for name in _LIMITS:
        if not re.fullmatch(r"0|[1-9]\d*", site.get(name, "0")):
            raise SweepError(
                f"{name}={site[name]} is not a number: set it in slurm/site.sh or the environment"
            )
    try:
        head = git("rev-parse", "HEAD")
    except GitError:  # HAM_COMMIT stays
        return site
    site.pop("HAM_COMMIT", None)
    return site | ({"HAM_COMMIT": head} if has_changes() is False else {})


def site_environment(warn: bool = False) -> dict[str, str]:
    """This environment with the settings of slurm/site.sh, without variables that change SLURM's commands.

    Args:
        warn: name options of sbatch among those on stderr.

    Raises:
        SweepError: slurm/site.sh fails.
    """
    script = '. "$1" >&2 && printf "\\0\\0" && command env -0'  # a startup file of bash may print too
    command = ["bash", "-c", script, "bash", str(SLURM / "site.sh")]
    try:
        result = run_program(command, _SECONDS, os.environ | {"HAM_ROOT": str(ROOT)})
    except subprocess.TimeoutExpired:
        raise SweepError(f"slurm/site.sh does not end within {_SECONDS:g} s: correct it") from None
    _, separator, content = result.stdout.partition("\0\0")
    if result.returncode or not separator:
        reason = (result.stderr.strip().splitlines() or [f"it exits with {result.returncode}"])[-1]
        raise SweepError(f"slurm/site.sh fails: {reason}: correct it")
    entries = (entry.partition("=") for entry in content.split("\0") if entry)
    return without_slurm_variables({name: value for name, _, value in entries}, warn)


def without_slurm_variables(environment: dict[str, str], warn: bool = False) -> dict[str, str]:
    """An environment without the variables of SLURM that are not settings of the user."""
    dropped = [name for name in environment if _OF_SLURM.fullmatch(name) and name not in _KEPT]
    if warn and (options := sorted(name for name in dropped if name.startswith("SBATCH_"))):
        names = ", ".join(options)
        print(f"sweep.py: {names} not used: unset them, or give options of sbatch after --", file=sys.stderr)
    kept = {name: value for name, value in environment.items() if name not in dropped}
    if cluster := kept.get("SBATCH_CLUSTERS"):  # only sbatch reads it
        kept["SLURM_CLUSTERS"] = cluster
    return kept
