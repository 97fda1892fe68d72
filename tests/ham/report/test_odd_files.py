"""Files and folders of others: sizes, messages and the permissions that a command needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ham.report import odd_files
from ham.report.odd_files import InvalidRecord, check_folder, check_results, check_target, find_files
from ham.report.spec import PlanError


def sparse(path: Path, size: int) -> Path:
    """A file of zeros that takes no space."""
    path.touch()
    os.truncate(path, size)
    return path


@pytest.mark.parametrize(("largest", "mib"), [("LARGEST", 4), ("LARGEST_METRICS", 64)])
def test_files_have_at_most_so_many_bytes(largest: str, mib: int, tmp_path: Path) -> None:
    size, limit = mib * 1024**2, getattr(odd_files, largest)
    assert len(odd_files.read_limited(sparse(tmp_path / "whole", size), limit)) == size
    with pytest.raises(
        InvalidRecord, match=f"^more has {size + 1} bytes, more than {size}: {odd_files.AGAIN}$"
    ):
        odd_files.read_limited(sparse(tmp_path / "more", size + 1), limit)


def test_a_record_is_as_large_as_a_summary_by_default(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecord, match=f"more than {2**22}:"):
        odd_files.read_limited(sparse(tmp_path / "x", 2**22 + 1))


def test_a_file_that_is_missing_or_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecord, match=r"^x cannot be read \(No such file or directory\): check the"):
        odd_files.read_limited(tmp_path / "x")
    with pytest.raises(InvalidRecord, match=f"^{tmp_path.name} is not a regular file: remove it$"):
        odd_files.read_limited(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[" * 100_000, "(nested too deeply)"),
        (b"{", "(Expecting property name enclosed in double quotes"),
        (b"\xff", "('utf-8' codec can't decode"),
        (b'{"a": 0, "b": 1, "b": 2, "c": 1, "c": 2}', "(it has the key 'b' twice)"),
    ],
)
def test_what_is_odd_about_a_json_is_said(content: bytes, what: str) -> None:
    with pytest.raises(InvalidRecord) as error:
        odd_files.parse_json(content)
    text = str(error.value)
    assert text.startswith(f"it cannot be read, its JSON is incomplete or invalid {what}")
    assert text.endswith("): remove it, then run or collect it again")


def test_an_object_with_distinct_keys_is_read() -> None:
    assert odd_files.parse_json(b'{"a": {"b": 1}, "b": [2]}') == {"a": {"b": 1}, "b": [2]}


def test_a_folder_that_is_linked_twice_or_within_itself_is_searched_once(tmp_path: Path) -> None:
    """Real folders come before links, whatever their names; a run directory has no folders of runs."""
    for name in ("b/seed0/x.json", "b/seed0/deep/x.json", "c/x.json", "c/other.txt"):
        (tmp_path / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / name).touch()
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "x.json").touch()
    runs = tmp_path / "runs"
    (runs / "a").symlink_to(runs / "c")
    (runs / "d").symlink_to(tmp_path / "away")
    (runs / "e").symlink_to(tmp_path / "away")
    (runs / "f").symlink_to(runs)
    (runs / "g").symlink_to(runs / "c" / "other.txt")
    (runs / "h").symlink_to(tmp_path / "nothing")
    files, problems = find_files(runs, lambda path: path.suffix == ".json")
    assert [str(path.relative_to(runs)) for path in files] == ["b/seed0/x.json", "c/x.json", "d/x.json"]
    assert problems == [f"{runs / 'h'}: it cannot be read (No such file or directory): check the folder"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("file", "it is a file: give a folder"),
        ("link", "it is a link to nothing: remove it or give another folder"),
        ("loop", "it cannot be opened (Too many levels of symbolic links): give another folder"),
    ],
)
def test_what_stands_in_the_place_of_a_folder_is_said(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place = tmp_path / name
    with pytest.raises(PlanError) as error:
        check_folder("--runs", place)
    assert str(error.value) == f"--runs {place} is not a directory that can be read: {what}"
    with pytest.raises(PlanError) as error:
        check_target("--to", place)
    assert str(error.value) == f"--to {place} cannot be written: {place}: {what}"


def test_a_folder_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is not a directory that can be read: it does not exist: check its"):
        check_folder("--runs", tmp_path / "none")


def refuse(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let nobody do anything, as the tests may run as root, who may do all; returns what was asked."""
    asked: list[int] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(mode))
    return asked


def test_a_folder_must_be_readable_and_searchable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder("--runs", tmp_path)
    asked = refuse(monkeypatch)
    with pytest.raises(PlanError) as error:
        check_folder("--runs", tmp_path)
    assert str(error.value) == (
        f"--runs {tmp_path} is not a directory that can be read: it cannot be read: change its permissions"
    )
    assert asked == [4 + 1]


def test_the_nearest_folder_that_exists_must_be_writable_and_searchable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_target("--to", tmp_path)
    check_target("--to", tmp_path / "a" / "b")
    asked = refuse(monkeypatch)
    for target in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(PlanError) as error:
            check_target("--to", target)
        assert str(error.value) == (
            f"--to {target} cannot be written: {tmp_path}: it cannot be written: give another folder"
        )
    assert asked == [2 + 1] * 2


@pytest.mark.parametrize("name", ["runs", "demo", "cifar16", "smollm", "epochs20", "theory"])
def test_a_folder_with_a_folder_of_records_holds_results(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "results").mkdir()
    check_results(tmp_path)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("place", ["seed0.json", "a/seed0.json", "a/b/seed0.json"])
def test_a_folder_of_records_is_distinguished_from_one_of_results(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    with pytest.raises(PlanError, match=r"holds records itself: give the folder above it$"):
        check_results(tmp_path)


@pytest.mark.parametrize(
    ("given", "is_said"), [({}, True), ({"is_read": True}, True), ({"is_read": False}, False)]
)
def test_an_empty_folder_is_a_hint_only_to_who_reads_it(
    given: dict[str, Any], is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_results(tmp_path, **given)
    said = capsys.readouterr()
    hint = f"--results {tmp_path} has no records yet: scripts/collect.py adds them\n"
    assert said == ("", hint if is_said else "")
