"""scripts/sweep.py --submit with stand-ins for SLURM: manifests, arrays, the queue, and uncommitted code."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_files import DEPENDENT, SOURCE, finish, stand_in

from ham import repository as code
from ham.files import ROOT
from ham.report.spec import RunSpec
from ham.sweep import environment, slurm
from ham.sweep.commands import uncommitted
from ham.sweep.manifests import SweepError
from ham.sweep.status import RunStatus, Status, Sweeps

Sweep = Callable[..., tuple[int, str, str]]


def test_the_queue_says_what_is_queued_and_running(sweeps: Sweeps, no_slurm: Path) -> None:
    runs = [SOURCE, DEPENDENT, RunSpec("dense", 0, demo="tiny")]
    name = sweeps.write(runs).stem.removeprefix("manifest-")
    listed = [f"ham-{name}|7|1|RUNNING|None", f"ham-{name}|7|2|PENDING|Dependency", "other|8|1|RUNNING|None"]
    listed += ["ham-unknown|9|1|RUNNING|None", f"ham-{name}|7|99|RUNNING|None", "ham|5|N/A|RUNNING|None"]
    stand_in(no_slurm, "squeue", "\n".join(f"echo '{line}'" for line in listed))
    slurm.read_queue(sweeps)
    known = [sweeps.state(run) for run in runs]
    assert known[:2] == [RunStatus(Status.RUNNING, "", "7_1"), RunStatus(Status.QUEUED, "Dependency", "7_2")]
    assert known[2] == RunStatus(Status.FAILED, "ended before it started")  # in a manifest, and nowhere else
    assert [run for run, state in sweeps.survey(runs).items() if state.is_launchable] == runs[2:]


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
    monkeypatch.setattr(code, "ROOT", folder)
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    stand_in(no_slurm, "sbatch", f'echo "commit ${{HAM_COMMIT-none}}" >>{tmp_path}/calls; echo 1')
    return folder


def test_jobs_get_the_commit_of_clean_code_only(sweep: Sweep, repository: Path, tmp_path: Path) -> None:
    choice = ("--table=4", "--seeds=0", "--only=acdc_s90", "--submit")
    (repository / "notes.txt").touch()  # neither notes nor links nor settings count
    (repository / "runs").symlink_to(tmp_path)
    assert uncommitted() == ""
    assert sweep(*choice)[0] == 0
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout
    assert (tmp_path / "calls").read_text() == f"commit {head}"
    (repository / "ham" / "code.py").write_text("2\n")
    status, out, err = sweep(*choice)
    cure = "runs of uncommitted code cannot become records: commit first, or give --allow-dirty"
    assert (status, out, err) == (2, "", f"sweep.py: {cure}\n")
    status, out, err = sweep(*choice, "--demo=digits")
    assert status == 0 and "cannot become records" in err and err.count("\n") == 1
    assert sweep(*choice, "--allow-dirty")[::2] == (0, "")
    assert (tmp_path / "calls").read_text() == f"commit {head}" + "commit none\n" * 2
    (repository / "ham" / "code.py").write_text("1\n")
    (repository / "ham" / "new.py").touch()
    assert uncommitted()


def test_without_git_and_commit_nothing_is_launched_at_the_papers_scale(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HAM_COMMIT")
    status, out, err = sweep("--table=4", "--local")
    assert (status, out) == (2, "") and "set HAM_COMMIT to it, or give --allow-dirty" in err


def test_a_silent_squeue_stops_a_submission_but_no_overview(sweep: Sweep, no_slurm: Path) -> None:
    stand_in(no_slurm, "squeue", "echo 'squeue: error: no controller' >&2; exit 1")
    assert sweep("--table=4", "--submit") == (2, "", "sweep.py: squeue failed: error: no controller\n")
    status, out, err = sweep("--table=4", "--status")
    assert status == 0 and "117 not launched" in out and "are unknown" in err


def test_nothing_to_submit_is_no_error(sweep: Sweep, sweeps: Sweeps, no_slurm: Path) -> None:
    stand_in(no_slurm, "squeue", "")
    finish(RunSpec("dense", 0), sweeps)
    assert sweep("--exp=dense", "--seeds=0", "--submit") == (0, "nothing to submit: 1 done\n", "")


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
    sweep: Sweep, no_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "scontrol", "echo 'MaxArraySize            = 3'")
    calls.touch()
    answer = 'echo "$((100 + ${#c[@]}));one"'
    stand_in(no_slurm, "sbatch", f'mapfile -t c <{calls}; echo "$HAM_ROOT $*" >>{calls}; {answer}')
    monkeypatch.setenv("HAM_ARRAY_THROTTLE", "5")
    choice = ("--table=10", "--seeds", "0", "1", "--only", "mask_acdc", "--submit", "--", "--qos=long")
    status, out, _ = sweep(*choice)
    commands = calls.read_text().splitlines()
    assert status == 0 and len(commands) == 4  # 2 sources, then 6 dependents, at most 2 tasks per array
    assert all(line.startswith(f"{ROOT} --parsable --job-name=ham-") for line in commands)
    assert all("--array=1-2%5 " in line and "--gpus-per-node=a100:4" in line for line in commands)
    assert all(
        line.partition(" --qos=long ")[2].startswith(f"{ROOT}/slurm/array.sbatch ") for line in commands
    )
    assert "--dependency" not in commands[0]
    assert all(" --dependency=afterany:100_1:100_2 " in line for line in commands[1:])
    assert "array 101: 2 runs, imagenet_rn50, after 2 runs whose masks they take" in out


def test_a_refusal_of_sbatch_is_one_line(sweep: Sweep, no_slurm: Path) -> None:
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    stand_in(no_slurm, "sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    status, out, err = sweep("--table=4", "--submit")
    assert (status, out, err) == (2, "", "sweep.py: sbatch failed: error: Invalid account\n")


@pytest.mark.parametrize(
    ("output", "message", "left"),
    [
        ("unrecognized option '--foo=nope'\\nTry 'sbatch --help'", "unrecognized option '--foo=nope'", 0),
        ("lua: hello\\nsbatch: error: no memory\\nsbatch: error: Batch job", "error: no memory", 0),
        ("error: Socket timed out on send/recv operation", "error: Socket timed out", 1),  # it may be there
    ],
)
def test_a_refused_manifest_is_removed(
    sweep: Sweep, no_slurm: Path, sweeps: Sweeps, output: str, message: str, left: int
) -> None:
    stand_in(no_slurm, "squeue", "")
    stand_in(no_slurm, "scontrol", "echo MaxArraySize = 1001")
    stand_in(no_slurm, "sbatch", f'echo -e "sbatch: {output}" >&2; exit 1')
    status, out, err = sweep("--table=4", "--submit", "--seeds=0", "--only=acdc_s90")
    assert (status, out) == (2, "") and err.startswith(f"sweep.py: sbatch failed: {message}")
    assert err.count("\n") == 1 and "sbatch --help" not in err
    assert len(list(sweeps.folder.glob("manifest-*"))) == left
    earlier = sweeps.write([RunSpec("acdc_s90", 0)])
    assert sweep("--table=4", "--submit", "--seeds=0", "--only=acdc_s90")[0] == 2
    assert earlier.exists()


def test_limits_are_numbers(sweep: Sweep, no_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(no_slurm, "squeue", "")
    monkeypatch.setenv("HAM_MAX_RESTARTS", "x")
    status, _, err = sweep("--table=4", "--submit")
    assert status == 2
    assert err == (
        "sweep.py: HAM_MAX_RESTARTS=x is not a number: set it in slurm/site.sh or the environment\n"
    )


def test_the_environment_wins_over_site_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.site_environment()["HAM_MAX_RESTARTS"] == "20"
    monkeypatch.setenv("HAM_MAX_RESTARTS", "3")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    site = environment.site_environment()
    assert (site["HAM_MAX_RESTARTS"], site["SBATCH_ACCOUNT"]) == ("3", "mine")


@pytest.mark.parametrize(
    ("config", "tasks"),
    [("MaxArraySize = 1001", 1000), ("MaxArraySize=2", 1), ("MaxArraySize = 1", 1), ("nothing", 1000)],
)
def test_an_array_has_a_task_less_than_slurm_counts(no_slurm: Path, config: str, tasks: int) -> None:
    """MaxArraySize is one above the largest index, and the first index here is 1."""
    stand_in(no_slurm, "scontrol", f"echo '{config}'")
    assert slurm.largest_array({"PATH": str(no_slurm)}) == tasks


def test_only_lines_of_its_manifest_are_tasks_of_a_job(sweeps: Sweeps, no_slurm: Path) -> None:
    runs = [SOURCE, DEPENDENT]
    name = sweeps.write(runs).stem.removeprefix("manifest-")
    tasks = (("0", "RUNNING|None"), ("2", "PENDING|None"), ("3", "RUNNING|None"), ("N/A", "RUNNING|None"))
    lines = [f"ham-{name}|7|{task}|{state}" for task, state in tasks]
    lines.append(f"ham-{name}|8|1|COMPLETING|a|b")
    stand_in(no_slurm, "squeue", "\n".join(f"echo '{line}'" for line in lines))
    slurm.read_queue(sweeps)
    assert sweeps.active == {
        sweeps.line(DEPENDENT): RunStatus(Status.QUEUED, "", "7_2"),
        sweeps.line(SOURCE): RunStatus(Status.RUNNING, "", "8_1"),
    }


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("", "squeue failed: exit status 3"),
        ("squeue: first\nsecond", "squeue failed: first"),
        ("hint: see squeue --help\nsecond", "squeue failed: second"),
        ("hint: see squeue --help", "squeue failed: hint: see squeue --help"),
    ],
)
def test_a_failed_command_shows_its_clearest_line(no_slurm: Path, printed: str, message: str) -> None:
    stand_in(no_slurm, "squeue", f"printf '{printed}' >&2; exit 3")
    with pytest.raises(slurm.SlurmCommandError) as caught:
        slurm.run_slurm("squeue", environment={"PATH": str(no_slurm)})
    assert str(caught.value) == message


def test_the_last_number_that_sbatch_prints_is_the_job() -> None:
    assert slurm._job_id("7\nSubmitted batch job 8\nbye\n") == "8"
    for output, shown in (("first\nlast words\n", "'last words'"), (" \n", "'nothing'")):
        with pytest.raises(SweepError, match=f"no job id, but {shown}: see squeue"):
            slurm._job_id(output)


def test_a_sweep_that_submits_keeps_others_out(sweeps: Sweeps) -> None:
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with slurm.sweep_lock(sweeps):
        assert sweeps.logs.is_dir() and (sweeps.folder / "lock").exists()
        with (
            pytest.raises(
                SweepError, match=rf"^another sweep is submitting runs of {sweeps.runs} \({me}\): "
            ),
            slurm.sweep_lock(sweeps),
        ):
            pass
    with slurm.sweep_lock(sweeps):
        pass


def test_runs_of_one_level_and_class_share_an_array() -> None:
    dense = [RunSpec("dense", seed) for seed in (0, 1)]
    source, dependent = RunSpec("acdc_s90", 0), RunSpec("mask_acdc_s90", 0)
    cora, late = RunSpec("node/cora_gcn", 0), RunSpec("mask_acdc_s90", 1)
    jobs = {late.depends_on: "5_1"}  # of an earlier call
    arrays = list(slurm._arrays([dense[0], source, cora, dependent, late, dense[1]], jobs))
    assert arrays == [
        (False, "imagenet_rn50", [dense[0], source, dense[1]]),
        (False, "node", [cora]),
        (True, "imagenet_rn50", [late]),
        (False, "imagenet_rn50", [dependent]),
    ]


def test_slurm_and_the_sites_settings_have_minutes_to_answer(
    sweeps: Sweeps, no_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(command: list[str], seconds: float, *_: object) -> None:
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setattr(environment, "run_program", hang)
    monkeypatch.setattr(slurm, "run_program", hang)
    stand_in(no_slurm, "squeue", "")
    with pytest.raises(SweepError, match=r"^slurm/site\.sh does not end within 60 s: correct it$"):
        environment.site_environment()
    with pytest.raises(SweepError, match=r"^squeue does not answer within 120 s: try again later$"):
        slurm.run_slurm("squeue", environment={"PATH": str(no_slurm)})
