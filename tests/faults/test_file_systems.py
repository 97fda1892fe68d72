"""File systems that fail, that are cleaned, and that another process writes to meanwhile."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faults.injector import error, inject
from faults.runs import TINY, copier
from safetensors import SafetensorError

from ham import locks
from ham.files import RESULTS
from ham.locks import Lock, lock_file
from ham.run import calibrate_str, checkpoint
from ham.run.answering import Answering
from ham.run.build import run_directory
from ham.run.checkpoint import CheckpointError
from ham.run.config import ConfigError, config_hash, load
from ham.run.directory import RunDirectory, RunLockedError, explain_os_errors
from ham.run.finetune import _save_adapter
from ham.run.metrics import EpochMetrics


def test_clear_deletes_the_files_of_runs_alone(tmp_path: Path) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    directory = RunDirectory(folder)
    for name in ("last.pt", "summary.json", "metrics.jsonl", "train.log", ".last.pt.tmp", "last.damaged"):
        (folder / name).write_text("of a run")
    for name in ("checkpoints/checkpoint-1", "wandb/run-1", "export", "notes"):
        (folder / name).mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    (folder / "previous.pt").symlink_to(outside / "precious")
    (folder / "answers").symlink_to(outside)
    (folder / "wandb/run-1/link").symlink_to(outside)
    assert directory.clear() == ["export", "notes", "thesis.tex"]
    assert {path.name for path in folder.iterdir()} == {"lock", "lock.owner", "export", "notes", "thesis.tex"}
    assert (outside / "precious").read_text() == "precious"
    directory.unlock()


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "summary.json", "metrics.jsonl", "masks.pt"])
def test_clear_refuses_a_folder_in_the_place_of_a_file(name: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"{name} is a folder.*move it away"):
        directory.clear()
    assert (tmp_path / "config.yaml").exists()
    (tmp_path / name).rename(tmp_path / "away")
    assert directory.clear() == ["away"]
    directory.unlock()


def test_a_calibration_that_starts_again_deletes_its_trials_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "run"
    for name in ("summary.json", "trial0/summary.json", "trial1/last.pt", "trial1/notes", "trial.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (outside / "last.pt").write_text("precious")
    (folder / "trial2").symlink_to(outside)
    directory, held = RunDirectory(folder), RunDirectory(folder / "trial1")
    before = {path for path in folder.rglob("*") if path.name != "lock"}
    with pytest.raises(RunLockedError, match=f"another process is running in {folder}/trial1 "):
        calibrate_str._clear(directory)
    assert {path for path in folder.rglob("*") if path.name != "lock"} == before
    held.unlock()
    calibrate_str._clear(directory)
    directory.unlock()
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"lock", "trial0/lock", "trial1/lock", "trial1/notes", "trial.txt"}
    assert (outside / "last.pt").read_text() == "precious"


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError])
def test_an_error_of_a_connection_is_not_one_of_a_file(kind: type[OSError], tmp_path: Path) -> None:
    with pytest.raises(kind), explain_os_errors(tmp_path):
        raise kind(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/data/answers.jsonl"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/answers.jsonl"),
        IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "/data/adapter"),
        SafetensorError("I/O error: No space left on device (os error 28)\nmore"),
    ],
    ids=repr,
)
def test_an_error_that_nothing_else_explains_is_one_line(problem: Exception, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught, explain_os_errors(tmp_path):
        raise problem
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and (getattr(problem, "filename", None) or str(tmp_path)) in text
    assert caught.value.shared is False, "printed on the rank that has it"


def lost(folder: Path) -> Lock:
    """This process's lock of a run's directory, which another process has taken over since."""
    lock = lock_file(folder / "lock")
    (folder / "lock.owner").write_text(json.dumps({"token": "theirs", "pid": 4242, "host": "node7"}))
    return lock


class Adapted:
    """In the place of a model with an adapter; the directory is lost at once, or while it is saved."""

    def __init__(self, when: str, folder: Path) -> None:
        self.lock = lost(folder) if when == "before" else lock_file(folder / "lock")

    def save_pretrained(self, folder: str, **_: Any) -> None:
        Path(folder).mkdir()
        self.lock.close()
        self.lock = lost(Path(folder).parent)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_adapter_is_not_written_into_the_directory_of_another_process(when: str, tmp_path: Path) -> None:
    theirs = tmp_path / "adapter" / "adapter.safetensors"
    if when == "before":
        theirs.parent.mkdir()
        theirs.touch()
    model = Adapted(when, tmp_path)
    with pytest.raises(CheckpointError, match="taken over by another process"):
        _save_adapter(model, tmp_path / "adapter")
    assert theirs.exists() is (when == "before") and theirs.parent.exists() is (when == "before")
    model.lock.close()


def test_answers_are_not_written_into_the_directory_of_another_process(tmp_path: Path) -> None:
    logger = SimpleNamespace(folder=tmp_path)
    with lost(tmp_path), pytest.raises(CheckpointError, match="taken over by another process"):
        Answering(None, {}, None, logger, [])._create(tmp_path / "answers" / "after")
    assert not (tmp_path / "answers").exists()


@pytest.fixture(scope="module")
def stopped(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """`stopped(folder)`: puts a run there that SIGUSR1 stopped in its second epoch; returns its arguments."""
    runs = tmp_path_factory.mktemp("stopped")
    update_loss = EpochMetrics.update_loss

    def stop(metrics: EpochMetrics, number: int, loss: torch.Tensor) -> None:
        update_loss(metrics, number, loss)
        if number == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochMetrics, "update_loss", stop)
        patch.setattr("ham.run.loop._SHORT_EPOCH", 0.0)
        assert train.main([*TINY, f"runs_dir={runs}"]) == 85

    return copier(runs)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run that a refusal must not change."""
    names = ("train.log", "lock")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in names}


@pytest.mark.parametrize(
    ("purged", "reason"),
    [
        (["*.pt"], "metrics.jsonl says that epoch 1 was reached"),
        (["*.pt", "train.log", "lock"], "metrics.jsonl says that epoch 1 was reached"),
        (["*.pt", "provenance.json"], "metrics.jsonl says that epoch 1 was reached"),
        (["*.pt", "config.yaml"], "metrics.jsonl says that epoch 1 was reached"),
        (["*.pt", "*.jsonl"], ".saved says that a checkpoint was written"),
        (["*.pt", "*.j*", "*.yaml", "train.log"], ".saved says that a checkpoint was written"),
    ],
)
def test_a_purged_run_does_not_start_over_in_silence(
    purged: list[str], reason: str, stopped: Callable, command: Callable, tmp_path: Path
) -> None:
    argv = stopped(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    for pattern in purged:
        for path in folder.glob(pattern):
            path.unlink()
    before = contents(folder)
    outcome = command(*argv)
    assert outcome.status == 2
    (line,) = outcome.complaints
    assert reason in line and "purged" in line and "resume=false" in line
    assert contents(folder) == before
    if purged == ["*.pt"]:
        (folder / "notes").write_text("")
        outcome = command(*argv, "resume=false")
        assert outcome.status == 0 and "notes" in outcome.out and (folder / "notes").exists()


def test_purged_metrics_are_named(stopped: Callable, command: Callable, tmp_path: Path) -> None:
    argv = stopped(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    (folder / "metrics.jsonl").unlink()
    before = contents(folder)
    outcome = command(*argv)
    assert outcome.status == 1
    (line,) = outcome.complaints
    assert "metrics.jsonl is empty or missing (purged?)" in line and "resume=false" in line
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("append_metrics", errno.EROFS),
        ("append_metrics", errno.EDQUOT),
        ("save", errno.ESTALE),
        ("write_summary", errno.EACCES),
        ("write_metadata", errno.EIO),
    ],
)
def test_a_disk_that_fails_is_one_line(
    method: str,
    number: int,
    stopped: Callable,
    command: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = stopped(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    place = checkpoint if method == "save" else RunDirectory
    original = getattr(place, method)

    def fail(*args: Any) -> None:
        with inject(folder, 1, error(number)):
            original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(place, method, fail)
        outcome = command(*argv)
    assert outcome.status == (2 if method == "write_metadata" else 1)
    (line,) = outcome.complaints
    assert os.strerror(number) in line and str(folder) in line
    assert command(*argv).status == 0


def test_a_directory_deleted_in_mid_run_is_one_line(
    stopped: Callable, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = stopped(tmp_path / "runs")
    update_loss = EpochMetrics.update_loss

    def delete(metrics: EpochMetrics, number: int, loss: torch.Tensor) -> None:
        update_loss(metrics, number, loss)
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)

    monkeypatch.setattr(EpochMetrics, "update_loss", delete)
    outcome = command(*argv)
    assert outcome.status == 1
    lines = [line for line in outcome.complaints if "train.log cannot be written" not in line]
    assert len(lines) == 1 and "No such file or directory" in lines[0]


def test_a_run_that_another_process_took_over_ends_in_one_line(
    stopped: Callable, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = stopped(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    before = contents(folder)
    other = {"token": "theirs", "pid": 4242, "host": "node7"}
    update_loss = EpochMetrics.update_loss

    def take_over(metrics: EpochMetrics, number: int, loss: torch.Tensor) -> None:
        update_loss(metrics, number, loss)
        (folder / "lock.owner").write_text(json.dumps(other))

    monkeypatch.setattr(EpochMetrics, "update_loss", take_over)
    outcome = command(*argv)
    assert outcome.status == 1
    (line,) = outcome.complaints
    assert "taken over by another process (process 4242 on node7)" in line
    after = contents(folder)
    assert json.loads(after.pop("lock.owner")) == other
    assert {name: after[name] for name in ("last.pt", "previous.pt", "metrics.jsonl")} == {
        name: before[name] for name in ("last.pt", "previous.pt", "metrics.jsonl")
    }


def _lose_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()


def _replace(folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    folder.mkdir()


LOSSES = {  # -> what the line says, what the run's folder has at the end
    "metrics": (
        _lose_metrics,
        "FOLDER/metrics.jsonl was deleted or changed during the run (0 bytes, not SIZE): restore it, or "
        "start again with resume=false",
    ),
    "directory": (
        _replace,
        "FOLDER was replaced by another folder: this process ends and writes nothing more; put the old one "
        "back and start the same command again to resume, or start again with resume=false",
    ),
}


@pytest.mark.parametrize(("lose", "expected"), LOSSES.values(), ids=LOSSES)
def test_a_run_that_loses_its_files_ends_at_its_next_write(
    lose: Callable[[Path], None],
    expected: str,
    stopped: Callable,
    command: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = stopped(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    size = (folder / "metrics.jsonl").stat().st_size
    before = {name: (folder / name).read_bytes() for name in ("last.pt", "previous.pt")}
    update_loss, steps = EpochMetrics.update_loss, []

    def once(metrics: EpochMetrics, number: int, loss: torch.Tensor) -> None:
        update_loss(metrics, number, loss)
        if not steps:
            lose(folder)
        steps.append(number)

    with monkeypatch.context() as patch:
        patch.setattr(EpochMetrics, "update_loss", once)
        outcome = command(*argv)
    line = expected.replace("FOLDER", str(folder)).replace("SIZE", str(size))
    assert (outcome.status, outcome.complaints) == (1, [f"{Path(sys.argv[0]).name}: {line}"])
    kept = folder if lose is _lose_metrics else folder.with_name("old")
    assert {name: (kept / name).read_bytes() for name in before} == before
    assert not list((tmp_path / "runs").glob("*/*/summary.json"))
    assert lose is _lose_metrics or {path.name for path in folder.iterdir()} <= {"train.log"}
    outcome = command(*argv, "resume=false")  # the cure
    assert outcome.status == 0 and len((folder / "metrics.jsonl").read_text().splitlines()) == 2


SEARCH = ["+exp=str_s90", "+demo=tiny", "sparsifier.calibrate=search"]
HELD = "another process is running in FOLDER (process PID on HOST): wait for it or choose another seed"
REFUSALS = {  # of a search, by what its directory holds -> the line
    "another configuration": "FOLDER holds a run of another configuration (0123abcd, now HASH): choose "
    "another runs_dir, or start again with resume=false",
    "running": HELD,
    "running trial": HELD.replace("FOLDER", "FOLDER/trial1"),
}


def all_files(folder: Path) -> dict[Path, bytes]:
    """Also those of trials; without the empty locks and train.log."""
    names = ("train.log", "lock")
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in names
    }


@pytest.fixture
def searched(tmp_path: Path) -> tuple[list[str], Path, str]:
    """Arguments, folder and hash of a finished search."""
    argv = [*SEARCH, f"runs_dir={tmp_path}"]
    cfg = load(argv)
    hash_ = config_hash(cfg)
    folder = run_directory(cfg, hash_)
    (folder / "trial0").mkdir(parents=True)
    (folder / "trial1").mkdir()
    summary = json.loads((RESULTS / "demo" / "str_s90" / "seed0.json").read_text()) | {"config_hash": hash_}
    summary["sparsity"]["layers"] = {}
    for path in (folder, folder / "trial0"):
        (path / "summary.json").write_text(json.dumps(summary))
        (path / "last.pt").write_bytes(b"weights")
    return argv, folder, hash_


def test_a_finished_search_is_reported(searched: tuple, command: Callable) -> None:
    argv, folder, _ = searched
    before = all_files(folder)
    outcome = command(*argv)
    lines = outcome.out.splitlines()
    assert outcome.status == 0 and "already finished; start again with resume=false" in lines
    assert lines[-1] == f"run          {folder}" and any(line.startswith("sparsity  ") for line in lines)
    assert all_files(folder) == before


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_search_that_is_refused_deletes_nothing(
    kind: str, searched: tuple, command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv, folder, hash_ = searched
    monkeypatch.setattr(locks, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    held = None
    if kind == "another configuration":
        other = json.loads((folder / "summary.json").read_text()) | {"config_hash": "0123abcdef"}
        (folder / "summary.json").write_text(json.dumps(other))
    else:
        held = RunDirectory(folder / "trial1" if kind == "running trial" else folder)
        argv = [*argv, "resume=false"]
    before = all_files(folder)
    outcome = command(*argv)
    expected = REFUSALS[kind].replace("FOLDER", str(folder)).replace("HASH", hash_[:8])
    expected = expected.replace("PID", str(os.getpid())).replace("HOST", socket.gethostname())
    assert (outcome.status, outcome.complaints) == (2, [f"train.py: {expected}"])
    assert all_files(folder) == before
    if held is not None:
        held.unlock()
