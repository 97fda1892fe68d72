"""Command lines of train.py that Hydra rejects or ignores: one line with a cure, and exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ONE = ["+exp=dense"]
SWEEP = ["-m", "+exp=dense"]
HELP = "; see python train.py --help"

BOTH = "give one of them, or start both with python train.py -m"
OMIT = "correct or omit"

LINES = [  # command line, the line on stderr without the program's name
    ([*ONE, "+exp=dense_ham"], f"+exp=dense and +exp=dense_ham: {BOTH} +exp=dense,dense_ham"),
    ([*ONE, "+demo=tiny", "+demo=digits"], f"+demo=tiny and +demo=digits: {BOTH} +demo=tiny,digits"),
    ([*ONE, "seed=1", "seed=2"], f"seed=1 and seed=2: {BOTH} seed=1,2"),
    ([*ONE, "ham=none", "ham=none"], "ham=none is given twice: give it once"),
    (["-m", *ONE, "seed=1,3", "seed=2"], f"seed=1 and seed=2: {BOTH} seed=1,2"),
    (["exp=dense"], "write +exp=dense, with a plus"),
    (["exp=dense", "--cfg", "job"], "write +exp=dense, with a plus"),
    (["+exp="], "+exp= names nothing: python train.py --list shows all"),
    ([*ONE, "optimizer="], "optimizer= names nothing: choose one of adam, adamw, adamw_graphs, ..."),
    ([*ONE, "=1"], "'=1' has no key: write key=value"),
    ([*ONE, "ham@other=none"], "'ham@other=none' has a package: write it without @other"),
    (
        ["-m", *ONE, "seed=range(0)"],
        "'seed=range(0)' selects no run: it has no value; see python train.py --list",
    ),
    ([*ONE, "hydra/launcher=nope"], "unknown hydra/launcher 'nope'; nearest: basic"),
    (
        [*SWEEP, "hydra/launcher=nope"],
        f"unknown hydra/launcher 'nope'; nearest: basic; {OMIT} hydra/launcher=nope",
    ),
    (
        [*SWEEP, "hydra.sweeper=x"],
        f"Input config does not have a `_target_` field; {OMIT} hydra.sweeper=x",
    ),
    (
        [*SWEEP, "hydra.sweeper.max_batch_size=0"],
        f"AssertionError; {OMIT} hydra.sweeper.max_batch_size=0",
    ),
    (
        [*SWEEP, "hydra.sweep.dir=FILE/x"],
        f"FILE/x cannot be read or written (Not a directory); {OMIT} hydra.sweep.dir=FILE/x",
    ),
    (
        [*SWEEP, "runs_dir=FILE"],
        "FILE/.multirun cannot be read or written (Not a directory); choose another runs_dir",
    ),
    (
        [*ONE, "hydra.other=1"],
        "unknown key hydra.other: python train.py +exp=NAME --cfg hydra shows Hydra's own keys",
    ),
    (["--cfg", "job", *ONE, "lrr=1"], "unknown key lrr; nearest: optimizer.lr"),
    (
        ["--cfg", "job", *ONE, "-p", "nope"],
        "package 'nope' not found in config: give -p a section of it, such as optimizer",
    ),
    (["--cfg", "job"], "name an experiment, such as +exp=acdc_ham_s90; python train.py --list shows all"),
    (["--cfg"], f"argument -c/--cfg: expected one argument{HELP}"),
    (["--cfg", "job", "-m"], f"argument -m/--multirun: not allowed with argument -c/--cfg{HELP}"),
    (["--info", "config"], "optimizer is not chosen: give optimizer=NAME, or an experiment with +exp=NAME"),
    (["word", "--info"], "'word' is not an override: write key=value, or see python train.py --help"),
    ([*ONE, "--resolve"], "--resolve changes what --cfg prints: add --cfg job, or omit it"),
    ([*ONE, "-p", "ham"], "--package changes what --cfg prints: add --cfg job, or omit it"),
    ([*ONE, "--config-name", "nope"], f"unknown flag --config-name{HELP}"),
    ([*ONE, "--config-path=nope"], f"unknown flag --config-path{HELP}"),
    (["--", "+exp=dens"], "unknown experiment 'dens'; nearest: dense, dense_sam, dense_ham"),
    ([*ONE, "-1"], "'-1' is not an override: write key=value, or see python train.py --help"),
    (["--list", "all"], "--list takes no other argument: omit the rest"),
]


@pytest.fixture(autouse=True)
def what_hydra_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("argv", "line"), LINES, ids=[" ".join(argv) for argv, _ in LINES])
def test_hydra_s_errors_are_one_line(argv: list[str], line: str, command: Callable, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    outcome = command(*(text.replace("FILE", str(file)) for text in argv))
    assert outcome.err == f"train.py: {line.replace('FILE', str(file))}\n"
    assert outcome.status == 2


def test_cfg_prints_a_section_of_the_configuration(command: Callable) -> None:
    outcome = command("--cfg", "job", *ONE, "-p", "ham")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[0] == "# @package ham"


def test_an_error_of_a_job_is_not_taken_for_one_of_hydra(
    command: Callable, train: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(overrides: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(train, "run_command", fail)
    with pytest.raises(ZeroDivisionError):
        command("-m", *ONE)


def test_words_after_two_hyphens_are_one_run(
    command: Callable, train: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(train, "run_command", lambda overrides: seen.append(overrides) or 7)
    assert command("--", *ONE).status == 7 and seen == [ONE]


FOLDERS = [
    "hydra.job.chdir=true",
    "hydra.sweep.dir=elsewhere",
    "hydra.run.dir=elsewhere",
    "hydra.output_subdir=x",
]


@pytest.mark.parametrize("flags", [["-m"], []], ids=["-m", "one"])
def test_hydra_s_folders_do_not_change_where_a_run_reads_and_writes(
    flags: list[str], command: Callable, train: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def run(overrides: list[str]) -> None:
        from ham.run.config import load

        seen.append((Path.cwd(), load(overrides).runs_dir))

    monkeypatch.setattr(train, "_run", run)
    assert command(*flags, *ONE, "runs_dir=runs", *FOLDERS).status == 0
    assert seen == [(tmp_path, "runs")]
    assert Path.cwd() == tmp_path
