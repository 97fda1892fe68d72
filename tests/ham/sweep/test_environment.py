"""The user's environment, banners and programs that hang change nothing of what a sweep sees and submits."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_files import SOURCE, stand_in

from ham import repository
from ham.programs import run_program
from ham.report.spec import RunSpec
from ham.sweep import environment, slurm
from ham.sweep.environment import site_environment
from ham.sweep.manifests import SweepError
from ham.sweep.status import RunStatus, Status, Sweeps
from ham.sweep.worker import Worker

Sweep = Callable[..., tuple[int, str, str]]
ONE_RUN = ("--table=4", "--seeds=0", "--only=acdc_s90", "--submit")


@pytest.fixture
def stand_ins(no_slurm: Path) -> Path:
    """A SLURM that accepts everything; each command appends its environment to a file of its name."""
    for name, answer in (("squeue", ""), ("scontrol", "echo MaxArraySize = 1001"), ("sbatch", "echo 101")):
        stand_in(no_slurm, name, f"env >>{no_slurm}/{name}.env\n{answer}")
    return no_slurm


def seen(stand_ins: Path, name: str) -> dict[str, str]:
    """The environment that a stand-in had."""
    lines = (stand_ins / f"{name}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


# variables that SLURM's commands read

DISPLAYS = ("SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SQUEUE_STATES", "SQUEUE_USERS", "SQUEUE_PARTITION")
DISPLAYS += ("SQUEUE_SORT", "SQUEUE_ARRAY", "SLURM_TIME_FORMAT", "SCONTROL_ALL", "SLURM_BITSTR_LEN")
ENCLOSING = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")
ENCLOSING += ("SLURM_NTASKS", "SLURM_MEM_PER_CPU", "SLURM_STEP_NUM_TASKS", "SRUN_CPUS_PER_TASK")
OPTIONS = ("SBATCH_EXPORT", "SBATCH_WAIT", "SBATCH_ERROR", "SBATCH_NO_REQUEUE", "SBATCH_MEM_PER_CPU")


@pytest.mark.parametrize("name", ["squeue", "scontrol", "sbatch"])
def test_variables_that_change_slurm_do_not_reach_it(
    sweep: Sweep, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in (*DISPLAYS, *ENCLOSING, *OPTIONS):
        monkeypatch.setenv(variable, "1")
    status, out, err = sweep(*ONE_RUN)
    assert status == 0 and "submitted array 101" in out
    assert not {*DISPLAYS, *ENCLOSING, *OPTIONS} & {*seen(stand_ins, name)}
    cure = "unset them, or give options of sbatch after --"
    assert err == f"sweep.py: {', '.join(sorted(OPTIONS))} not used: {cure}\n"


def test_the_settings_of_the_user_reach_slurm(
    sweep: Sweep, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("ACCOUNT", "PARTITION", "QOS", "RESERVATION", "CONSTRAINT", "WCKEY", "CLUSTERS")
    settings = {f"SBATCH_{name}": f"my {name}" for name in names} | {"SLURM_CONF": "/etc/my.conf"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    status, _, err = sweep(*ONE_RUN)
    assert (status, err) == (0, "")
    assert settings.items() <= seen(stand_ins, "sbatch").items()
    for name in ("squeue", "scontrol"):  # they look where sbatch submits
        assert seen(stand_ins, name)["SLURM_CLUSTERS"] == "my CLUSTERS"
        assert seen(stand_ins, name)["SLURM_CONF"] == "/etc/my.conf"


@pytest.mark.parametrize("mode", ["--dry-run", "--status", "--submit"])
def test_the_settings_of_the_site_reach_every_command(
    sweep: Sweep, stand_ins: Path, site: Path, mode: str
) -> None:
    site.write_text("export SLURM_CONF=/site.conf")
    sweep(*ONE_RUN[:-1], mode)
    assert seen(stand_ins, "squeue")["SLURM_CONF"] == "/site.conf"


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_worker_inside_of_a_step_trains_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, "4")
    train = tmp_path / "train.py"
    train.write_text(f"import os\ndef main(argv): return int(os.environ.get({variable!r}, 0))")
    worker = Worker(train, {}, many=False)
    try:
        assert worker.run([], tmp_path / "log") == 0
    finally:
        worker.close()


def test_ctrl_c_does_not_reach_a_worker_whose_nice_value_is_that_of_the_sweep(tmp_path: Path) -> None:
    """Linux compares nice values only within a session, and a terminal signals a process group."""
    train, log = tmp_path / "train.py", tmp_path / "log"
    train.write_text("import os\ndef main(argv): print(os.getsid(0), os.getpgid(0) == os.getpid()); return 0")
    worker = Worker(train, {}, many=False)
    try:
        assert worker.run([], log) == 0
    finally:
        worker.close()
    assert log.read_text() == f"{os.getsid(0)} True\n"


@pytest.mark.parametrize("warn", [False, True])
def test_options_of_sbatch_are_named_where_that_is_asked(
    warn: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "SBATCH_WAIT": "1",
        "SBATCH_ACCOUNT": "me",
        "SLURM_JOB_ID": "7",
        "SBATCH_CLUSTERS": "one",
        "A": "",
    }
    kept = {"SBATCH_ACCOUNT": "me", "SBATCH_CLUSTERS": "one", "SLURM_CLUSTERS": "one", "A": ""}
    assert environment.without_slurm_variables(given, warn) == kept
    text = "sweep.py: SBATCH_WAIT not used: unset them, or give options of sbatch after --\n"
    assert capsys.readouterr() == ("", text if warn else "")
    assert environment.without_slurm_variables(given) == kept and not capsys.readouterr().err


@pytest.mark.parametrize("value", ["01", "-1", "1.0", " 1", "1\n", "x"])
@pytest.mark.parametrize("name", ["HAM_ARRAY_THROTTLE", "HAM_MAX_RESTARTS", "HAM_TERM_WAIT"])
def test_limits_of_jobs_are_whole_numbers(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    known = {name: value}
    monkeypatch.setattr(environment, "site_environment", lambda warn: dict(known))
    with pytest.raises(SweepError, match=f"^{name}={value} is not a number: set it in slurm/site.sh or"):
        environment.job_environment()
    known.update({name: "10", "HAM_COMMIT": "of before"})
    monkeypatch.setattr(environment, "git", lambda *_: "abc")
    for changes, expected in ((False, {"HAM_COMMIT": "abc"}), (True, {}), (None, {})):
        monkeypatch.setattr(environment, "has_changes", lambda changes=changes: changes)
        assert environment.job_environment() == {name: "10"} | expected


def test_jobs_keep_the_given_commit_where_git_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> str:
        raise repository.GitError("no git")

    monkeypatch.setattr(environment, "site_environment", lambda warn: {"HAM_COMMIT": "c0ffee0"})
    monkeypatch.setattr(environment, "git", fail)
    assert environment.job_environment() == {"HAM_COMMIT": "c0ffee0"}


# what commands print


@pytest.mark.parametrize(
    "output",
    [
        "Welcome to the cluster\\n101",
        "101;one\\nHave a nice day",
        "\\n  101  \\n\\n",
        "Submitted batch job 101",
        "Your project has 12 hours left\\n101;one",
        "caf\\xe9\\r\\n101\\r",
    ],
)
def test_the_job_is_found_in_what_a_wrapper_of_sbatch_prints(
    sweep: Sweep, stand_ins: Path, output: str
) -> None:
    stand_in(stand_ins, "sbatch", f"printf '{output}'")
    status, out, err = sweep(*ONE_RUN)
    assert (status, err) == (0, "") and "submitted array 101: 1 run" in out


@pytest.mark.parametrize("output", ["", "sent", "12 jobs are queued", "job: 7", "-1"])
def test_a_submission_without_a_job_is_one_line_and_counts_as_launched(
    sweep: Sweep, stand_ins: Path, sweeps: Sweeps, output: str
) -> None:
    stand_in(stand_ins, "sbatch", f"echo '{output}'")
    status, out, err = sweep(*ONE_RUN)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("sweep.py: sbatch printed no job id, but ") and "see squeue" in err
    assert len(list(sweeps.folder.glob("manifest-*"))) == 1


@pytest.mark.parametrize(
    "other",
    [
        "Welcome",
        "caf\\xe9|9|1|RUNNING|None",
        "a|b|c",
        "\\xff\\xfe",
        "CLUSTER: one",
        "ham-|||",
        "|77|1|RUNNING",
    ],
)
def test_lines_of_others_in_the_queue_change_nothing(sweeps: Sweeps, no_slurm: Path, other: str) -> None:
    name = sweeps.write([SOURCE]).stem.removeprefix("manifest-")
    stand_in(no_slurm, "squeue", f"printf '{other}\\nham-{name}|7|1|RUNNING|None\\n{other}\\n'")
    slurm.read_queue(sweeps)
    assert sweeps.active == {sweeps.line(SOURCE): RunStatus(Status.RUNNING, "", "7_1")}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty slurm/site.sh in the place of the real one, for environments only."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setattr(environment, "SLURM", folder)
    (folder / "site.sh").touch()
    return folder / "site.sh"


@pytest.mark.parametrize(
    "banner",
    [
        "echo Welcome",
        "printf 'no end of line'",
        "echo caf$'\\xe9' >&2",
        "printf 'A=1\\nFIRST=wrong\\n'",
        "env() { echo no; }",
        "export NOISE=$'caf\\xe9\\n=x'",
    ],
)
@pytest.mark.parametrize("place", ["site.sh", "BASH_ENV"])
def test_a_banner_is_no_part_of_the_environment(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, banner: str, place: str
) -> None:
    startup = tmp_path / "startup.sh"
    startup.write_text("")
    monkeypatch.setenv("BASH_ENV", str(startup))
    monkeypatch.setenv("FIRST", "right")
    (site if place == "site.sh" else startup).write_text(f"{banner}\n")
    with site.open("a") as file:
        file.write("export LAST=right\n")
    known = site_environment()
    assert (known["FIRST"], known["LAST"]) == ("right", "right")
    expected = {*os.environ, "LAST", "HAM_ROOT", "NOISE", "_", "SHLVL", "PWD", "OLDPWD"}
    assert {*known} <= expected and "PATH" in known


def test_bytes_of_any_encoding_reach_the_jobs(
    sweep: Sweep, stand_ins: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [b"caf\xe9", b"\xff", "日本".encode(), b"a\nB=1", b""]
    for number, value in enumerate(values):
        monkeypatch.setitem(os.environb, b"MY_%d" % number, value)
    known = site_environment()
    assert [os.fsencode(known[f"MY_{number}"]) for number in range(len(values))] == values
    assert sweep(*ONE_RUN)[0] == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("exit 0", "it exits with 0"),
        ("exit 3", "it exits with 3"),
        ("echo 'module: not found' >&2; return 1", "module: not found"),
        ("set -u; echo $NOTHING", "NOTHING: unbound variable"),
        ("echo 'no such account'; return 1", "no such account"),
        ("echo first >&2; echo second >&2; echo third >&2; return 1", "fails: third: correct it"),
        ("if", "syntax error"),
        ("printf 'caf\\xe9\\n' >&2; false", "caf"),
    ],
)
def test_settings_that_fail_are_one_line(
    sweep: Sweep, stand_ins: Path, site: Path, content: str, reason: str
) -> None:
    site.write_text(content)
    status, out, err = sweep(*ONE_RUN)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("sweep.py: slurm/site.sh fails: ") and reason in err


# programs that hang

HANGING = {  # the process itself, one that it waits for, and one that ignores signals
    "itself": "exec /bin/sleep 60",
    "a child": "/bin/sleep 60",
    "a job": "/bin/sleep 60 & wait",
    "a pipeline": "/bin/sleep 60 | /bin/cat",
    "deaf": "trap '' TERM INT HUP; /bin/sleep 60; /bin/sleep 60",
}


@pytest.mark.parametrize("script", HANGING.values(), ids=HANGING)
@pytest.mark.parametrize("name", ["squeue", "scontrol", "sbatch"])
def test_a_command_of_slurm_that_hangs_is_one_line(
    sweep: Sweep, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str
) -> None:
    monkeypatch.setattr(slurm, "_SECONDS", 0.3)
    stand_in(stand_ins, name, script)
    start = time.monotonic()
    assert sweep(*ONE_RUN) == (
        2,
        "",
        f"sweep.py: {name} does not answer within 0.3 s: try again later\n",
    )
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("script", HANGING.values(), ids=HANGING)
def test_settings_and_git_that_hang_are_one_line(
    sweep: Sweep, stand_ins: Path, site: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(environment, "_SECONDS", 0.3)
    site.write_text(script.replace("exec ", ""))
    cure = "slurm/site.sh does not end within 0.3 s: correct it"
    assert sweep(*ONE_RUN) == (2, "", f"sweep.py: {cure}\n")
    site.write_text("")
    monkeypatch.setattr(environment, "_SECONDS", 60)
    monkeypatch.setattr(repository, "_SECONDS", 0.3)
    monkeypatch.delenv("HAM_COMMIT")
    stand_in(stand_ins, "git", script)
    status, out, err = sweep(*ONE_RUN)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("sweep.py: git does not answer within 0.3 s; runs of an unknown commit cannot")


def test_a_status_of_git_that_hangs_does_not_count_as_clean(
    sweep: Sweep, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_SECONDS", 0.5)
    monkeypatch.delenv("HAM_COMMIT")
    stand_in(stand_ins, "git", '[ "$1" = status ] && /bin/sleep 60; echo c0ffee0')
    status, _, err = sweep(*ONE_RUN)
    assert status == 2 and err.startswith("sweep.py: git cannot tell whether the code has changes: ")
    assert sweep(*ONE_RUN, "--allow-dirty")[0] == 0
    assert "HAM_COMMIT" not in seen(stand_ins, "sbatch")


@pytest.mark.parametrize("left", ["/bin/sleep 60 &", "(/bin/sleep 60 &)", "/usr/bin/setsid /bin/sleep 60 &"])
def test_a_process_that_a_command_leaves_behind_is_not_waited_for(
    sweep: Sweep, stand_ins: Path, left: str
) -> None:
    stand_in(stand_ins, "sbatch", f"{left}\necho 101")
    start = time.monotonic()
    status, out, _ = sweep(*ONE_RUN)
    assert status == 0 and "submitted array 101" in out
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("script", HANGING.values(), ids=HANGING)
def test_what_a_hanging_command_started_is_ended(tmp_path: Path, script: str) -> None:
    stand_in(tmp_path, "program", script)
    with pytest.raises(subprocess.TimeoutExpired):
        run_program([str(tmp_path / "program")], 0.3, {"MARK": str(tmp_path)})
    deadline = time.monotonic() + 10
    while marked(str(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def marked(text: str) -> list[str]:
    """Processes with this text in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK={text}".encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


# sources and names


def test_dependents_wait_for_sources_that_an_earlier_call_submitted(
    sweep: Sweep, sweeps: Sweeps, stand_ins: Path
) -> None:
    name = sweeps.write([RunSpec("acdc_s90", 0)]).stem.removeprefix("manifest-")
    stand_in(stand_ins, "squeue", f"echo 'ham-{name}|77|1|PENDING|Priority'")
    stand_in(stand_ins, "sbatch", f'echo "$*" >>{stand_ins}/calls; echo 101')
    status, out, err = sweep("--table=10", "--seeds", "0", "--only", "mask_acdc", "--submit")
    assert (status, err) == (0, "") and "after 1 run whose masks they take" in out
    calls = (stand_ins / "calls").read_text().splitlines()
    assert calls and all(" --dependency=afterany:77_1 " in call for call in calls), calls


ODD_NAMES = (
    *("a=b", "é", "a b", " a", "%a", "100%%", "it's", '"q"', "$HOME", "[x]", "a,b"),
    *("{a: b}", "日本", "~"),
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_of_any_other_name_is_submitted(stand_ins: Path, tmp_path: Path, name: str) -> None:
    sweeps = Sweeps(tmp_path / name / "runs")
    stand_in(stand_ins, "sbatch", f'printf "%s\\n" "$@" >>{stand_ins}/calls; echo 101')
    (line,) = slurm.submit([SOURCE], {SOURCE: RunStatus(Status.NOT_LAUNCHED)}, sweeps, [])
    assert line == "submitted array 101: 1 run, demo"
    calls = (stand_ins / "calls").read_text().splitlines()
    (output,) = (call.partition("=")[2] for call in calls if call.startswith("--output="))
    (manifest,) = sweeps.folder.glob("manifest-*")
    expected = sweeps.log(manifest.stem.removeprefix("manifest-"), "%a")
    assert output.replace("%a.log", "\0").replace("%%", "%").replace("\0", "%a.log") == str(expected)
    assert calls[-1] == str(manifest)
    assert list(sweeps.launched) == [sweeps.line(SOURCE)]
    with pytest.raises(SweepError, match="choose other --runs"):
        Sweeps(tmp_path / f"{name}\\x")
