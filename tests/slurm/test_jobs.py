"""The batch scripts under a real SLURM: who is signalled, who is requeued, who stays cancelled.

A stand-in takes the place of python, so that only SLURM takes time; the scripts are those that are shipped.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import pytest
from cluster import ROOT, Slurm, until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


def lines(path: str | Path, pattern: str) -> list[str]:
    """Lines of a file that match."""
    path = Path(path)
    return (
        [line for line in path.read_text().splitlines() if re.search(pattern, line)] if path.exists() else []
    )


def started(toy: dict[str, str], count: int) -> None:
    """Wait until that many ranks have started."""
    until(lambda: len(lines(toy["TOY_LOG"], "start 0: nodes")) == count, 60)


def submit(slurm: Slurm, toy: dict[str, str], *command: str) -> tuple[str, Path]:
    """Job and log."""
    log = Path(toy["TOY_LOG"]).with_name("job.log")
    return slurm.sbatch(f"--output={log}", *command, **toy), log


def test_warned_of_the_time_limit_every_rank_saves_and_the_job_is_requeued(
    slurm: Slurm, toy: dict[str, str]
) -> None:
    # the shipped header warns 300 s before the end: with a limit of 5 minutes at once
    job, log = submit(slurm, toy, "--time=5", "slurm/train.sbatch", "+exp=dense", "seed=1")
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert len(lines(toy["TOY_LOG"], "of 4 start 0: USR1")) == 4
    first = lines(toy["TOY_LOG"], "of 4 start 0: nodes")
    assert len(first) == 4 and all(
        "nodes 1 gpus 0,1,2,3 cpus 8: -u train.py +exp=dense seed=1" in x for x in first
    )
    assert len(lines(toy["TOY_LOG"], "of 4 start 1: nodes")) == 4
    assert lines(log, f"requeueing {job}") and lines(log, "start 2")  # the log goes on in the same file


def test_two_nodes_are_requeued_as_one_job(slurm: Slurm, toy: dict[str, str]) -> None:
    job, _ = submit(slurm, toy, "slurm/multinode.sbatch", "+exp=dense")
    started(toy, 8)
    slurm("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert len(lines(toy["TOY_LOG"], "of 8 start 0: USR1")) == 8
    assert len(lines(toy["TOY_LOG"], "of 8 start 1: nodes 2")) == 8


def test_preempted_a_job_stays_alive_until_slurm_requeues_it(slurm: Slurm, toy: dict[str, str]) -> None:
    job, log = submit(slurm, toy, "--partition=low", "slurm/train.sbatch", "+exp=dense")
    started(toy, 4)
    node = slurm.show(job)["NodeList"]
    urgent = ["--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=true"]
    slurm.sbatch(*urgent)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert len({line.split()[1] for line in lines(toy["TOY_LOG"], "start 0: TERM")}) == 4
    assert lines(log, "waiting up to") and not lines(log, "requeueing")


def test_cancelled_a_job_stays_cancelled(slurm: Slurm, toy: dict[str, str]) -> None:
    job, log = submit(slurm, toy, "slurm/train.sbatch", "+exp=dense")
    started(toy, 4)
    slurm("scancel", job)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    assert len({line.split()[1] for line in lines(toy["TOY_LOG"], "start 0: TERM")}) == 4
    assert not lines(log, "requeueing")


def test_stopped_by_another_hand_a_job_waits_only_so_long(slurm: Slurm, toy: dict[str, str]) -> None:
    job, log = submit(
        slurm, toy | {"HAM_TERM_WAIT": "2"}, "--ntasks-per-node=1", "slurm/train.sbatch", "+exp=dense"
    )
    started(toy, 1)
    slurm("scancel", "--signal=TERM", f"{job}.0")
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "85:0")
    assert lines(log, "SLURM did not end this job: submit again")


def test_restarts_are_capped(slurm: Slurm, toy: dict[str, str]) -> None:
    job, log = submit(
        slurm, toy | {"HAM_MAX_RESTARTS": "0"}, "--ntasks-per-node=1", "slurm/train.sbatch", "+exp=dense"
    )
    started(toy, 1)
    slurm("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "1", "85:0")
    assert lines(log, "restarted 1 times, HAM_MAX_RESTARTS allows 0: submit again")
    assert not lines(toy["TOY_LOG"], "start 1")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("+exp=dense\n", "was changed after it was written"), (None, "cannot read"), ("", "has no line 1")],
)
def test_a_wrong_manifest_is_refused(
    slurm: Slurm, toy: dict[str, str], tmp_path: Path, content: str | None, complaint: str
) -> None:
    name = sha256(b"").hexdigest()[:12]
    manifest = tmp_path / f"manifest-{name}.txt"
    if content is not None:
        manifest.write_text(content)
    job, log = submit(slurm, toy, "--array=1", "slurm/array.sbatch", str(manifest))
    assert slurm.wait(job)["ExitCode"] == "2:0"
    (line,) = log.read_text().splitlines()
    assert complaint in line and str(manifest) in line
    assert not Path(toy["TOY_LOG"]).exists()


def test_outside_of_the_repository_a_job_says_so(slurm: Slurm, toy: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    script = str(ROOT / "slurm" / "train.sbatch")
    job = slurm.sbatch(f"--output={log}", script, "+exp=dense", cwd=tmp_path, **toy)
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert log.read_text() == f"no repository at {tmp_path}: call sbatch there, or set HAM_ROOT\n"
    job = slurm.sbatch(f"--output={log}", script, "+exp=dense", cwd=tmp_path, HAM_ROOT=str(ROOT), **toy)
    started(toy, 4)
    slurm("scancel", job)
