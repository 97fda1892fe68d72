"""The status of runs: done by their configuration hash and the rules of records, stale, failed, running."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import ANY

from sweep_files import DEPENDENT, SOURCE, commit, finish, metrics, stand_in, summary
from tracing import is_traced

from ham.report import plan
from ham.report.records import diverged_path, metrics_path, path_of
from ham.report.spec import RunSpec
from ham.sweep import status as states
from ham.sweep.launchable import blocked, dependency_levels, open_runs
from ham.sweep.manifests import STOPPED_LINE
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
        assert state.note.endswith(": commit, move it away and run it again")
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
        assert open_runs(states_now) == []  # SLURM cannot wait for it
        choice = ("--table=10", "--seeds=0", "--demo=tiny", "--only=mask_acdc_s90")
        left = "2 runs left to other processes or SLURM: repeat this command when they have ended\n"
        assert sweep(*choice, "--local") == (85, "1 running, 1 not launched\n" * 2 + left, ANY)
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
    (folder / "last.pt").touch()  # it has the masks too
    assert sweeps.survey([DEPENDENT])[SOURCE].kind is Status.DONE


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


def test_active_and_launchable_statuses_are_no_others() -> None:
    active = {kind for kind in Status if RunStatus(kind).is_active}
    launchable = {kind for kind in Status if RunStatus(kind).is_launchable}
    assert active == {Status.RUNNING, Status.QUEUED} and launchable == {Status.FAILED, Status.NOT_LAUNCHED}


def test_a_diverged_run_names_its_file_and_is_checked_as_records_are(sweeps: Sweeps) -> None:
    run = RunSpec("dense", 3)
    folder = run.folder(sweeps.runs)
    folder.mkdir(parents=True)
    content = summary(run, status="diverged", reason="the loss is not finite at step 3", epochs=1)
    (folder / "diverged.json").write_text(json.dumps(content))
    note = f"the loss is not finite at step 3: delete {folder} to run it again"
    assert sweeps.state(run) == RunStatus(Status.DIVERGED, note)
    content["provenance"]["dirty"] = True
    (folder / "diverged.json").write_text(json.dumps(content))
    assert sweeps.state(run).kind is Status.NOT_LAUNCHED
    assert Sweeps(sweeps.runs, lenient=True).state(run) == RunStatus(Status.DIVERGED, note)
    finish(RunSpec("dense", 4), sweeps)
    (folder / "summary.json").write_text(json.dumps(summary(run)))
    (folder / "metrics.jsonl").write_text(metrics(run))
    assert sweeps.state(run).kind is Status.DONE, "a later attempt ended well"


def test_a_committed_divergence_names_its_record_and_does_not_count_again(sweeps: Sweeps) -> None:
    run = RunSpec("dense", 3)
    path = diverged_path(path_of(run, states.RESULTS))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(summary(run, status="diverged", reason="nan", epochs=1)))
    assert sweeps.state(run) == RunStatus(Status.DIVERGED, f"nan: delete {path} to run it again")
    assert Sweeps(sweeps.runs, again=True).state(run).kind is Status.NOT_LAUNCHED


def test_the_outcome_is_the_last_accuracy_of_the_directory_else_of_the_record(sweeps: Sweeps) -> None:
    run = RunSpec("dense", 3)
    commit(run, metrics={"top1_last": 61.0, "top1_best": 70.0})
    assert sweeps.outcome(run) == 61.0
    folder = finish(run, sweeps, metrics={"top1_last": 62.0, "top1_best": 70.0})
    assert sweeps.outcome(run) == 62.0
    (folder / "metrics.jsonl").unlink()  # no record can be made of it
    assert sweeps.outcome(run) == 61.0


def test_epochs_are_counted_once_each(sweeps: Sweeps) -> None:
    assert sweeps.epochs_done(SOURCE) == 0
    folder = SOURCE.folder(sweeps.runs)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"epoch": 0, "a": {"epoch": 7}}\n{"epoch": 0}\n{"epoch": 11}\n')
    assert sweeps.epochs_done(SOURCE) == 2


def test_the_log_of_the_latest_attempt_says_why_a_run_failed(sweeps: Sweeps) -> None:
    name = sweeps.write([SOURCE]).stem.removeprefix("manifest-")
    folder = SOURCE.folder(sweeps.runs)
    folder.mkdir(parents=True)
    logs = [folder / "train.log", sweeps.log(name, 1), sweeps.local_log(SOURCE)]
    for age, log in enumerate(logs):
        log.write_text(f"words {age}\n")
        os.utime(log, (1000 - age, 1000 - age))
    assert sweeps.existing_logs(SOURCE) == logs[::-1]
    assert sweeps.state(SOURCE) == RunStatus(Status.FAILED, "words 0")
    logs[0].write_text(f"{STOPPED_LINE}\n")
    assert sweeps.state(SOURCE) == RunStatus(Status.NOT_LAUNCHED, "stopped")


def test_a_summary_of_another_run_names_where_it_belongs(sweeps: Sweeps) -> None:
    folder = finish(RunSpec("dense", 2), sweeps, exp="dense_ham", seed=2)
    (folder / "summary.json").write_text(json.dumps(summary(RunSpec("dense", 3))))
    place = "its summary is of dense seed 3: move it to dense/seed3"
    assert sweeps.state(RunSpec("dense", 2)).note == f"{folder}: {place}"
    folder = finish(RunSpec("dense", 4), sweeps)
    (folder / "metrics.jsonl").unlink()
    reason = f"{folder}: it has no metrics.jsonl: move it away and run it again"
    assert sweeps.state(RunSpec("dense", 4)).note == reason


def test_a_run_is_blocked_by_a_source_that_is_lost_or_runs_elsewhere_than_in_slurm() -> None:
    open_ = RunStatus(Status.NOT_LAUNCHED)
    for state, held in (
        *((RunStatus(kind), True) for kind in (Status.STALE, Status.DIVERGED, Status.RUNNING, Status.QUEUED)),
        *((RunStatus(kind, "", "7_1"), False) for kind in (Status.RUNNING, Status.QUEUED)),
        *((RunStatus(kind), False) for kind in (Status.DONE, Status.FAILED, Status.NOT_LAUNCHED)),
    ):
        known = {SOURCE: state, DEPENDENT: open_}
        assert blocked(known) == ([DEPENDENT] if held else []), state
        assert (DEPENDENT in open_runs(known)) is not held
        assert blocked({SOURCE: state, DEPENDENT: RunStatus(Status.DONE)}) == []


def test_levels_follow_the_sources_among_the_runs() -> None:
    dense = RunSpec("dense", 0, demo="tiny")
    assert dependency_levels([dense, SOURCE, DEPENDENT]) == [[dense, SOURCE], [DEPENDENT]]
    assert dependency_levels([DEPENDENT]) == [[DEPENDENT]] and dependency_levels([]) == []


def test_a_dependent_with_a_checkpoint_needs_no_masks(sweeps: Sweeps) -> None:
    source, dependent = RunSpec("acdc_s90", 0), RunSpec("mask_acdc_s90", 0)
    commit(source)
    folder = dependent.folder(sweeps.runs)
    folder.mkdir(parents=True)
    sweeps.active[sweeps.line(dependent)] = RunStatus(Status.QUEUED, "", "7_1")
    assert list(sweeps.survey([dependent])) == [source, dependent]
    sweeps.active[sweeps.line(dependent)] = RunStatus(Status.RUNNING, "", "7_1")
    assert list(sweeps.survey([dependent])) == [dependent]
    sweeps.active.clear()
    (folder / "last.pt").touch()
    assert list(sweeps.survey([dependent])) == [dependent]
