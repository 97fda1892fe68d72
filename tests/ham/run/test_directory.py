"""A run's directory: what is written, in which form, and what an error names."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ham.run import directory as module
from ham.run.checkpoint import CheckpointError
from ham.run.config import ConfigError
from ham.run.directory import RunDirectory, RunLockedError, explain_os_errors, read_summary


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    made = RunDirectory(tmp_path / "deep" / "run")
    yield made
    made.unlock()


def facts(number: int) -> dict[str, object]:
    return {
        **{"commit": f"c{number}", "dirty": False, "hardware": {"cpu": "x"}, "ranks": number, "python": "3"},
        "config_hash": "a",
    }


def test_each_process_adds_its_facts_to_those_before(directory: RunDirectory) -> None:
    for number in (1, 2, 3):
        directory.write_metadata(facts(number), f"epochs: {number}\n")
    earlier = [{"commit": f"c{n}", "dirty": False, "hardware": {"cpu": "x"}, "ranks": n} for n in (1, 2)]
    assert directory.provenance() == facts(3) | {"resumed_from": earlier}
    assert (directory.folder / "config.yaml").read_text() == "epochs: 3\n"
    text = (directory.folder / "provenance.json").read_text()
    assert text == json.dumps(facts(3) | {"resumed_from": earlier}, indent=2) + "\n"


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"resumed_from": []}', '{"config_hash": "a", "resumed_from": {}}']
)
def test_damaged_facts_are_one_line(directory: RunDirectory, content: str) -> None:
    path = directory.folder / "provenance.json"
    path.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        directory.provenance()
    assert str(caught.value) == f"{path} is damaged: start again with resume=false"
    path.unlink()
    with pytest.raises(CheckpointError) as caught:
        directory.provenance()
    assert str(caught.value).startswith(
        f"{path} cannot be read (No such file or directory): fix that, or move"
    )


def test_a_result_replaces_a_divergence(directory: RunDirectory) -> None:
    directory.write_divergence({"reason": "nan"})
    diverged, done = directory.folder / "diverged.json", directory.folder / "summary.json"
    assert diverged.read_text() == '{\n  "reason": "nan"\n}\n'
    directory.write_summary({"status": "done"})
    assert not diverged.exists() and done.read_text() == '{\n  "status": "done"\n}\n'


def test_metrics_are_appended_line_by_line_and_cut_to_a_size(directory: RunDirectory) -> None:
    path = directory.folder / "metrics.jsonl"
    assert directory.metrics_size() == 0
    directory.truncate_metrics(0)
    assert not path.exists()
    with pytest.raises(CheckpointError) as caught:
        directory.truncate_metrics(1)
    assert str(caught.value).startswith(
        f"{path} is empty or missing (purged?): restore it, or start again with"
    )
    directory.append_metrics([{"epoch": 0}, {"epoch": 1}])
    directory.append_metrics([{"epoch": 2}])
    lines = ['{"epoch": 0}\n', '{"epoch": 1}\n', '{"epoch": 2}\n']
    assert path.read_text() == "".join(lines) and directory.metrics_size() == 39
    directory.truncate_metrics(39)
    assert path.read_text() == "".join(lines)
    directory.truncate_metrics(26)
    assert path.read_text() == "".join(lines[:2])
    with pytest.raises(CheckpointError, match="is shorter than its checkpoint expects: restore it, or"):
        directory.truncate_metrics(27)


LOSSES = {  # what another program does to metrics.jsonl -> the bytes it then has
    "deleted": (lambda path: path.unlink(), 0),
    "empty": (lambda path: path.write_text(""), 0),
    "shorter": (lambda path: path.write_text('{"epoch": 0}'), 12),
    "longer": (lambda path: path.write_text('{"epoch": 0}\n{"epoch": 1}\n'), 26),
}
NEXT = {
    "metrics": lambda directory: directory.append_metrics([{"epoch": 1}]),
    "checkpoint": lambda directory: directory.metrics_size(),
    "summary": lambda directory: directory.write_summary({}),
}


@pytest.mark.parametrize("act", NEXT.values(), ids=NEXT)
@pytest.mark.parametrize(("lose", "size"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("resumed", [False, True])
def test_metrics_that_are_lost_end_the_run_at_its_next_write(
    resumed: bool, lose: Callable, size: int, act: Callable, directory: RunDirectory
) -> None:
    path = directory.folder / "metrics.jsonl"
    if resumed:
        path.write_text('{"epoch": 0}\n{"epoch":')
        directory.truncate_metrics(13, 1)
    else:
        directory.append_metrics([{"epoch": 0}])
    directory.metrics_size()
    lose(path)
    before = {found: found.read_bytes() for found in directory.folder.iterdir()}
    with pytest.raises(CheckpointError) as caught:
        act(directory)
    cure = "restore it, or start again with resume=false"
    assert str(caught.value) == f"{path} was deleted or changed during the run ({size} bytes, not 13): {cure}"
    assert {found: found.read_bytes() for found in directory.folder.iterdir()} == before
    path.write_text('{"epoch": 0}\n')  # the cure
    NEXT["metrics"](directory)
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'
    directory.clear()
    directory.append_metrics([{"epoch": 0}])


@pytest.mark.parametrize(
    ("text", "size", "epochs", "state"),
    [
        ('{"epoch": 0}\n', 13, 1, ""),
        ('{"epoch": 0}\n{"epoch": 1}\n', 13, 1, ""),
        ('{"epoch": 0}\n', 13, 2, "shorter than its checkpoint expects"),
        ('{"epoch": 0}\n{"epoch": 1}\n', 13, 2, "shorter than its checkpoint expects"),
        (None, 0, 1, "empty or missing (purged?)"),
        ("", 0, 1, "empty or missing (purged?)"),
        (None, 0, 0, ""),
    ],
)
def test_a_checkpoint_resumes_only_with_a_line_for_each_of_its_epochs(
    text: str | None, size: int, epochs: int, state: str, directory: RunDirectory
) -> None:
    path = directory.folder / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    if not state:
        directory.truncate_metrics(size, epochs)
        assert directory.metrics_size() == size
        return
    with pytest.raises(CheckpointError) as caught:
        directory.truncate_metrics(size, epochs)
    assert str(caught.value) == f"{path} is {state}: restore it, or start again with resume=false"
    assert text is None or path.read_text() == text


def test_files_that_mark_a_run_are_deleted_first(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (
        "summary.json",
        "previous.pt",
        "last.pt",
        ".saved",
        "masks.pt",
        ".last.pt.tmp",
        "last.damaged",
        "mine",
    )
    for name in names:
        (directory.folder / name).touch()
    left: list[set[str]] = []
    monkeypatch.setattr(module, "sync_folder", lambda folder: left.append({p.name for p in folder.iterdir()}))
    assert directory.clear() == ["mine"]
    assert left == [{"lock", "lock.owner", "masks.pt", ".last.pt.tmp", "last.damaged", "mine"}]
    assert {path.name for path in directory.folder.iterdir()} == {"lock", "lock.owner", "mine"}


def test_a_locked_directory_and_one_that_cannot_be_made_are_distinguished(directory: RunDirectory) -> None:
    with pytest.raises(RunLockedError) as caught:
        RunDirectory(directory.folder)
    assert str(caught.value).startswith(f"another process is running in {directory.folder} (process ")
    assert str(caught.value).endswith("): wait for it or choose another seed")
    (directory.folder / "file").touch()
    below = directory.folder / "file" / "run"
    with pytest.raises(ConfigError) as caught:
        RunDirectory(below)
    assert str(caught.value) == f"cannot write runs to {below}: Not a directory; choose another runs_dir"
    with (
        pytest.raises(ConfigError, match=r"Is a directory \(/other\); choose another runs_dir$"),
        directory._explain_start_errors(),
    ):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", "/other")
    with (
        pytest.raises(ConfigError, match=r"full; choose another runs_dir$"),
        directory._explain_start_errors(),
    ):
        raise OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize("shared", [None, True, False])
def test_an_error_of_a_file_says_how_to_go_on_and_who_prints_it(tmp_path: Path, shared: bool | None) -> None:
    error = OSError(errno.EIO, "Input/output error", "/a/b")
    if shared is not None:
        error.shared = shared
    with pytest.raises(CheckpointError) as caught, explain_os_errors(tmp_path):
        raise error
    cure = "; fix that and start the same command again to resume"
    assert str(caught.value) == f"/a/b cannot be read or written: Input/output error{cure}"
    assert caught.value.shared is bool(shared)
    with (
        pytest.raises(CheckpointError, match=f"^{tmp_path} cannot be read or written: "),
        explain_os_errors(tmp_path),
    ):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("content", "complete"),
    [
        ({"config_hash": "a", "metrics": {}}, True),
        ({"config_hash": "a", "metrics": []}, False),
        ({"config_hash": 1, "metrics": {}}, False),
        ({"metrics": {}}, False),
        ([], False),
    ],
)
def test_a_summary_has_a_hash_and_metrics(tmp_path: Path, content: object, complete: bool) -> None:
    assert read_summary(tmp_path) is None and read_summary(tmp_path / "summary.json") is None
    (tmp_path / "summary.json").write_text(json.dumps(content))
    assert read_summary(tmp_path) == (content if complete else None)
    assert read_summary(tmp_path / "summary.json") is None, "a file in the place of the folder"
    (tmp_path / "summary.json").unlink()
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\): fix that or move it away$"):
        read_summary(tmp_path)
