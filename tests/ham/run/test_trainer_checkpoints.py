"""Which checkpoints of the Trainer are complete, and which are kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from ham.run import trainer_checkpoints
from ham.run.checkpoint import CheckpointError
from ham.run.trainer_checkpoints import MARK, Checkpoint, latest, mark, rotate


def write(folder: Path, step: int, best: int | None = None, **state: object) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(str(step))
    (path / "optimizer").write_text("x")
    mark(path, {"best_step": best, **state})
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def silent(line: str) -> None:
    raise AssertionError(line)


def test_a_mark_holds_the_state_and_the_hash_of_each_file(tmp_path: Path) -> None:
    path = write(tmp_path, 5, losses=[1.0])
    mark(path, {"best_step": 5})
    content = json.loads((path / MARK).read_text())
    digests = {
        name: hashlib.sha256(text).hexdigest() for name, text in (("optimizer", b"x"), ("weights", b"5"))
    }
    assert content == {"state": {"best_step": 5}, "sha256": digests}


def test_files_are_on_the_disk_before_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    path = tmp_path / "checkpoint-1"
    path.mkdir()
    (path / "weights").write_text("x")
    original = trainer_checkpoints.os.fsync
    fsync = lambda descriptor: events.append("file") or original(descriptor)  # noqa: E731
    monkeypatch.setattr(trainer_checkpoints.os, "fsync", fsync)
    monkeypatch.setattr(trainer_checkpoints, "sync_folder", lambda folder: events.append(folder.name))
    monkeypatch.setattr(trainer_checkpoints, "write_owned", lambda _, path, __: events.append(path.name))
    mark(path, {"best_step": None})
    assert events == ["file", "checkpoint-1", MARK, tmp_path.name]
    assert trainer_checkpoints._digest(path / "weights") == hashlib.sha256(b"x").hexdigest()
    assert events.count("file") == 1, "reading does not flush"


def test_the_newest_by_number_is_resumed(tmp_path: Path) -> None:
    assert latest(tmp_path / "missing", silent) is None
    for step, best in ((9, None), (100, 20), (20, 20)):
        write(tmp_path, step, best, note=step)
    found = latest(tmp_path, silent)
    assert found == Checkpoint(tmp_path / "checkpoint-100", 100, {"best_step": 20, "note": 100})
    assert found.best == "checkpoint-20" and Checkpoint(tmp_path, 1, {"best_step": None}).best == ""


def test_incomplete_ones_are_deleted_and_other_names_stay(tmp_path: Path) -> None:
    write(tmp_path, 5)
    for name in ("checkpoint-7", "checkpoint-x", "checkpoint-7b", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-8").touch()
    (tmp_path / "checkpoint-9").symlink_to(tmp_path / "notes")
    assert latest(tmp_path, silent).step == 5
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-x", "checkpoint-7b", "notes"}


DAMAGED = "is damaged (truncated or altered)"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("altered", f"weights {DAMAGED}"),
        ("missing", "weights is missing"),
        ("a folder", "weights is not a regular file"),
        ("a pipe", "weights is not a regular file"),
        ("a pipe as mark", "complete.json is not a regular file"),
        ("mark", f"complete.json {DAMAGED}"),
        ("state", f"complete.json {DAMAGED}"),
    ],
)
def test_a_damaged_one_is_named_and_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, fault: str
) -> None:
    write(tmp_path, 5)
    path = write(tmp_path, 6)
    if damage == "altered":
        (path / "weights").write_text("7")
    elif damage == "missing":
        (path / "weights").unlink()
    elif damage == "a folder":
        (path / "weights").unlink()
        (path / "weights").mkdir()
    elif damage.startswith("a pipe"):
        name = MARK if damage.endswith("mark") else "weights"
        (path / name).unlink()
        os.mkfifo(path / name)
    elif damage == "mark":
        (path / MARK).write_text("{")
    else:
        (path / MARK).write_text('{"state": {}, "sha256": {}}')
    lines: list[str] = []
    assert latest(tmp_path, lines.append).step == 5
    assert lines == [f"{path}/{fault}; trying the checkpoint before checkpoint-6"]
    assert names(tmp_path) == {"checkpoint-5"}


CURE = "restore what is damaged or missing, or start again with resume=false"


def test_without_a_good_one_or_the_best_one_nothing_is_resumed(tmp_path: Path) -> None:
    write(tmp_path, 5, 5)
    write(tmp_path, 6, 5)
    files = [tmp_path / name / "weights" for name in ("checkpoint-5", "checkpoint-6")]
    lines = (
        f"the best checkpoint: {files[0]} {DAMAGED}: {CURE}",
        f"no checkpoint in {tmp_path} is complete ({files[0]} {DAMAGED}; {files[1]} {DAMAGED}): {CURE}",
    )
    for file, line in zip(files, lines, strict=True):
        file.write_text("damaged")
        with pytest.raises(CheckpointError) as caught:
            latest(tmp_path, lambda line: None)
        assert str(caught.value) == line
        assert names(tmp_path) == {"checkpoint-5", "checkpoint-6"}
    shutil.rmtree(tmp_path / "checkpoint-5")
    write(tmp_path, 7, 5)
    with pytest.raises(CheckpointError) as caught:
        latest(tmp_path, lambda line: None)
    assert str(caught.value) == f"the best checkpoint: {tmp_path}/checkpoint-5 is missing: {CURE}"


def test_a_lost_mark_is_named_and_nothing_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    paths = [write(folder, 5), write(folder, 6)]
    (tmp_path / ".saved").touch()
    for path in paths:
        (path / MARK).unlink()
    reasons = "; ".join(f"{path / MARK} is missing" for path in paths)
    with pytest.raises(CheckpointError) as caught:
        latest(folder, silent)
    assert str(caught.value) == f"no checkpoint in {folder} is complete ({reasons}): {CURE}"
    assert names(folder) == {"checkpoint-5", "checkpoint-6"}
    (tmp_path / ".saved").unlink()  # killed while it wrote its first ones
    assert latest(folder, silent) is None and not names(folder)


def test_the_newest_two_and_their_best_ones_stay(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 2), (5, None)):
        write(tmp_path, step, best)
    (tmp_path / "checkpoint-6").mkdir()
    rotate(tmp_path)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4", "checkpoint-5"}
