"""Locales, closed pipes, odd names, clones of other users: train.py and sweep.py seen from outside."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ham import repository
from ham.agreement import StartError
from ham.distributed import shared
from ham.files import ROOT
from ham.repository import commit, has_changes, unknown_commit
from ham.run.config import ConfigError, demo_changes, load
from ham.run.loop import Interrupted
from ham.run.provenance import is_requeued

SWEEP, TRAIN = str(ROOT / "scripts" / "sweep.py"), str(ROOT / "train.py")
BRIEF = (SWEEP, "--table=4", "--only=acdc_s90", "--seeds=7")
ODD_NAMES = (
    *("a=b", "é", "a b", " a", "%a", "it's", 'a"q"', "$HOME", "[x]", "a,b"),
    *("{a: b}", "日本", "a\\b", "#"),
)
LITERAL = ("1e3", "null", "true", "007", "~", "a\\", "(x)", "a:b", "glob(x)", "-1")


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command of this repository."""
    known = {name: text for name, text in os.environ.items() if not name.startswith("LC_")}
    known |= {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, *argv], env=known, capture_output=True, timeout=120)


# locales

LOCALES = {
    "C": {"LC_ALL": "C"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
    "Latin-1 output": {"PYTHONIOENCODING": "latin-1"},
    "UTF-8": {"LC_ALL": "C.UTF-8"},
}


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_a_name_beyond_ascii_is_printed_or_refused_in_any_locale(
    locale: dict[str, str], tmp_path: Path
) -> None:
    runs = tmp_path / "日é"
    stale = runs / "acdc_s90" / "seed7"
    stale.mkdir(parents=True)
    (stale / "summary.json").write_text('{"config_hash": "0123456789"}')
    assert run(*BRIEF, f"--runs={tmp_path}/runs", **locale).returncode == 0
    done = run(*BRIEF, f"--runs={runs}", "--status", **locale)
    lines = [line for line in done.stderr.splitlines() if b"queued and running runs are unknown" not in line]
    if locale.get("PYTHONUTF8") == "0":
        assert (done.returncode, done.stdout, len(lines)) == (2, b"", 1)
        assert b"has bytes that are not ascii, the encoding of this locale: choose other --runs" in lines[0]
    else:
        assert (done.returncode, lines) == (0, [])
        assert b"1 stale" in done.stdout and b"acdc_s90/seed7 has configuration 01234567" in done.stdout


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_the_list_and_the_help_are_printed_in_any_locale(locale: dict[str, str]) -> None:
    for argv in ((TRAIN, "--list"), (TRAIN, "--help"), (SWEEP, "--help")):
        done = run(*argv, **locale)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout


# readers that leave

PRINTING = {
    "list": (TRAIN, "--list"),
    "help": (TRAIN, "--help"),
    "sweep help": (SWEEP, "--help"),
    "status": (*BRIEF, "--status"),
    "dry run": (SWEEP, "--all"),
}


@pytest.mark.parametrize("argv", PRINTING.values(), ids=PRINTING)
def test_a_reader_that_leaves_ends_a_command_silently(argv: tuple[str, ...], tmp_path: Path) -> None:
    own = (f"--runs={tmp_path}",) if argv[0] == SWEEP else ()
    process = subprocess.Popen(
        [sys.executable, *argv, *own],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() in ((0, 141) if "--help" in argv else (141,))  # argparse ignores errors of print
    assert [line for line in error.splitlines() if b"runs are unknown" not in line] == []


@pytest.mark.parametrize("argv", PRINTING.values(), ids=PRINTING)
def test_a_closed_output_is_no_error(argv: tuple[str, ...], tmp_path: Path) -> None:
    own = (f"--runs={tmp_path}",) if argv[0] == SWEEP else ()
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, *argv, *own]
    done = subprocess.run(command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


# names of folders


@pytest.mark.parametrize("key", ["runs_dir", "data.root"])
@pytest.mark.parametrize("name", [*ODD_NAMES, *LITERAL])
def test_a_path_on_the_command_line_is_taken_literally(key: str, name: str) -> None:
    cfg = load(["+exp=cifar100", f"{key}={name}"])
    assert (cfg.runs_dir if key == "runs_dir" else cfg.data.root) == name


def test_a_path_in_quotes_of_hydra_and_an_interpolation_keep_their_meaning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    given = {"'/x/a=b'": "/x/a=b", '"a,b"': "a,b", "${oc.env:SCRATCH}/runs": "/scratch/runs", "runs": "runs"}
    for text, meant in given.items():
        assert load(["+exp=dense", "+demo=tiny", f"runs_dir={text}"]).runs_dir == meant
    assert demo_changes(["+exp=dense", "+demo=tiny", "runs_dir=a=b,c"])


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\udce9", "\x7f", "a\rb", "a\0b"])
def test_a_name_that_no_configuration_can_hold_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="choose another name") as caught:
        load(["+exp=dense", "+demo=tiny", f"runs_dir={name}"])
    assert str(caught.value).isprintable()


@pytest.mark.slow
def test_a_sweep_trains_though_the_folders_have_odd_names(tmp_path: Path) -> None:
    name = "a=b é, %a [x] 'q' \"q\" $HOME"
    code, runs, temporary = (tmp_path / part / name for part in ("code", "runs", "tmp"))
    temporary.mkdir(parents=True)
    for part in ("ham", "pruning", "configs", "scripts", "slurm"):
        shutil.copytree(ROOT / part, code / part)
    shutil.copy(TRAIN, code)
    argv = (f"{code}/scripts/sweep.py", "--exp=rigl_s80", "--demo=tiny", "--seeds=0", f"--runs={runs}")
    environment = {"PYTHONPATH": str(code), "TMPDIR": str(temporary)}
    done = run(*argv, "--local", f"--pack={tmp_path}/out.tar.gz", **environment)
    assert done.returncode == 0, done.stderr
    assert (runs / "rigl_s80-tiny" / "seed0" / "summary.json").exists()
    assert b"1 cells x 1 seed: 1 done" in run(*argv, "--status", **environment).stdout
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        config = archive.extractfile("rigl_s80-tiny/seed0/config.yaml").read().decode()
    assert yaml.safe_load(config)["runs_dir"] == "" and "HOME" not in config


# seeds and selections


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1e99", "nan", "one", "99999999999999999999"])
def test_a_seed_that_no_record_can_have_is_one_line(seed: str) -> None:
    with pytest.raises(ConfigError, match="seed") as caught:
        load(["+exp=dense", "+demo=tiny", f"seed={seed}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "argv",
    [
        ("+exp=glob(nothing*)",),
        ("+exp=glob(nothing*)", "seed=0,1"),
        ("seed=0,1", "+exp=glob(nothing*)", "+demo=tiny"),
        ("+exp=glob([no*,neither*])",),
        ("+exp=glob(*,exclude=*)",),
    ],
)
def test_a_glob_that_matches_nothing_is_one_line(
    command: Callable, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])  # Hydra reads it
    outcome = command("-m", *argv, f"runs_dir={tmp_path}")
    assert outcome.status == 2
    (glob,) = (text for text in argv if "glob" in text)
    expected = f"train.py: {glob!r} selects no run: it has no value; see python train.py --list\n"
    assert outcome.err == expected


# git


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a commit in the place of this repository, and a home without settings of git."""
    folder = tmp_path / "a clone"
    (folder / "ham").mkdir(parents=True)
    (folder / "ham" / "code.py").write_text("1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("HAM_COMMIT", raising=False)
    monkeypatch.setattr(repository, "ROOT", folder)
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "a")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_the_cure_for_a_clone_of_another_user_works(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = commit()
    assert known and unknown_commit() == ""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    reason = unknown_commit()
    assert commit() is None and reason.startswith(f"git rejects {clone}, which another user owns; ")
    cure = reason.partition("records: ")[2].partition(", or ")[0]
    assert cure.startswith("git config --global --add safe.directory ")
    subprocess.run(shlex.split(cure), check=True)
    assert (commit(), unknown_commit()) == (known, "")


@pytest.mark.parametrize("given", ["main", "C0FFEE0", "c0ffee", "c0ffee0 ", "é"])
def test_a_commit_that_is_none_is_named(clone: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("HAM_COMMIT", given)
    assert commit() is None and f"HAM_COMMIT={given!a} is not a hash" in unknown_commit()
    monkeypatch.setenv("HAM_COMMIT", "c0ffee0")
    assert (commit(), unknown_commit()) == ("c0ffee0", "")


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"])
def test_the_variables_of_another_repository_change_nothing(
    clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    subprocess.run(["git", "config", "--global", "status.showUntrackedFiles", "no"], check=True)
    known = commit()
    monkeypatch.setenv(name, str(tmp_path / "nothing"))
    assert (commit(), has_changes()) == (known, False)
    (clone / "ham" / "new.py").touch()
    assert has_changes() is True


def test_a_run_warns_at_its_start_that_it_cannot_become_a_record(
    command: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (tmp_path / "file").touch()
    first, *others = command("+exp=dense", "+demo=tiny", f"runs_dir={tmp_path}/file/runs").err.splitlines()
    assert first.startswith(f"train.py: git rejects {ROOT}, which another user owns; runs of an unknown")
    assert len(others) == 1 and "cannot write runs" in others[0]


# a requeued job


@pytest.mark.parametrize(
    ("restarts", "age", "restarted"),
    [
        ("0", 0, False),
        ("1", 0, True),
        ("3", 0, True),
        ("1", 10**6, False),
        ("1", None, False),
        (None, 0, False),
    ],
)
@pytest.mark.parametrize("part", ["", "trial0"])
def test_a_rank_that_torchrun_starts_again_knows_its_own_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    restarts: str | None,
    age: int | None,
    restarted: bool,
    part: str,
) -> None:
    """The process above this one stands for torchrun; a file from before it is of another run."""
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    if restarts is not None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    if age is not None:
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "provenance.json").write_text("{}")
        os.utime(tmp_path / part / "provenance.json", (time.time() - age,) * 2)
    assert is_requeued(tmp_path) is restarted


@pytest.mark.parametrize(
    ("started_by", "environment", "requeued"),
    [
        ("7", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, True),
        ("7", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "20"}, True),
        ("7", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}, False),
        ("7", {"SLURM_JOB_ID": "7"}, False),
        ("6", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, False),
        (None, {"SLURM_RESTART_COUNT": "1"}, False),
    ],
)
@pytest.mark.parametrize("part", ["", "trial0"])
def test_a_requeued_job_knows_its_own_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started_by: str | None,
    environment: dict[str, str],
    requeued: bool,
    part: str,
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not is_requeued(tmp_path)
    (tmp_path / part).mkdir(exist_ok=True)
    (tmp_path / part / "provenance.json").write_text(json.dumps({"slurm_job": started_by}))
    assert is_requeued(tmp_path) is requeued


# ranks other than 0

PORT = "start all ranks with torchrun or srun"
RESUME = "start the same command again to resume"
ALONE = [  # variables, or the error of this rank; its line and its exit status
    ({}, f"MASTER_PORT is missing: {PORT}", 2),
    ({"MASTER_PORT": "99999"}, f"MASTER_PORT=99999 is not a port: {PORT}", 2),
    ({"MASTER_PORT": "no", "SLURM_STEP_ID": "1"}, f"MASTER_PORT=no is not a port: {PORT}", 2),
    (KeyboardInterrupt(), f"interrupted; {RESUME} from the last checkpoint", 130),
    (BrokenPipeError(), f"the program that reads its output has ended; {RESUME}", 141),
    (OSError(28, "No space", "/a"), f"[Errno 28] No space: '/a'; fix that and {RESUME}", 1),
    (StartError("refused"), "refused", 2),
    (ConfigError("no GPU"), "no GPU", 2),
    (shared(StartError("differs")), "", 2),
    (shared(ConfigError("no file")), "", 2),
    (shared(OSError(28, "No space", "/a")), "", 1),
    (Interrupted("stopped by SIGTERM"), "", 85),
]


@pytest.mark.parametrize(("fault", "line", "status"), ALONE, ids=lambda value: repr(value)[:40])
def test_a_fault_that_one_rank_sees_is_printed_by_it(
    fault: dict[str, str] | BaseException,
    line: str,
    status: int,
    train: Any,
    command: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MASTER_PORT", "MASTER_ADDR", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    variables = fault if isinstance(fault, dict) else {}
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)

    def fail(overrides: list[str]) -> None:
        raise fault

    if not isinstance(fault, dict):
        monkeypatch.setattr(train, "_run", fail)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    outcome = command("+exp=dense", "+demo=tiny")
    expected = f"train.py: {line}\n" if line else ""
    assert (outcome.status, outcome.out, outcome.err) == (status, "", expected)
