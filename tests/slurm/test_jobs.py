"""The batch scripts under a real SLURM: who is signalled, who is requeued, who stays cancelled.

A stand-in takes the place of python, so that only SLURM takes time; the scripts are those that are shipped.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from private import ROOT, Slurm, Toy, lines

from ham.sweep.resources import resources

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def slow(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Toy]]:
    """Two jobs whose fate SLURM decides every 30 s; they run while the other tests do."""
    limited, preempted = (Toy(tmp_path_factory.mktemp("toy")) for _ in range(2))
    # the shipped header warns 300 s before the end: with a limit of 5 minutes at once
    train = ("slurm/train.sbatch", "+exp=dense", "seed=1")
    jobs = {"limited": (limited.submit(slurm, "--time=5", "--nodelist=n0", *train), limited)}
    jobs["preempted"] = (preempted.submit(slurm, "--partition=low", "--nodelist=n1", *train), preempted)
    preempted.started(4)
    all_of_it = ("--partition=urgent", "--nodelist=n1", "--gpus-per-node=a100:8")
    slurm.sbatch(*all_of_it, "--output=/dev/null", "--wrap=true")
    return jobs


@pytest.mark.usefixtures("slow")
def test_a_cancelled_job_stays_cancelled(slurm: Slurm, toy: Toy) -> None:
    job = toy.submit(slurm, "slurm/train.sbatch", "+exp=dense")
    toy.started(4)
    slurm("scancel", job)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    assert toy.ranks("start 0: TERM") == {"0", "1", "2", "3"}
    assert not lines(toy.log, "requeueing")


def test_a_job_that_slurm_does_not_end_waits_for_a_limited_time(slurm: Slurm, toy: Toy) -> None:
    job = toy.submit(slurm, "--ntasks-per-node=1", "slurm/train.sbatch", "+exp=dense", HAM_TERM_WAIT="2")
    toy.started(1)
    slurm("scancel", "--signal=TERM", f"{job}.0")
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "85:0")
    assert lines(toy.log, "SLURM did not end this job: submit again")


def test_restarts_are_capped(slurm: Slurm, toy: Toy) -> None:
    job = toy.submit(slurm, "--ntasks-per-node=1", "slurm/train.sbatch", "+exp=dense", HAM_MAX_RESTARTS="0")
    toy.started(1)
    slurm("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "1", "85:0")
    assert lines(toy.log, "restarted 1 times, HAM_MAX_RESTARTS is 0: submit again")
    assert not toy.ranks("start 1")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"HAM_MAX_RESTARTS": "x"}, "HAM_MAX_RESTARTS=x is not a number: set it in slurm/site.sh"),
        ({"HAM_VENV": "/nowhere"}, "HAM_VENV=/nowhere has no bin/activate"),
    ],
)
def test_wrong_settings_are_one_line(slurm: Slurm, toy: Toy, setting: dict[str, str], complaint: str) -> None:
    toy.environment |= setting
    job = toy.submit(slurm, "--ntasks-per-node=1", "slurm/train.sbatch", "+exp=dense")
    assert slurm.wait(job)["ExitCode"] == "2:0"
    (line,) = toy.log.read_text().splitlines()
    assert complaint in line


def test_a_python_without_torch_is_one_line(slurm: Slurm, toy: Toy) -> None:
    Path(toy.environment["HAM_VENV"], "bin", "python").write_text("#!/bin/sh\nexit 1\n")
    job = toy.submit(slurm, "--ntasks-per-node=1", "slurm/train.sbatch", "+exp=dense")
    assert slurm.wait(job)["ExitCode"] == "2:0"
    (line,) = toy.log.read_text().splitlines()
    assert "has no torch: set HAM_VENV" in line


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("+exp=dense\n", "was changed after it was written"), (None, "cannot read"), ("", "has no line 1")],
)
def test_a_wrong_manifest_is_refused(
    slurm: Slurm, toy: Toy, tmp_path: Path, content: str | None, complaint: str
) -> None:
    manifest = tmp_path / f"manifest-{sha256(b'').hexdigest()[:12]}.txt"
    if content is not None:
        manifest.write_text(content)
    job = toy.submit(slurm, "--array=1", "slurm/array.sbatch", str(manifest))
    assert slurm.wait(job)["ExitCode"] == "2:0"
    (line,) = toy.log.read_text().splitlines()
    assert complaint in line and str(manifest) in line
    assert not toy.said.exists()


def test_outside_of_the_repository_a_job_is_one_line(slurm: Slurm, toy: Toy, tmp_path: Path) -> None:
    script = ("--ntasks-per-node=1", str(ROOT / "slurm" / "train.sbatch"), "+exp=dense")
    job = toy.submit(slurm, *script, cwd=tmp_path)
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert (
        toy.log.read_text()
        == f"no repository at {tmp_path}: call sbatch in the repository, or set HAM_ROOT\n"
    )
    job = toy.submit(slurm, *script, cwd=tmp_path, HAM_ROOT=str(ROOT), HAM_TERM_WAIT="0")
    toy.started(1)
    slurm("scancel", job)


def test_before_the_time_limit_every_rank_saves_and_the_job_is_requeued(
    slurm: Slurm, slow: dict[str, tuple[str, Toy]]
) -> None:
    job, toy = slow["limited"]
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    first = lines(toy.said, "of 4 start 0: nodes 1 gpus 0,1,2,3 cpus 8: -u train.py [+]exp=dense seed=1$")
    assert len(first) == 4
    assert toy.ranks("start 0: USR1") == toy.ranks("start 1: nodes") == {"0", "1", "2", "3"}
    assert lines(toy.log, f"requeueing {job}") and lines(toy.log, "start 2")  # it resumes in the same file


def test_a_preempted_job_stays_alive_until_slurm_requeues_it(
    slurm: Slurm, slow: dict[str, tuple[str, Toy]]
) -> None:
    job, toy = slow["preempted"]
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert toy.ranks("start 0: TERM") == {"0", "1", "2", "3"}
    assert lines(toy.log, "SLURM has 900 s to") and not lines(toy.log, "requeueing")


def test_two_nodes_are_requeued_as_one_job(slurm: Slurm, toy: Toy) -> None:
    job = toy.submit(slurm, "--nodes=2", "slurm/train.sbatch", "+exp=dense")
    toy.started(8)
    slurm("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert len(toy.ranks("of 8 start 0: USR1")) == len(toy.ranks("of 8 start 1: nodes 2")) == 8


@pytest.mark.parametrize("name", list(resources()))
def test_slurm_accepts_what_each_kind_of_run_asks_for(slurm: Slurm, name: str) -> None:
    options = [f"--{key}={value}" for key, value in resources()[name].sbatch.items()]
    slurm("sbatch", "--test-only", "--array=1-9%4", *options, "slurm/array.sbatch", "manifest")
    with pytest.raises(AssertionError, match="Requested node configuration is not available"):
        slurm("sbatch", "--test-only", *options, "--gpus-per-node=a100:9", "slurm/array.sbatch", "manifest")
