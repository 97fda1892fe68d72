"""The status of runs: done by their configuration hash and the rules of records, stale, failed, running."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import ANY

from sweep_files import DEPENDENT, SOURCE, commit, finish, stand_in, summary
from tracing import is_traced

from ham.report import plan
from ham.report.records import metrics_path
from ham.report.spec import RunSpec
from ham.sweep import status as states
from ham.sweep.status import RunStatus, Status, Sweeps

Sweep = Callable[..., tuple[int, str, str]]


def test_a_run_is_done_by_its_summary_or_by_a_committed_record(sweeps: Sweeps) -> None:
    assert sweeps.state(SOURCE) == RunStatus(Status.NOT_LAUNCHED)
    finish(SOURCE, sweeps)
    assert sweeps.state(SOURCE) == RunStatus(Status.DONE)
    for run in (RunSpec("dense", 1), RunSpec("dense", 1, demo="digits")):
        commit(run)
        assert sweeps.state(run) == RunStatus(Status.DONE)
        assert sweeps.state(run, masks=True) == RunStatus(Status.NOT_LAUNCHED)  # a record holds no masks


def test_what_the_rules_of_records_refuse_is_not_done(sweeps: Sweeps, tmp_path: Path) -> None:
    for run in (RunSpec("dense", 1), RunSpec("dense", 1, demo="digits")):
        record = commit(run, dirty=True)
        state = sweeps.state(run)
        assert state.kind is Status.STALE and "\n" not in state.note
        assert state.note.startswith(f"{record}: its code had uncommitted changes")
        assert "delete it first" in state.note
        record.unlink()
        folder = finish(run, sweeps, dirty=True)
        state = sweeps.state(run)
        assert state.kind is Status.STALE
        assert state.note.startswith(f"{folder}: its code had uncommitted") and "move it away" in state.note
        assert Sweeps(sweeps.runs, lenient=True).state(run) == RunStatus(Status.DONE)
        commit(run)  # a good record is enough
        assert sweeps.state(run) == RunStatus(Status.DONE)
    finish(SOURCE, sweeps, dirty=True)  # tiny runs become no records
    assert sweeps.state(SOURCE) == RunStatus(Status.DONE)
    folder = finish(RunSpec("dense", 2), sweeps, seed=3)
    assert "its summary is of dense seed 3" in sweeps.state(RunSpec("dense", 2)).note
    (folder / "summary.json").write_text("[]")
    assert sweeps.state(RunSpec("dense", 2)).kind is Status.NOT_LAUNCHED


def test_a_record_without_the_epochs_that_a_figure_shows_is_not_done(sweeps: Sweeps) -> None:
    run = RunSpec("dense", 0)
    metrics_path(commit(run)).unlink()
    assert sweeps.state(run) == RunStatus(Status.NOT_LAUNCHED)
    finish(run, sweeps)
    assert sweeps.state(run) == RunStatus(Status.DONE)


def test_a_survey_of_every_run_is_fast(sweeps: Sweeps) -> None:
    runs = plan.every_run()
    for run in runs:
        commit(run)
        finish(run, sweeps, dirty=True)
    begun = time.process_time()
    assert {state.kind for state in sweeps.survey(runs).values()} == {Status.DONE}
    limit = 20 if is_traced() else 4
    assert time.process_time() - begun < limit  # of 725 runs, whose records are read with all their epochs


def test_runs_that_train_on_this_machine_are_not_started_again(sweeps: Sweeps, sweep: Sweep) -> None:
    folder = SOURCE.folder(sweeps.runs)
    folder.mkdir(parents=True)
    (folder / "train.log").write_text("epoch 1/2\n")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        states_now = sweeps.survey([DEPENDENT])
        assert states_now[SOURCE] == RunStatus(Status.RUNNING, "by another process")
        assert states.open_runs(states_now) == []  # SLURM cannot wait for it
        choice = ("--table=10", "--seeds=0", "--demo=tiny", "--only=mask_acdc_s90")
        assert sweep(*choice, "--local") == (0, "1 running, 1 not launched\n" * 2, ANY)
        assert (
            "acdc_s90 (tiny)                   seed 0  running  by another process"
            in sweep(*choice, "--status")[1]
        )
        (folder / "trial0").mkdir()
        (folder / "lock").rename(folder / "trial0" / "lock")  # a search locks its trials
        assert sweeps.state(SOURCE).kind is Status.RUNNING
    assert sweeps.state(SOURCE) == RunStatus(Status.FAILED, "epoch 1/2")
    with (folder / "trial0" / "lock").open("w") as lock:  # the probe has kept nothing
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_source_runs_again_where_its_masks_are_missing(sweeps: Sweeps) -> None:
    source, dependent = RunSpec("acdc_s90", 0), RunSpec("mask_acdc_s90", 0)
    commit(source)
    assert list(sweeps.survey([dependent, source]).items()) == [
        (source, RunStatus(Status.NOT_LAUNCHED)),
        (dependent, RunStatus(Status.NOT_LAUNCHED)),
    ]
    finish(dependent, sweeps)
    assert sweeps.survey([dependent, source])[source] == RunStatus(Status.DONE)
    assert list(sweeps.survey([dependent])) == [dependent]  # nobody needs the source any more


def test_a_stale_run_is_named_with_its_cure_and_holds_its_dependents(
    sweeps: Sweeps, sweep: Sweep, no_slurm: Path
) -> None:
    folder = finish(SOURCE, sweeps, config_hash="0123456789")
    state = sweeps.state(SOURCE)
    assert state.kind is Status.STALE
    assert "has configuration 01234567, now" in state.note and "move it away to run it again" in state.note
    choice = ("--table=10", "--seeds=0", "--demo=tiny", "--only=mask_acdc_s90")
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "sbatch", "exit 1")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    status, out, err = sweep(*choice, "--submit")
    assert status == 0 and out.startswith("nothing to submit: 1 stale, 1 not launched")
    assert (
        f"{SOURCE} is stale: {folder}" in err
        and "1 run not launched: the runs whose masks they take are stale" in err
    )
    (folder / "summary.json").rename(folder / "provenance.json")  # one that is not done
    (folder / "last.pt").touch()
    assert sweeps.state(SOURCE).kind is Status.STALE
    (folder / "last.pt").unlink()  # nothing to resume from
    assert sweeps.state(SOURCE).kind is Status.NOT_LAUNCHED
    (folder / "summary.json").write_text(json.dumps(summary(SOURCE)))
    (folder / "masks.pt").unlink()
    assert "has no masks.pt, which others need: delete it" in sweeps.survey([DEPENDENT])[SOURCE].note


def test_a_failed_run_shows_the_last_line_of_its_log(sweeps: Sweeps) -> None:
    manifest = sweeps.write([SOURCE])
    log = sweeps.log(manifest.stem.removeprefix("manifest-"), 1)
    bar = "  5%|5         | 1/20 [00:00<00:01, 3.02step/s]"
    line = "train.py: diverged: the loss is not finite at step 3"
    log.write_text(f"{bar}\r{bar}\n{line}\n{bar}\nsrun: error: n0: task 0: Exited with exit code 1\n")
    assert sweeps.state(SOURCE) == RunStatus(Status.FAILED, line)
    killed = "srun: error: n0: task 0: Killed"
    log.write_text(f"{line}\n{bar}{killed}\nsrun: Force Terminated StepId=4.0\n")
    assert sweeps.state(SOURCE) == RunStatus(Status.FAILED, killed)


def test_status_ends_with_1_if_a_run_failed(sweep: Sweep, sweeps: Sweeps) -> None:
    choice = ("--table=4", "--demo=tiny", "--seeds=0", "--only=acdc_s90", "--status")
    assert sweep(*choice)[0] == 0
    sweeps.write([SOURCE])
    status, out, _ = sweep(*choice)
    assert status == 1 and "acdc_s90 (tiny)                   seed 0  failed  ended before it started" in out
