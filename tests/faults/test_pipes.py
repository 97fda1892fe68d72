"""A pipe, a device or a folder in place of a file: one line and the right status, at once."""

from __future__ import annotations

import ast
import html
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import script
from sweep_files import finish

from ham import regular_files
from ham.command_line import run_command_line
from ham.data import DataError, cifar_files, commonsense_files, molecules
from ham.data.checksums import file_sha256
from ham.data.imagenet_source import Source
from ham.data.images import read_rgb
from ham.data.ogbg import cache
from ham.errors import explain
from ham.files import atomic_write_text
from ham.locks import lock_file
from ham.models.pretrained import ModelError, locate
from ham.report.spec import RunSpec
from ham.run import checkpoint, trainer_checkpoints
from ham.run.checkpoint import CheckpointError
from ham.run.config import ConfigError, from_yaml
from ham.run.directory import RunDirectory, read_summary
from ham.run.logger import RunLogger
from ham.sweep import commands, status
from ham.sweep.local import LocalSweep
from ham.sweep.manifests import RunsFolder
from ham.sweep.schedule import Ending, Outcome
from ham.sweep.status import Sweeps
from ham.tasks.commonsense_answers import resume_answers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    """End a test that waits at a pipe."""

    def end(*_: object) -> None:
        raise AssertionError("it waits for the writer of a pipe")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{folder}/{path.name}")  # the name of a socket is short
    os.close(folder)


KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to a pipe": lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
    "a socket": put_socket,
    "a folder": Path.mkdir,
}
OPENED: dict[str, Callable[[Path], Any]] = {
    "read_bytes": regular_files.read_bytes,
    "read_text": regular_files.read_text,
    "open_binary": regular_files.open_binary,
    "open_text": regular_files.open_text,
    "append bytes": lambda path: regular_files.open_binary(path, "ab"),
    "append text": lambda path: regular_files.open_text(path, "a"),
    "write": lambda path: regular_files.open_binary(path, "wb"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "odd")
    descriptors = len(os.listdir("/proc/self/fd"))
    for name, read in OPENED.items():
        with pytest.raises(OSError) as caught:
            read(tmp_path / "odd")
        reason = "Is a directory" if kind == "a folder" else "not a regular file"
        assert (caught.value.strerror, caught.value.filename) == (reason, str(tmp_path / "odd")), name
        assert isinstance(caught.value, IsADirectoryError) == (kind == "a folder")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_files_and_links_to_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("\ufeffä\r\nb".encode())
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "file", str(tmp_path / "link")):
        assert regular_files.read_bytes(path) == "\ufeffä\r\nb".encode()
        assert regular_files.read_text(path) == "\ufeffä\nb"
        assert regular_files.read_text(path, encoding="utf-8-sig") == "ä\nb"
    with regular_files.open_text(tmp_path / "link", "a") as file:
        assert not os.get_inheritable(file.fileno())
        file.write("c")
    with regular_files.open_binary(tmp_path / "new", "ab") as file:
        file.write(b"d")
    assert (tmp_path / "file").read_bytes().endswith(b"bc") and (tmp_path / "new").read_bytes() == b"d"
    with pytest.raises(FileNotFoundError):
        regular_files.read_bytes(tmp_path / "none")


@pytest.mark.parametrize("kind", ["a file", "a pipe"])
def test_a_file_that_a_server_must_first_get_back_is_waited_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as another process holds a lease on it, O_NONBLOCK gives EWOULDBLOCK (fcntl(2))."""
    path, real = tmp_path / "file", os.open
    path.write_bytes(b"content") if kind == "a file" else os.mkfifo(path)

    def leased(name: Any, flags: int, *mode: int) -> int:
        if flags & os.O_NONBLOCK:
            raise BlockingIOError(11, "Resource temporarily unavailable", name)
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", leased)
    if kind == "a file":
        with regular_files.open_binary(path) as file:
            assert os.get_blocking(file.fileno()) and file.read() == b"content"
    else:
        with pytest.raises(regular_files.NotRegularError):
            regular_files.open_binary(path)


def test_a_regular_file_is_read_without_o_nonblock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with regular_files.open_binary(tmp_path / "file") as file:
        assert os.get_blocking(file.fileno())


# the readers of runs and data


def put_checkpoints(path: Path) -> Any:
    (path.parent / "previous.pt").symlink_to(path.name)
    return checkpoint.load(path.parent, lambda line: None)


def put_mark(path: Path) -> Any:
    folder = path.parent / "checkpoint-1"
    folder.mkdir()
    path.rename(folder / "complete.json")
    return trainer_checkpoints.latest(path.parent, lambda line: None)


def resume(path: Path) -> Any:
    directory = RunDirectory(path.parent)
    try:
        directory.write_metadata({"config_hash": "a"}, "")
        directory.append_metrics([{"epoch": 0}])
    finally:
        directory.unlock()


IS_PIPE = "not a regular file"
READERS: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "summary.json": (
        lambda path: read_summary(path.parent),
        ConfigError,
        f"PATH cannot be read ({IS_PIPE}): fix that or move it away",
    ),
    "config.yaml": (
        from_yaml,
        ConfigError,
        f"PATH cannot be read: {IS_PIPE}; restore it, or train the run again with resume=false",
    ),
    "provenance.json": (
        resume,
        CheckpointError,
        f"PATH cannot be read ({IS_PIPE}): fix that, or move it away and start again with resume=false",
    ),
    "metrics.jsonl": (resume, OSError, f"[Errno 22] {IS_PIPE}: 'PATH'"),
    "last.pt": (
        put_checkpoints,
        CheckpointError,
        "no checkpoint in FOLDER can be read (last.pt is not a file; previous.pt is not a file): "
        "move last.pt and previous.pt away",
    ),
    "complete.json": (
        put_mark,
        CheckpointError,
        f"no checkpoint in FOLDER is complete (FOLDER/checkpoint-1/complete.json is {IS_PIPE}): restore "
        "what is damaged or missing, or start again with resume=false",
    ),
    "lock": (lock_file, OSError, "[Errno 22] lock is not a plain file, move it away: 'PATH'"),
    "x.png": (
        lambda path: read_rgb(str(path)),
        DataError,
        f"PATH cannot be read ({IS_PIPE}): replace or remove it",
    ),
    "y.png": (
        lambda path: Source(["a"], [0], [(str(path), 0, None)], [str(path)]).image(0),
        DataError,
        f"PATH cannot be read ({IS_PIPE}): replace or remove it",
    ),
    "train": (
        lambda path: cifar_files._record(path.parent, "train", None),
        ValueError,
        f"PATH cannot be read ({IS_PIPE})",
    ),
    "test.json": (
        commonsense_files.read_records,
        DataError,
        f"PATH cannot be read ({IS_PIPE}): check the file",
    ),
    "hiv.csv": (molecules.read_smiles, OSError, f"[Errno 22] {IS_PIPE}: 'PATH'"),
    "raw": (
        lambda path: cache.cache_key(path.parent, ["raw"], [], "x"),
        DataError,
        f"PATH cannot be read ({IS_PIPE}): check the file",
    ),
    "sums": (file_sha256, OSError, f"[Errno 22] {IS_PIPE}: 'PATH'"),
    "answers.jsonl": (
        lambda path: resume_answers(path, "", print),
        OSError,
        f"[Errno 22] {IS_PIPE}: 'PATH'",
    ),
    "model.safetensors": (
        lambda path: locate(str(path.parent), ""),
        ModelError,
        "PATH is not a regular file: move it away",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_place_of_a_file_is_one_line(name: str, tmp_path: Path) -> None:
    read, kind, line = READERS[name]
    os.mkfifo(tmp_path / name)
    with pytest.raises(kind) as caught:
        read(tmp_path / name)
    assert str(caught.value) == line.replace("PATH", str(tmp_path / name)).replace("FOLDER", str(tmp_path))


def test_a_log_that_is_a_device_does_not_end_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger(tmp_path, SimpleNamespace())
    (tmp_path / "train.log").symlink_to("/dev/full")
    for _ in range(2):
        logger.log("x")
    logger.close()
    line = f"train.log cannot be written ({IS_PIPE}): lines are missing there"
    assert capsys.readouterr().err.splitlines() == [line]


# commands


COMMANDS: dict[str, tuple[str, str, int, str]] = {  # the pipe, the command, its status and line
    "an archive of runs": (
        "runs.tar.gz",
        "collect runs.tar.gz --results new",
        2,
        f"runs.tar.gz is {IS_PIPE}: save the archive to a file first",
    ),
    "a summary, to collect": (
        "runs/cifar100/seed0/summary.json",
        "collect runs --results new",
        1,
        "left out runs/cifar100/seed0: summary.json is not a regular file: remove it",
    ),
    "a record": (
        "results/runs/dense/seed0.json",
        "tables --table 6 --results results --to new",
        1,
        "left out results/runs/dense/seed0.json: seed0.json is not a regular file: remove it",
    ),
    "data of the theory": (
        "results/theory/figure01.json",
        "figures --theory --figure 1 --results results --to new",
        1,
        "left out results/theory/figure01.json: figure01.json is not a regular file: remove it",
    ),
    "a page of a table": (
        "results/tables/x.md",
        "index --results results",
        2,
        f"results/tables/x.md cannot be read or written ({IS_PIPE}): move it away",
    ),
    "a configuration, to export": (
        "run/config.yaml",
        "export run --to new",
        2,
        f"run/config.yaml cannot be read: {IS_PIPE}; restore it, or train the run again with resume=false",
    ),
    "a page of a sweep": (
        "sweep.html",
        "sweep --exp cifar100 --seeds 0 --runs runs --status --html sweep.html",
        2,
        "--html sweep.html exists and is not a regular file: give another name",
    ),
    "an FFCV file": (
        "to/val_500_0.50_90.beton",
        "write_beton --from tree --to to",
        2,
        "to/val_500_0.50_90.beton is not a regular file: move it away, or write to another folder",
    ),
    "an archive of images": (
        "images/ILSVRC2012_img_val.tar",
        "write_beton --from images --to to --splits val",
        2,
        "no val images at images: --from must have val/<class>/ or ILSVRC2012_img_val.tar",
    ),
    "an archive of CIFAR-100": (
        "cifar.tar.gz",
        "prepare_data cifar100 --from cifar.tar.gz --to new",
        2,
        "--from cifar.tar.gz is neither a folder nor a regular file; omit it to download CIFAR-100",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_that_meets_a_pipe_ends_at_once(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, argv, expected, line = COMMANDS[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(status, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(commands, "read_queue", RunsFolder.manifests)
    for folder in ("results/runs", "runs", "tree/val"):
        Path(folder).mkdir(parents=True)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(name)
    command, *rest = argv.split()
    assert run_command_line(script(command).main, rest) == expected
    assert capsys.readouterr().err.splitlines() == [f"{command}.py: {line}"]


# the status of a sweep

DONE, ODD = RunSpec("acdc_s90", 0, demo="tiny"), RunSpec("dense", 0, demo="tiny")
FIX = "fix that or move it away"


def put_denied(path: Path) -> None:
    path.write_text("{}")
    DENIED.add(str(path))


DENIED: set[str] = set()
ODD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {  # the file, what it is, the note
    "metrics, a folder": ("RUN/metrics.jsonl", Path.mkdir, f"cannot be read (Is a directory): {FIX}"),
    "metrics, a pipe": ("RUN/metrics.jsonl", os.mkfifo, f"cannot be read ({IS_PIPE}): {FIX}"),
    "metrics, unreadable": ("RUN/metrics.jsonl", put_denied, f"cannot be read (Permission denied): {FIX}"),
    "a summary": ("RUN/summary.json", os.mkfifo, f"cannot be read ({IS_PIPE}): {FIX}"),
    "a summary, unreadable": ("RUN/summary.json", put_denied, f"cannot be read (Permission denied): {FIX}"),
    "provenance": ("RUN/provenance.json", os.mkfifo, f"cannot be read ({IS_PIPE}): {FIX}"),
    "diverged": ("RUN/diverged.json", Path.mkdir, f"cannot be read (Is a directory): {FIX}"),
    "a log": (
        "RUN/train.log",
        lambda path: path.symlink_to("/dev/null"),
        f"cannot be read ({IS_PIPE}): {FIX}",
    ),
    "the log of a local run": (
        "runs/.sweeps/logs/local-dense-tiny-seed0.log",
        Path.mkdir,
        f"cannot be read (Is a directory): {FIX}",
    ),
}


@pytest.fixture
def sweep_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[int, str, list[str]]]:
    """`sweep_status(*argv)`: exit status, stdout, lines of stderr; of DONE, which is done, and ODD."""
    monkeypatch.setattr(status, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(commands, "read_queue", RunsFolder.manifests)
    real = os.open

    def denied(path: Any, *args: Any, **options: Any) -> int:
        if str(path) in DENIED:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    DENIED.clear()
    monkeypatch.setattr(os, "open", denied)
    finish(DONE, Sweeps(tmp_path / "runs"))

    def run(*more: str) -> tuple[int, str, list[str]]:
        argv = [
            "--exp",
            "acdc_s90",
            "dense",
            "--demo",
            "tiny",
            "--seeds",
            "0",
            "--runs",
            tmp_path / "runs",
            *more,
        ]
        ended = run_command_line(script("sweep").main, list(map(str, argv)))
        out, err = capsys.readouterr()
        return ended, out, err.splitlines()

    return run


@pytest.mark.parametrize("case", ODD_FILES)
def test_an_odd_file_is_named_beside_its_run(case: str, tmp_path: Path, sweep_status: Callable) -> None:
    name, put, note = ODD_FILES[case]
    path = tmp_path / name.replace("RUN", "runs/dense-tiny/seed0")
    path.parent.mkdir(parents=True)
    put(path)
    ended, out, errors = sweep_status("--status", "--html", str(tmp_path / "sweep.html"))
    assert (ended, errors) == (1, [])
    assert "1 done, 1 stale" in out and out.splitlines()[-1].endswith(f"stale  {path} {note}")
    assert f"{path} {note}" in html.unescape((tmp_path / "sweep.html").read_text())
    assert sweep_status("--status", "--brief")[0] == 1
    ended, out, errors = sweep_status("--dry-run")
    assert (ended, errors) == (
        0,
        [f"sweep.py: {ODD} is stale: {path} {note}"],
    ) and "nothing is left to launch" in out


def test_an_active_run_with_an_odd_file_is_running(tmp_path: Path, sweep_status: Callable) -> None:
    (tmp_path / "runs" / "dense-tiny" / "seed0" / "metrics.jsonl").mkdir(parents=True)
    with lock_file(tmp_path / "runs" / "dense-tiny" / "seed0" / "lock"):
        ended, out, _ = sweep_status("--status")
    assert ended == 1 and "1 done, 1 running" in out and out.rstrip().endswith(FIX)


def test_a_run_is_done_whatever_its_log_is(tmp_path: Path, sweep_status: Callable) -> None:
    os.mkfifo(DONE.folder(tmp_path / "runs") / "train.log")
    _, out, errors = sweep_status("--status")
    assert errors == [] and "1 done, 1 not launched" in out


MANIFESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, f"cannot be read ({IS_PIPE}): {FIX}"),
    "a folder": (Path.mkdir, f"cannot be read (Is a directory): {FIX}"),
    "unreadable": (put_denied, f"cannot be read (Permission denied): {FIX}"),
    "torn": (
        lambda path: path.write_text("+exp=dense +dem"),
        "was changed after it was written: move it away",
    ),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_an_odd_manifest_is_named(kind: str, tmp_path: Path, sweep_status: Callable) -> None:
    put, problem = MANIFESTS[kind]
    good = Sweeps(tmp_path / "runs").write([ODD])
    path = good.with_name("manifest-0123456789ab.txt")
    put(path)
    line = f"sweep.py: {path} {problem}"
    ended, out, errors = sweep_status("--status")
    assert (ended, errors) == (1, [line]) and "1 done, 1 failed" in out and "ended before it started" in out
    ended, out, errors = sweep_status("--dry-run")
    assert (ended, errors) == (0, [line])
    ended, out, errors = sweep_status("--submit")
    assert (ended, out, errors) == (2, "", [f"{line}; what it has submitted is unknown"])
    path.rename(tmp_path / "away")
    DENIED.clear()
    assert sweep_status("--dry-run")[2] == []


def test_a_log_that_cannot_be_written_fails_its_run_alone(tmp_path: Path, sweep_status: Callable) -> None:
    sweeps = Sweeps(tmp_path / "runs")
    log = sweeps.local_log(ODD)
    log.mkdir(parents=True)
    local = LocalSweep([ODD], sweeps, jobs=1)
    worker = SimpleNamespace(run=pytest.fail, signal=pytest.fail)
    line = f"{log} cannot be read or written (Is a directory): move it away"
    assert local._train(ODD, worker) == Outcome(Ending.FAILED, 2, line)


# options that name a file or a folder

IS_FOLDER = "cannot be written: it is a folder: move it away or give another name"
IS_ODD = f"cannot be written: it is {IS_PIPE}: move it away or give another name"
NOT_READ = "is not a directory that can be read: it is a file: give a folder"
NOT_WRITTEN = "cannot be written: FILE: it is a file: give a folder"
PATHS: dict[str, str] = {  # a command whose FILE, FOLDER, PIPE and RESULTS exist: its line
    "collect FILE --results new": "FILE is not a complete archive of runs (Not a gzipped file (b'x\\n')): "
    "download it again",
    "collect PIPE --results new": f"PIPE is {IS_PIPE}: save the archive to a file first",
    "collect FOLDER --results FILE": f"--results FILE {NOT_WRITTEN}",
    "export FILE": "FILE is not a run directory: config.yaml is missing",
    "export PIPE": "PIPE is not a run directory: config.yaml is missing",
    "export FOLDER --to FILE": f"--to FILE {NOT_WRITTEN}",
    "figures --figure 2a --results FILE": f"--results FILE {NOT_READ}",
    "figures --figure 2a --to FILE": f"--to FILE {NOT_WRITTEN}",
    "figures --theory --figure 1 --to FILE": f"--to FILE {NOT_WRITTEN}",
    "index --results FILE": f"--results FILE {NOT_READ}",
    "node_grid --runs FILE": f"--runs FILE {NOT_READ}",
    "node_grid --records FILE": f"--records FILE {NOT_READ}",
    "node_grid --records PIPE": f"--records PIPE {NOT_READ}",
    "node_grid --runs FOLDER --records FILE": f"--records FILE {NOT_WRITTEN}",
    "node_grid --to FOLDER": f"--to FOLDER {IS_FOLDER}",
    "node_grid --to PIPE": f"--to PIPE {IS_ODD}",
    "node_grid --to DEVICE": f"--to DEVICE {IS_ODD}",
    "node_grid --to FILE/x.md": f"--to FILE {NOT_WRITTEN}",
    "node_report --runs FILE": f"--runs FILE {NOT_READ}",
    "node_report --to FOLDER": f"--to FOLDER {IS_FOLDER}",
    "node_report --to .": f"--to . {IS_FOLDER}",
    "node_report --to PIPE": f"--to PIPE {IS_ODD}",
    "node_report --to FILE/x.md": f"--to FILE {NOT_WRITTEN}",
    "prepare_data cifar100 --from FOLDER --to FILE": f"--to FILE {NOT_WRITTEN}",
    "report --results FILE": f"--results FILE {NOT_READ}",
    "report --to FILE": f"--to FILE {NOT_WRITTEN}",
    "study cifar16 --results FILE": f"--results FILE {NOT_READ}",
    "study cifar16 --results RESULTS --to USED": "USED/tables cannot be read or written (File exists): "
    "move the file away that has the name of a folder",
    "sweep --exp dense --demo tiny --runs FILE": "HERE/FILE is not a folder: choose other --runs",
    "sweep --exp dense --demo tiny --local --pack FOLDER": f"--pack FOLDER {IS_FOLDER}",
    "sweep --exp dense --demo tiny --local --pack PIPE": f"--pack PIPE {IS_ODD}",
    "sweep --exp dense --demo tiny --runs FOLDER --status --html FOLDER": (
        "--html FOLDER exists and is not a regular file: give another name"
    ),
    "tables --table 4 --results FILE": f"--results FILE {NOT_READ}",
    "tables --table 4 --to FILE": f"--to FILE {NOT_WRITTEN}",
    "tables --table 4 --results RESULTS --to USED": (
        "USED/table04.md cannot be read or written (Is a directory): move it away"
    ),
    "theory_runs --figure 3 --to FILE": f"--to FILE {NOT_WRITTEN}",
    "theory_runs --figure 3 --to USED": f"--to USED/figure03.json {IS_FOLDER}",
}


@pytest.mark.parametrize("given", PATHS)
def test_a_file_for_a_folder_and_the_reverse_are_one_line(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "read_queue", RunsFolder.manifests)
    for folder in ("FOLDER", "RESULTS/runs", "USED/table04.md", "USED/figure03.json"):
        Path(folder).mkdir(parents=True)
    Path("FILE").write_text("x\n")
    Path("USED/tables").touch()
    os.mkfifo("PIPE")
    Path("DEVICE").symlink_to("/dev/null")  # a link: a command that fails the test replaces no device
    before = sorted(tmp_path.rglob("*"))
    command, *argv = given.split()
    assert run_command_line(script(command).main, argv) == 2
    line = f"{command}.py: {PATHS[given].replace('HERE', str(tmp_path))}\n"
    assert capsys.readouterr().err == line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_cannot_be_renamed_is_named(tmp_path: Path) -> None:
    """Not the temporary file that was renamed to it."""
    (tmp_path / "page").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        atomic_write_text(tmp_path / "page", "x")
    assert str(caught.value) == f"[Errno 21] Is a directory: '{tmp_path / 'page'}'"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


CURES: dict[str, tuple[Exception, str]] = {
    "no file": (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
    "denied": (
        PermissionError(13, "Permission denied", "x"),
        "x CANNOT (Permission denied): change its permissions",
    ),
    "full": (OSError(28, "No space left on device", "x"), "x CANNOT (No space left on device): free space"),
    "a disk": (
        OSError(5, "Input/output error", "x"),
        "x CANNOT (Input/output error): check its path and its disk",
    ),
    "a pipe": (regular_files.NotRegularError("a\nb"), f"a\\nb CANNOT ({IS_PIPE}): move it away"),
    "a folder": (IsADirectoryError(21, "Is a directory", "x"), "x CANNOT (Is a directory): move it away"),
    "a name": (
        OSError(22, "Invalid argument", "x"),
        "x CANNOT (Invalid argument): check its path and its disk",
    ),
    "another": (ValueError("a\nb"), "a\\nb"),
}


@pytest.mark.parametrize("case", CURES)
def test_an_error_of_a_file_is_explained(case: str) -> None:
    error, line = CURES[case]
    assert explain(error) == line.replace("CANNOT", "cannot be read or written")


# all files are opened in one way

_ELSEWHERE = {  # file -> its calls
    "ham/regular_files.py": 3,
    "ham/files.py": 1,  # a new file of atomic_write
    "ham/locks.py": 1,  # a new file, by its descriptor
    "ham/run/checkpoint.py": 1,  # a new, empty file
}
_BY_PATH = re.compile(
    r"\b(?:(?:gzip|tarfile|Image)\.open|np\.load|ZipFile|torch\.load|OmegaConf\.load|loadmat)"
    r"\((?!fileobj=|file\b|packed\b|archive\b|io\.BytesIO\(|weights_only)"
)


def opened_elsewhere(path: Path) -> list[str]:
    """The calls of `open` and of the methods of Path that read, but not those of a new file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            is_open = isinstance(called, ast.Name) and called.id == "open"
            methods = ("read_text", "read_bytes", "open", "write_text", "touch")
            owner = getattr(called, "value", None)
            is_method = isinstance(called, ast.Attribute) and called.attr in methods
            is_module = isinstance(owner, ast.Name) and owner.id in ("os", "gzip", "tarfile", "Image")
            if is_open or (is_method and not is_module):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_open_and_the_methods_of_path_are_used_only_for_new_files() -> None:
    paths = [path for folder in ("ham", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [place for path in paths for place in opened_elsewhere(path)]
    assert Counter(place.partition(":")[0] for place in found) == _ELSEWHERE, found
    by_path = [path for path in paths if _BY_PATH.search(path.read_text())]
    assert by_path == [], "give a file of open_binary, not a path"
