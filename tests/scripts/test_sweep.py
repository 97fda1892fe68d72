"""scripts/sweep.py without SLURM: what there is to do, what is known of runs, how they are carried out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sweep
from cluster import launch, states
from cluster.states import Kind, State, SweepError, Sweeps
from paper import plan
from paper.plan import Run
from paper.records import path_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "sweep.py"
SOURCE, DEPENDENT = Run("acdc_s90", 0, demo="tiny"), Run("mask_acdc_s90", 0, demo="tiny")
Said = tuple[int, str, str]


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with no SLURM on it, for stand-ins; no committed records."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("bash", "env"):
        (binaries / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(binaries))
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


def finish(run: Run, sweeps: Sweeps, masks: bool = True, **altered: str) -> Path:
    """What a finished run leaves."""
    folder = run.folder(sweeps.runs)
    folder.mkdir(parents=True)
    summary = {"config_hash": run.facts.config_hash, "status": "done"} | altered
    (folder / "summary.json").write_text(json.dumps(summary))
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
    dense, sam = asks.gpu_hours(Run("dense", 0)), asks.gpu_hours(Run("dense_sam", 0))
    assert dense == pytest.approx(100 * 1281167 / asks.images_per_second / 3600)
    assert sam == pytest.approx(2 * dense)


def test_every_base_has_resources_and_headers_warn_in_time() -> None:
    assert {run.facts.base for run in plan.every_run()} < set(launch.resources())
    for script in sorted((ROOT / "slurm").glob("*.sbatch")):
        assert int(re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", script.read_text(), re.M)[1]) >= 120
        assert "#SBATCH --requeue\n#SBATCH --open-mode=append\n" in script.read_text()


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
    assert sweeps.state(SOURCE) == State(Kind.FRESH)
    finish(SOURCE, sweeps)
    assert sweeps.state(SOURCE) == State(Kind.DONE)
    for run in (Run("dense", 1), Run("dense", 1, demo="digits")):
        record = path_of(run, states.RESULTS)
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"config_hash": run.facts.config_hash}))
        assert sweeps.state(run) == State(Kind.DONE)
        assert sweeps.state(run, masks=True) == State(Kind.FRESH)  # a record holds no masks


def test_a_source_runs_again_where_its_masks_are_missing(sweeps: Sweeps) -> None:
    source, dependent = Run("acdc_s90", 0), Run("mask_acdc_s90", 0)
    record = states.RESULTS / "runs" / "acdc_s90" / "seed0.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"config_hash": source.facts.config_hash}))
    assert list(sweeps.survey([dependent, source]).items()) == [
        (source, State(Kind.FRESH)),
        (dependent, State(Kind.FRESH)),
    ]
    finish(dependent, sweeps)
    assert sweeps.survey([dependent, source])[source] == State(Kind.DONE)
    assert list(sweeps.survey([dependent])) == [dependent]  # nobody needs the source any more


def test_a_stale_run_is_named_with_its_cure_and_holds_its_dependents(
    sweeps: Sweeps, say: Callable[..., Said], no_slurm: Path
) -> None:
    folder = finish(SOURCE, sweeps, config_hash="0123456789")
    state = sweeps.state(SOURCE)
    assert state.kind is Kind.STALE
    assert "is of configuration 01234567, now" in state.note and "move it away to run it anew" in state.note
    choice = ("--table=10", "--seeds=0", "--demo=tiny", "--only=mask_acdc_s90")
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "sbatch", "exit 1")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    status, out, err = say(*choice, "--submit")
    assert status == 0 and out.startswith("nothing to submit: 1 stale, 1 not launched")
    assert f"{SOURCE} is stale: {folder}" in err and "1 run not launched, for want of a stale" in err
    (folder / "summary.json").rename(folder / "provenance.json")  # one that is not done
    (folder / "last.pt").touch()
    assert sweeps.state(SOURCE).kind is Kind.STALE
    (folder / "last.pt").unlink()  # nothing to go on from: train.py starts anew
    assert sweeps.state(SOURCE).kind is Kind.FRESH
    (folder / "summary.json").write_text(
        json.dumps({"config_hash": SOURCE.facts.config_hash, "status": "done"})
    )
    (folder / "masks.pt").unlink()
    assert "has no masks.pt, which others need: delete it" in sweeps.survey([DEPENDENT])[SOURCE].note


def test_squeue_tells_what_is_queued_and_running(sweeps: Sweeps, no_slurm: Path) -> None:
    runs = [SOURCE, DEPENDENT, Run("dense", 0, demo="tiny")]
    name = sweeps.write(runs).stem.removeprefix("manifest-")
    listed = [f"ham-{name}|7|1|RUNNING|None", f"ham-{name}|7|2|PENDING|Dependency", "other|8|1|RUNNING|None"]
    listed += ["ham-unknown|9|1|RUNNING|None", f"ham-{name}|7|99|RUNNING|None", "ham|5|N/A|RUNNING|None"]
    stand_in(no_slurm, "squeue", "\n".join(f"echo '{line}'" for line in listed))
    sweeps.queue()
    known = [sweeps.state(run) for run in runs]
    assert known[:2] == [State(Kind.RUNNING, "", "7_1"), State(Kind.QUEUED, "Dependency", "7_2")]
    assert known[2] == State(Kind.FAILED, "ended before it started")  # in a manifest, and nowhere else
    assert [run for run, state in sweeps.survey(runs).items() if state.open] == runs[2:]


def test_a_failed_run_tells_the_last_line_of_its_log(sweeps: Sweeps) -> None:
    manifest = sweeps.write([SOURCE])
    log = sweeps.log(manifest.stem.removeprefix("manifest-"), 1)
    bar = "  5%|5         | 1/20 [00:00<00:01, 3.02step/s]"
    told = "train.py: diverged: the loss is not finite at step 3"
    log.write_text(f"{bar}\r{bar}\n{told}\n{bar}\nsrun: error: n0: task 0: Exited with exit code 1\n")
    assert sweeps.state(SOURCE) == State(Kind.FAILED, told)
    killed = "srun: error: n0: task 0: Killed"
    log.write_text(f"{told}\n{bar}{killed}\nsrun: Force Terminated StepId=4.0\n")
    assert sweeps.state(SOURCE) == State(Kind.FAILED, killed)


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
    command = local(tmp_path, "--table=4", "--demo=digits", "--only", "acdc_ham_s80", "acdc_ham_s95", jobs=1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "runs" / "acdc_ham_s80-digits" / "seed0" / "last.pt"
    deadline = time.monotonic() + 90
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "sweep.py: stopped; the same command goes on"
    (log,) = (tmp_path / "runs" / ".sweeps" / "logs").glob("local-*")
    assert "stopped by SIGTERM" in log.read_text()
