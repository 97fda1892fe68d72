"""A sweep of real training under a real SLURM completes though jobs are killed, cancelled and preempted."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from private import Slurm, Training, lines, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
# five runs: the source comes first, its dependent waits in an array of its own
CHOICE = ("--table=10", "--seeds=0", "--demo=tiny", "--only")
CHOICE += ("mask_acdc_s90", "random_s90", "random_ham", "synflow_ham")
FIRST = ("acdc_s90", "synflow_ham_s90", "random_s90", "random_ham_s90")
SECOND = "mask_acdc_s90"


@dataclass
class Story:
    """The course of the sweep."""

    runs: Path
    first: str  # what the first --submit said
    again: str  # --submit while it was under way
    ends: dict[str, dict[str, str]]  # experiment -> what SLURM knew of its task at the end
    status: str
    retry: str
    while_retrying: str
    last: str

    def log(self, exp: str) -> Path:
        return self.runs / f"{exp}-tiny" / "seed0" / "train.log"


@pytest.fixture(scope="module")
def story(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Submit, disturb, wait, submit again, wait."""
    runs = tmp_path_factory.mktemp("sweep") / "runs"

    def sweep(*mode: str, status: int = 0) -> str:
        command = [sys.executable, "scripts/sweep.py", *CHOICE, f"--runs={runs}", *mode]
        return slurm(*command, status=status, HAM_ARRAY_THROTTLE="2")

    first = sweep("--submit", "--", "--partition=low")
    array, dependent = (line.split()[2].rstrip(":") for line in first.splitlines())
    task = {exp: f"{array}_{index}" for index, exp in enumerate(FIRST, start=1)}
    again = sweep("--submit")

    preempted, killed = Training(FIRST[0], runs), Training(FIRST[1], runs)
    node = slurm.show(task[preempted.exp])["NodeList"]
    others = {"n0": "n1", "n1": "n0"}[node]  # nobody else is to be preempted
    for exp in FIRST[2:]:
        slurm("scontrol", "update", f"JobId={task[exp]}", f"ReqNodeList={others}")
    os.kill(killed.pid, signal.SIGKILL)
    until(lambda: slurm.state(task[killed.exp]) == "FAILED", 60)
    slurm.sbatch(
        "--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=true"
    )

    cancelled = Training(FIRST[2], runs)
    slurm("scancel", task[cancelled.exp])
    requeued = Training(FIRST[3], runs)  # the last task, whose job id is the array's
    slurm("scancel", "--batch", "--signal=USR1", task[requeued.exp])
    requeued.continue_when_signaled()
    slurm.wait(array, 120)
    slurm.wait(dependent, 60)
    ends = {exp: slurm.show(job) for exp, job in task.items()} | {SECOND: slurm.show(f"{dependent}_1")}

    status = sweep("--status", status=1)
    retry = sweep("--submit")
    while_retrying = sweep("--submit")
    slurm.wait(retry.split()[2].rstrip(":"), 120)
    return Story(runs, first, again, ends, status, retry, while_retrying, sweep("--submit"))


def test_the_dependent_run_waits_for_its_source_alone(story: Story) -> None:
    one, other = story.first.splitlines()
    assert one.endswith(": 4 runs, demo") and other.endswith(
        ": 1 run, demo, after 1 run whose masks they take"
    )
    assert story.ends[SECOND]["JobState"] == "COMPLETED"
    assert story.ends[SECOND]["StartTime"] >= story.ends[FIRST[0]]["EndTime"]


def test_what_is_under_way_is_not_submitted_again(story: Story) -> None:
    assert story.again.startswith("nothing to submit: ")
    assert story.while_retrying.startswith("nothing to submit: 2 done, ")


def test_a_preempted_run_resumes(story: Story) -> None:
    assert (story.ends[FIRST[0]]["JobState"], story.ends[FIRST[0]]["Restarts"]) == ("COMPLETED", "1")
    assert lines(story.log(FIRST[0]), "resumed at epoch")


def test_the_last_task_is_requeued_alone_and_resumes(story: Story) -> None:
    restarts = {exp: int(end["Restarts"]) for exp, end in story.ends.items()}
    assert restarts == dict.fromkeys((*FIRST, SECOND), 0) | {FIRST[0]: 1, FIRST[3]: 1}
    assert story.ends[FIRST[3]]["JobState"] == "COMPLETED"
    assert lines(story.log(FIRST[3]), "resumed at epoch")


def test_killed_and_cancelled_runs_are_reported_and_submitted_again(story: Story) -> None:
    assert story.ends[FIRST[1]]["JobState"] == "FAILED" and story.ends[FIRST[2]]["JobState"] == "CANCELLED"
    failed = [line for line in story.status.splitlines() if "  failed  " in line]
    assert len(failed) == 2
    assert any(f"{FIRST[1]} (tiny)" in line and "Killed" in line for line in failed)
    assert any(f"{FIRST[2]} (tiny)" in line and "cancelled or preempted, saved" in line for line in failed)
    assert story.retry.endswith(": 2 runs, demo")
    assert lines(story.log(FIRST[2]), "resumed at epoch")


def test_finally_everything_is_done(story: Story) -> None:
    assert story.last == "nothing to submit: 4 done"  # the source is not a cell of the table
    for exp in (*FIRST, SECOND):
        assert json.loads((story.log(exp).parent / "summary.json").read_text())["status"] == "done"


@pytest.mark.parametrize("exp", ["random_ham_s90", "lora_llama1b_ham"])
def test_ranks_on_two_nodes_train_together(slurm: Slurm, exp: str, tmp_path: Path) -> None:
    settings = ("--ntasks-per-node=1", f"--output={tmp_path}/job.log")
    train = ("--nodes=2", "slurm/train.sbatch", f"+exp={exp}", "+demo=tiny", f"runs_dir={tmp_path}")
    job = slurm.sbatch(*settings, *train, MASTER_ADDR="127.0.0.1")  # the fake nodes' names do not resolve
    ended = slurm.wait(job, 120)
    assert ended["JobState"] == "COMPLETED", (tmp_path / "job.log").read_text()
    summary = json.loads((tmp_path / f"{exp}-tiny" / "seed0" / "summary.json").read_text())
    assert summary["provenance"]["ranks"] == 2
