"""scripts/sweep.py without SLURM: what there is to do, what is known of runs, how they are carried out."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import sweep

from ham.report import plan
from ham.report.records import metrics_path, path_of
from ham.report.spec import RunSpec
from ham.sweep import local as local_runs
from ham.sweep import slurm as launch
from ham.sweep import status as states
from ham.sweep.status import RunStatus, Status, SweepError, Sweeps

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "sweep.py"
SOURCE, DEPENDENT = RunSpec("acdc_s90", 0, demo="tiny"), RunSpec("mask_acdc_s90", 0, demo="tiny")
Said = tuple[int, str, str]


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with no SLURM on it, for stand-ins; no committed records."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("bash", "env"):
        (binaries / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setenv("HAM_COMMIT", "c0ffee0")  # nor is there git
    monkeypatch.setattr(states, "RESULTS", tmp_path / "results")
    return binaries


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`say("--table=4")`: status, stdout and stderr of sweep.py on an own folder of runs."""

    def run(*argv: str) -> Said:
        capsys.readouterr()
        before, dash, after = " ".join(argv).partition(" -- ")
        command = [*before.split(), f"--runs={tmp_path / 'runs'}", *(dash + after).split()]
        try:
            status = sweep.main(command)
        except SystemExit as end:
            status = int(end.code)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def sweeps(tmp_path: Path) -> Sweeps:
    return Sweeps(tmp_path / "runs")


def whole(run: RunSpec, dirty: bool | None = False, **altered: Any) -> dict[str, Any]:
    """A summary that the rules of records accept."""
    origin = {"exp": run.exp, "seed": run.seed, "config_hash": run.info.config_hash}
    if source := run.depends_on:
        from_source = {"exp": source.exp, "seed": source.seed, "config_hash": source.info.config_hash}
    summary = origin | {"demo": run.demo or None, "overridden": bool(run.overrides), "status": "done"}
    summary |= {"epochs": run.info.epochs, "metrics": {"top1_last": 50.0, "top1_best": 50.0}}
    summary["sparsity"] = {"target": run.info.sparsity, "overall": run.info.sparsity}
    summary["sparsity"]["masks_from"] = from_source if source else None
    summary["provenance"] = {"commit": "c0ffee0", "dirty": dirty, "argv": []}
    return summary | altered


def lines(run: RunSpec) -> str:
    """Its epochs."""
    return "".join(f"{json.dumps({'epoch': epoch, 'top1': 50.0})}\n" for epoch in range(run.info.epochs))


def finish(run: RunSpec, sweeps: Sweeps, masks: bool = True, **altered: Any) -> Path:
    """What a finished run leaves."""
    folder = run.folder(sweeps.runs)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(whole(run, **altered)))
    (folder / "metrics.jsonl").write_text(lines(run))
    if masks:
        (folder / "masks.pt").touch()
    return folder


def stand_in(binaries: Path, name: str, script: str) -> None:
    """A command of that name."""
    (binaries / name).write_text(f"#!/bin/bash\n{script}\n")
    (binaries / name).chmod(0o755)


# what there is to do


def test_table_4_is_39_cells_of_three_seeds(say: Callable[..., Said]) -> None:
    status, out, _ = say("--table=4", "--dry-run")
    assert status == 0
    assert re.search(r"table04 +39 cells x 3 seeds: 117 not launched", out)
    line = next(line for line in out.splitlines() if line.startswith("imagenet_rn50"))
    assert re.match(r"imagenet_rn50 +117 +[\d,]+ +[\d.]+ .*--gpus-per-node=a100:4 .*--time=24:00:00", line)
    assert say("--table=4") == say("--table=table04", "--dry-run")


def test_table_10_needs_the_masks_of_nine_runs(say: Callable[..., Said]) -> None:
    _, out, _ = say("--table=10")
    assert "18 cells x 3 seeds: 54 not launched" in out
    assert "9 more runs: 9 not launched" in out
    assert "27 runs wait for the masks of 9" in out
    assert re.search(r"total +63 ", out)


def test_runs_that_tables_share_exist_once(say: Callable[..., Said]) -> None:
    _, out, _ = say("--table=4", "--table=10")
    # the random masks of Table 10 and its sources are cells of Table 4
    assert re.search(rf"total +{117 + 54 - 9} ", out) and "more runs" not in out
    assert re.search(rf"total +{len(plan.every_run())} ", say("--all")[1])


def test_gpu_hours_count_passes_and_epochs() -> None:
    asks = launch.resources()["imagenet_rn50"]
    dense, sam = asks.gpu_hours(RunSpec("dense", 0)), asks.gpu_hours(RunSpec("dense_sam", 0))
    assert dense == pytest.approx(100 * 1281167 / asks.images_per_second / 3600)
    assert sam == pytest.approx(2 * dense)


def test_every_base_has_resources_and_headers_warn_in_time() -> None:
    assert {launch.resource_class(run) for run in plan.every_run()} | {"demo"} == set(launch.resources())
    for script in sorted((ROOT / "slurm").glob("*.sbatch")):
        assert int(re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", script.read_text(), re.M)[1]) >= 120
        assert "#SBATCH --requeue\n#SBATCH --open-mode=append\n" in script.read_text()


RESOURCES = (ROOT / "slurm" / "resources.yaml").read_text()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("demo: [", "slurm/resources.yaml, line"),
        ("", "slurm/resources.yaml holds no entries"),
        ("demo: 4", "slurm/resources.yaml: demo is no mapping"),
        (RESOURCES.replace("disk_gb", "disk"), "imagenet_rn50 has an unknown key 'disk'"),
        (RESOURCES.replace("  disk_gb: 1.4\n", ""), "imagenet_rn50 has no disk_gb"),
        (RESOURCES.replace("disk_gb: 1.4", "disk_gb: much"), "imagenet_rn50: disk_gb is no number"),
    ],
)
def test_an_error_in_the_resources_is_one_line(
    say: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, complaint: str
) -> None:
    (tmp_path / "resources.yaml").write_text(content)
    monkeypatch.setattr(launch, "SLURM", tmp_path)
    launch.resources.cache_clear()
    status, _, err = say("--table=4")
    launch.resources.cache_clear()
    assert status == 2 and err.count("\n") == 1 and complaint in err


@pytest.mark.parametrize("mode", ["--dry-run", "--submit", "--local", "--status"])
def test_a_file_in_the_place_of_the_runs_is_one_line(
    say: Callable[..., Said], tmp_path: Path, mode: str
) -> None:
    (tmp_path / "runs").touch()
    assert say("--table=4", mode) == (2, "", f"sweep.py: {tmp_path}/runs is no folder: choose other --runs\n")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--all", f"--runs={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait() == 141 and "BrokenPipe" not in err and "Traceback" not in err


@pytest.mark.parametrize("script", [*(ROOT / "slurm").glob("*.s*"), *(ROOT / "tests" / "slurm").glob("*.sh")])
def test_scripts_are_bash(script: Path) -> None:
    subprocess.run(["/bin/bash", "-n", str(script)], check=True)


def test_torch_is_not_imported() -> None:
    code = "import sys, sweep; sweep.main(['--all']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ("--table=44", "there is no table 'table44': choose one of"),
        ("--figure=99", "there is no figure"),
        ("", "nothing chosen: give --table N"),
        ("--table=4 --jobs=0", "--jobs counts from 1"),
        ("--table=4 --seeds=4294967296", "--seeds from 0 to 2^32 - 1"),
        ("--table=4 --demo=huge", "invalid choice: 'huge'"),
        ("--table=4 --submit --local", "not allowed with argument"),
        ("--table=4 --only=nothing", "no run's experiment holds nothing"),
        ("--table=4 --submit", "there is no SLURM here (squeue is not on the PATH): use --local"),
        ("--table=4 -- --qos=long", "give them with --submit"),
    ],
)
def test_wrong_use_is_one_line(say: Callable[..., Said], argv: str, complaint: str) -> None:
    status, out, err = say(*argv.split())
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("sweep.py: ") and complaint in err


def test_a_folder_that_a_manifest_cannot_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="choose other --runs"):
        Sweeps(tmp_path / "my runs")


# what is known of a run


def test_a_run_is_done_by_its_summary_or_by_a_committed_record(sweeps: Sweeps) -> None:
    assert sweeps.state(SOURCE) == RunStatus(Status.NOT_LAUNCHED)
    finish(SOURCE, sweeps)
    assert sweeps.state(SOURCE) == RunStatus(Status.DONE)
    for run in (RunSpec("dense", 1), RunSpec("dense", 1, demo="digits")):
        commit(run)
        assert sweeps.state(run) == RunStatus(Status.DONE)
        assert sweeps.state(run, masks=True) == RunStatus(Status.NOT_LAUNCHED)  # a record holds no masks


def commit(run: RunSpec, **altered: Any) -> Path:
    """A record of a run, with its epochs."""
    record = path_of(run, states.RESULTS)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(whole(run, **altered)))
    metrics_path(record).write_text(lines(run))
    return record


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
    assert "it says that it is dense seed 3" in sweeps.state(RunSpec("dense", 2)).note
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
    assert time.process_time() - begun < 4  # of 725 runs, whose records are read with all their epochs


def test_what_trains_on_this_machine_is_left_alone(sweeps: Sweeps, say: Callable[..., Said]) -> None:
    folder = SOURCE.folder(sweeps.runs)
    folder.mkdir(parents=True)
    (folder / "train.log").write_text("epoch 1/2\n")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        states_now = sweeps.survey([DEPENDENT])
        assert states_now[SOURCE] == RunStatus(Status.RUNNING, "on this machine")
        assert states.open_runs(states_now) == []  # SLURM cannot wait for it
        choice = ("--table=10", "--seeds=0", "--demo=tiny", "--only=mask_acdc_s90")
        assert say(*choice, "--local") == (0, "1 running, 1 not launched\n", ANY)
        assert "running  acdc_s90 seed 0 (tiny)  on this machine" in say(*choice, "--status")[1]
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
    sweeps: Sweeps, say: Callable[..., Said], no_slurm: Path
) -> None:
    folder = finish(SOURCE, sweeps, config_hash="0123456789")
    state = sweeps.state(SOURCE)
    assert state.kind is Status.STALE
    assert "is of configuration 01234567, now" in state.note and "move it away to run it anew" in state.note
    choice = ("--table=10", "--seeds=0", "--demo=tiny", "--only=mask_acdc_s90")
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "sbatch", "exit 1")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    status, out, err = say(*choice, "--submit")
    assert status == 0 and out.startswith("nothing to submit: 1 stale, 1 not launched")
    assert f"{SOURCE} is stale: {folder}" in err and "1 run not launched, for want of the masks of" in err
    (folder / "summary.json").rename(folder / "provenance.json")  # one that is not done
    (folder / "last.pt").touch()
    assert sweeps.state(SOURCE).kind is Status.STALE
    (folder / "last.pt").unlink()  # nothing to go on from: train.py starts anew
    assert sweeps.state(SOURCE).kind is Status.NOT_LAUNCHED
    (folder / "summary.json").write_text(json.dumps(whole(SOURCE)))
    (folder / "masks.pt").unlink()
    assert "has no masks.pt, which others need: delete it" in sweeps.survey([DEPENDENT])[SOURCE].note


def test_squeue_tells_what_is_queued_and_running(sweeps: Sweeps, no_slurm: Path) -> None:
    runs = [SOURCE, DEPENDENT, RunSpec("dense", 0, demo="tiny")]
    name = sweeps.write(runs).stem.removeprefix("manifest-")
    listed = [f"ham-{name}|7|1|RUNNING|None", f"ham-{name}|7|2|PENDING|Dependency", "other|8|1|RUNNING|None"]
    listed += ["ham-unknown|9|1|RUNNING|None", f"ham-{name}|7|99|RUNNING|None", "ham|5|N/A|RUNNING|None"]
    stand_in(no_slurm, "squeue", "\n".join(f"echo '{line}'" for line in listed))
    sweeps.queue()
    known = [sweeps.state(run) for run in runs]
    assert known[:2] == [RunStatus(Status.RUNNING, "", "7_1"), RunStatus(Status.QUEUED, "Dependency", "7_2")]
    assert known[2] == RunStatus(Status.FAILED, "ended before it started")  # in a manifest, and nowhere else
    assert [run for run, state in sweeps.survey(runs).items() if state.is_launchable] == runs[2:]


def test_a_failed_run_tells_the_last_line_of_its_log(sweeps: Sweeps) -> None:
    manifest = sweeps.write([SOURCE])
    log = sweeps.log(manifest.stem.removeprefix("manifest-"), 1)
    bar = "  5%|5         | 1/20 [00:00<00:01, 3.02step/s]"
    told = "train.py: diverged: the loss is not finite at step 3"
    log.write_text(f"{bar}\r{bar}\n{told}\n{bar}\nsrun: error: n0: task 0: Exited with exit code 1\n")
    assert sweeps.state(SOURCE) == RunStatus(Status.FAILED, told)
    killed = "srun: error: n0: task 0: Killed"
    log.write_text(f"{told}\n{bar}{killed}\nsrun: Force Terminated StepId=4.0\n")
    assert sweeps.state(SOURCE) == RunStatus(Status.FAILED, killed)


def test_status_tells_by_its_exit_status_that_a_run_failed(say: Callable[..., Said], sweeps: Sweeps) -> None:
    choice = ("--table=4", "--demo=tiny", "--seeds=0", "--only=acdc_s90", "--status")
    assert say(*choice)[0] == 0
    sweeps.write([SOURCE])
    status, out, _ = say(*choice)
    assert status == 1 and f"failed   {SOURCE}  ended before it started" in out


def test_a_local_failure_is_not_told_in_old_words(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_runs, "ROOT", sweeps.runs)  # where there is no train.py
    sweeps.logs.mkdir(parents=True)
    sweeps.local_log(SOURCE).write_text("train.py: words of another day\n")
    (failure,) = local_runs.carry_out([SOURCE], sweeps, 1)
    assert "No such file" in failure and "another day" not in failure
    assert states.last_log_line(sweeps.local_log(SOURCE), 10**6).startswith("it added nothing to")


# code that is not committed


@pytest.fixture
def repository(tmp_path: Path, no_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean git repository in the place of this one, with stand-ins for SLURM."""
    folder = tmp_path / "repository"
    (folder / "ham").mkdir(parents=True)
    (folder / "ham" / "code.py").write_text("1\n")
    (folder / "slurm").symlink_to(ROOT / "slurm")
    (no_slurm / "git").symlink_to("/usr/bin/git")
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "a")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    monkeypatch.setattr(launch, "ROOT", folder)
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    stand_in(no_slurm, "sbatch", f'echo "commit ${{HAM_COMMIT-none}}" >>{tmp_path}/calls; echo 1')
    return folder


def test_the_code_is_what_provenance_calls_so() -> None:
    tree = ast.parse((ROOT / "ham" / "run" / "provenance.py").read_text())
    (told,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_CODE"
    )
    assert told == launch.CODE
    assert all((ROOT / path).exists() for path in told[1:])


def test_jobs_are_told_the_commit_of_clean_code_alone(
    say: Callable[..., Said], repository: Path, tmp_path: Path
) -> None:
    choice = ("--table=4", "--seeds=0", "--only=acdc_s90", "--submit")
    (repository / "notes.txt").touch()  # neither notes nor links nor settings count
    (repository / "runs").symlink_to(tmp_path)
    assert launch.uncommitted() == ""
    assert say(*choice)[0] == 0
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout
    assert (tmp_path / "calls").read_text() == f"commit {head}"
    (repository / "ham" / "code.py").write_text("2\n")
    status, out, err = say(*choice)
    cure = "runs of uncommitted code become no records: commit first, or give --allow-dirty"
    assert (status, out, err) == (2, "", f"sweep.py: {cure}\n")
    status, out, err = say(*choice, "--demo=digits")
    assert status == 0 and "become no records" in err and err.count("\n") == 1
    assert say(*choice, "--allow-dirty")[::2] == (0, "")
    assert (tmp_path / "calls").read_text() == f"commit {head}" + "commit none\n" * 2
    (repository / "ham" / "code.py").write_text("1\n")
    (repository / "ham" / "new.py").touch()
    assert launch.uncommitted()


def test_without_git_and_commit_nothing_is_launched_at_the_papers_scale(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HAM_COMMIT")
    status, out, err = say("--table=4", "--local")
    assert (status, out) == (2, "") and "set HAM_COMMIT, or give --allow-dirty" in err


def test_a_silent_squeue_stops_a_submission_but_no_overview(say: Callable[..., Said], no_slurm: Path) -> None:
    stand_in(no_slurm, "squeue", "echo 'squeue: error: no controller' >&2; exit 1")
    assert say("--table=4", "--submit") == (2, "", "sweep.py: squeue failed: error: no controller\n")
    status, out, err = say("--table=4", "--status")
    assert status == 0 and "117 not launched" in out and "are not known" in err


# manifests and arrays


def test_a_manifest_is_named_by_its_content_and_never_changed(sweeps: Sweeps) -> None:
    path = sweeps.write([SOURCE, DEPENDENT])
    assert path == sweeps.write([SOURCE, DEPENDENT]) != sweeps.write([SOURCE])
    assert path.read_text().splitlines() == [
        f"+exp={run.exp} +demo=tiny seed=0 runs_dir={sweeps.runs}" for run in (SOURCE, DEPENDENT)
    ]
    assert path.stat().st_mode & 0o222 == 0
    path.chmod(0o644)
    path.write_text("+exp=dense\n")
    with pytest.raises(SweepError, match="was changed after it was written"):
        sweeps.write([SOURCE, DEPENDENT])


def test_arrays_are_split_throttled_and_wait_for_their_sources(
    say: Callable[..., Said], no_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "scontrol", "echo 'MaxArraySize            = 3'")
    calls.touch()
    told = 'echo "$((100 + ${#c[@]}));one"'
    stand_in(no_slurm, "sbatch", f'mapfile -t c <{calls}; echo "$HAM_ROOT $*" >>{calls}; {told}')
    monkeypatch.setenv("HAM_ARRAY_THROTTLE", "5")
    choice = ("--table=10", "--seeds", "0", "1", "--only", "mask_acdc", "--submit", "--", "--qos=long")
    status, out, _ = say(*choice)
    told = calls.read_text().splitlines()
    assert status == 0 and len(told) == 4  # 2 sources, then 6 dependents, at most 2 tasks per array
    assert all(line.startswith(f"{ROOT} --parsable --job-name=ham-") for line in told)
    assert all("--array=1-2%5 " in line and "--gpus-per-node=a100:4" in line for line in told)
    assert all(line.partition(" --qos=long ")[2].startswith(f"{ROOT}/slurm/array.sbatch ") for line in told)
    assert "--dependency" not in told[0]
    assert all(" --dependency=afterany:100_1:100_2 " in line for line in told[1:])
    assert "array 101: 2 runs, imagenet_rn50, after 2 runs whose masks they take" in out


def test_what_sbatch_refuses_is_told_in_one_line(say: Callable[..., Said], no_slurm: Path) -> None:
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    stand_in(no_slurm, "sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    status, out, err = say("--table=4", "--submit")
    assert (status, out, err) == (2, "", "sweep.py: sbatch failed: error: Invalid account\n")


@pytest.mark.parametrize(
    ("said", "told", "left"),
    [
        ("unrecognized option '--foo=nope'\\nTry 'sbatch --help'", "unrecognized option '--foo=nope'", 0),
        ("lua: hello\\nsbatch: error: no memory\\nsbatch: error: Batch job", "error: no memory", 0),
        ("error: Socket timed out on send/recv operation", "error: Socket timed out", 1),  # it may be there
    ],
)
def test_a_refused_manifest_is_removed(
    say: Callable[..., Said], no_slurm: Path, sweeps: Sweeps, said: str, told: str, left: int
) -> None:
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    stand_in(no_slurm, "sbatch", f'echo -e "sbatch: {said}" >&2; exit 1')
    status, out, err = say("--table=4", "--submit", "--seeds=0", "--only=acdc_s90")
    assert (status, out) == (2, "") and err.startswith(f"sweep.py: sbatch failed: {told}")
    assert err.count("\n") == 1 and "sbatch --help" not in err
    assert len(list(sweeps.folder.glob("manifest-*"))) == left
    earlier = sweeps.write([RunSpec("acdc_s90", 0)])
    assert say("--table=4", "--submit", "--seeds=0", "--only=acdc_s90")[0] == 2
    assert earlier.exists()


def test_limits_are_numbers(
    say: Callable[..., Said], no_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(no_slurm, "squeue", "")
    monkeypatch.setenv("HAM_MAX_RESTARTS", "x")
    status, _, err = say("--table=4", "--submit")
    assert status == 2
    assert err == ("sweep.py: HAM_MAX_RESTARTS=x is no number: set it in slurm/site.sh or the environment\n")


def test_the_environment_wins_over_site_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.site_environment()["HAM_MAX_RESTARTS"] == "20"
    monkeypatch.setenv("HAM_MAX_RESTARTS", "3")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    site = launch.site_environment()
    assert (site["HAM_MAX_RESTARTS"], site["SBATCH_ACCOUNT"]) == ("3", "mine")


# without SLURM


def local(tmp_path: Path, *argv: str, jobs: int = 2) -> list[str]:
    command = [
        sys.executable,
        str(SCRIPT),
        "--local",
        f"--runs={tmp_path / 'runs'}",
        f"--jobs={jobs}",
        "--seeds=0",
    ]
    return [*command, *argv]


@pytest.mark.slow
def test_local_carries_out_sources_first_and_reports_failures(tmp_path: Path) -> None:
    command = local(tmp_path, "--table=10", "--demo=tiny", "--only", "mask_acdc_s90", "synflow_s90")
    broken = tmp_path / "runs" / "synflow_s90-tiny"
    broken.parent.mkdir()
    broken.touch()  # where a folder has to be
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "1 done, 1 failed\n"
    (line,) = re.findall(r"failed: .*", done.stderr)
    assert line.startswith("failed: synflow_s90 seed 0 (tiny): train.py: cannot write runs to")
    assert (tmp_path / "runs" / "mask_acdc_s90-tiny" / "seed0" / "summary.json").exists()
    broken.unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2 done\n")


@pytest.mark.slow
def test_ctrl_c_saves_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    only = ("--only", "acdc_ham_s80", "acdc_ham_s95", "--seeds", "7")  # a seed that has no record
    command = local(tmp_path, "--table=4", "--demo=digits", *only, jobs=1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "runs" / "acdc_ham_s80-digits" / "seed7" / "last.pt"
    deadline = time.monotonic() + 90
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "sweep.py: stopped; the same command goes on"
    (log,) = (tmp_path / "runs" / ".sweeps" / "logs").glob("local-*")
    assert "stopped by SIGTERM" in log.read_text()
