"""Requeued jobs with resume=false, variables of SLURM in the environment, a squeue that hangs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from private import ROOT, Slurm, Toy, Training, lines, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(240)]
DISTORTING = {
    **{"SQUEUE_STATES": "PENDING", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT": "%i", "SQUEUE_SORT": "i"},
    **{"SLURM_JOB_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1"},
    **{"WORLD_SIZE": "1", "RANK": "0"},
}
OF_A_SWEEP = DISTORTING | {
    **{"SLURM_NTASKS": "7", "SLURM_MEM_PER_CPU": "99", "SLURM_RESTART_COUNT": "3", "SBATCH_WAIT": "1"},
    **{"SBATCH_EXPORT": "NONE", "SBATCH_NO_REQUEUE": "1", "SBATCH_ERROR": "/dev/null"},
}


def test_a_requeued_job_resumes_its_own_run_although_it_was_started_with_resume_false(
    slurm: Slurm, tmp_path: Path
) -> None:
    runs = tmp_path / "a=b é"
    folder = runs / "dense-tiny" / "seed0"
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text("{}")  # of an earlier run
    (folder / "answers").mkdir()
    train = ("+exp=dense", "+demo=tiny", f"runs_dir={runs}", "resume=false")
    job = slurm.sbatch("--ntasks-per-node=1", f"--output={tmp_path}/log", "slurm/train.sbatch", *train)
    training = Training("dense", runs)
    slurm("scancel", "--batch", "--signal=USR1", job)
    training.continue_when_signaled()
    ended = slurm.wait(job, 120)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), (tmp_path / "log").read_text()
    assert not (folder / "answers").exists(), "the first start deletes an earlier run"
    assert lines(folder / "train.log", "resumed at epoch")
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


def test_a_sweep_sees_and_submits_the_same_inside_of_another_job(
    slurm: Slurm, toy: Toy, tmp_path: Path
) -> None:
    runs = tmp_path / "a=b é, %a [x] 'q' \"q\" $HOME"
    toy.environment |= OF_A_SWEEP
    choice = ("--exp=dense", "--seeds=0", "--demo=tiny", f"--runs={runs}")
    sweep = [sys.executable, "scripts/sweep.py", *choice, "--submit"]
    job = slurm(*sweep, **toy.environment).split()[2].rstrip(":")
    toy.started(1)
    assert slurm(*sweep, **toy.environment).startswith("nothing to submit: 1 running")
    (said,) = lines(toy.said, "of 1 start 0: nodes 1")
    assert said.endswith(f"+exp=dense +demo=tiny seed=0 runs_dir={runs}")
    slurm("scancel", "--batch", "--signal=USR1", f"{job}_1")
    ended = slurm.wait(f"{job}_1")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    (log,) = (runs / ".sweeps" / "logs").iterdir()
    assert lines(log, f"requeueing {job}_1") and log.name.endswith("-1.log")


@pytest.mark.parametrize("squeue", ["", "sleep 600"], ids=["answers", "hangs"])
def test_a_job_is_requeued_whatever_variables_it_inherits(slurm: Slurm, toy: Toy, squeue: str) -> None:
    if squeue:
        wrapper = Path(toy.environment["HAM_VENV"], "bin", "squeue")
        wrapper.write_text(f"#!/bin/sh\n{squeue}\n")
        wrapper.chmod(0o755)
    one = ("--ntasks-per-node=1", "slurm/train.sbatch", "+exp=dense", "resume=false")
    job = toy.submit(slurm, *one, **DISTORTING)
    toy.started(1)
    slurm("scancel", "--batch", "--signal=USR1", job)
    until(lambda: lines(toy.log, f"requeueing {job}$"), 60)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")


def test_a_squeue_that_hangs_ends_a_submission_in_one_line(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nsleep 600 &\nsleep 600\n")
    (tmp_path / "squeue").chmod(0o755)
    code = "import sweep; from ham.sweep import slurm; slurm._SECONDS = 1; sweep.sys.exit(sweep.main())"
    argv = ("--exp=dense", "--demo=tiny", f"--runs={tmp_path}/runs", "--submit")
    command = ("sh", "-c", 'exec "$@" 2>&1', "sh", sys.executable, "-c", code, *argv)
    path = f"{tmp_path}:{slurm.environment['PATH']}"
    printed = slurm(*command, cwd=ROOT / "scripts", status=2, PATH=path)
    assert printed == "sweep.py: squeue does not answer within 1 s: try again later"


STEP = """\
import os
from torch import distributed
from ham.process_group import init_distributed, shutdown
init_distributed({}, 60)
seen = [None, None]
distributed.all_gather_object(seen, os.environ["SLURM_STEP_ID"])
print("seen", *seen, flush=True)
shutdown(0)
"""


def test_two_steps_of_one_job_do_not_meet(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(STEP)
    step = f"srun --ntasks=2 --exact --mem=100 {sys.executable} {tmp_path}/step.py"
    both = f"{step} >{tmp_path}/a & {step} >{tmp_path}/b & wait"
    job = slurm.sbatch("--nodes=1", "--ntasks=4", "--mem=400", f"--output={tmp_path}/log", "--wrap", both)
    ended = slurm.wait(job, 120)
    assert ended["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    said = sorted((tmp_path / name).read_text() for name in "ab")
    assert said == ["seen 0 0\n" * 2, "seen 1 1\n" * 2], (tmp_path / "log").read_text()
