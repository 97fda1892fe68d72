"""What git says of this code, and what it says when it cannot."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from ham import repository
from ham.files import ROOT
from ham.repository import CODE, GitError, commit, git, has_changes, unknown_commit


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """git's exit status, output and error, or what is raised instead; what it was called with."""
    known: dict[str, Any] = {"status": 0, "out": "", "err": "", "raises": None}

    def run_program(command: list[str], *arguments: Any) -> subprocess.CompletedProcess[str]:
        known["called"] = (command, *arguments)
        if known["raises"]:
            raise known["raises"]
        return subprocess.CompletedProcess(command, known["status"], known["out"], known["err"])

    monkeypatch.setattr(repository, "run_program", run_program)
    monkeypatch.delenv("HAM_COMMIT", raising=False)
    return known


def test_git_runs_here_in_english_without_the_variables_of_another_repository(
    answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("GIT_PREFIX", "a")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "me")
    monkeypatch.setenv("LC_ALL", "de_DE")
    answer["out"] = " abc\n"
    assert git("rev-parse", "HEAD") == "abc"
    command, seconds, environment, folder = answer["called"]
    assert (command, seconds, folder) == (["git", "rev-parse", "HEAD"], 60.0, ROOT)
    assert environment["LC_ALL"] == "C" and environment["GIT_AUTHOR_NAME"] == "me"
    assert not {"GIT_DIR", "GIT_PREFIX"} & environment.keys()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"raises": subprocess.TimeoutExpired("git", 1)}, "git does not answer within 60 s"),
        ({"raises": FileNotFoundError(2, "No such file", "git")}, "git is not on the PATH"),
        (
            {"raises": FileNotFoundError(2, "No such file", "/gone")},
            "git cannot be started ([Errno 2] No such file: '/gone')",
        ),
        ({"raises": PermissionError(13, "denied")}, "git cannot be started (denied)"),
        (
            {"status": 128, "err": "fatal: detected dubious ownership in x"},
            f"git rejects {ROOT}, which another user owns",
        ),
        (
            {"status": 128, "err": "fatal: not a repository\nmore\n"},
            "git finds no commit here (fatal: not a ",
        ),
        ({"status": 1, "err": " "}, "git finds no commit here (?)"),
    ],
)
def test_why_git_does_not_answer_is_one_line(answer: dict[str, Any], facts: dict, message: str) -> None:
    answer.update(facts)
    with pytest.raises(GitError) as caught:
        git("status")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert has_changes() is None and commit() is None


@pytest.mark.parametrize(
    ("given", "known"), [("abcdef0", True), ("abcdef", False), ("a" * 65, False), ("", False)]
)
def test_a_given_commit_is_taken_where_git_has_none(
    answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch, given: str, known: bool
) -> None:
    answer["out"] = "f" * 40
    assert (commit(), answer["called"][0]) == ("f" * 40, ["git", "rev-parse", "HEAD"])
    assert (unknown_commit(), answer["called"][0]) == ("", ["git", "rev-parse", "HEAD"])
    answer["raises"] = FileNotFoundError(2, "No such file", "git")
    monkeypatch.setenv("HAM_COMMIT", given)
    assert commit() == (given if known else None)
    wrong = f", and HAM_COMMIT={given!a} is not a hash" if given else ""
    digits = ", 7 to 64 hexadecimal digits" if given else ""
    line = f"git is not on the PATH{wrong}; runs of an unknown commit cannot become records: set "
    assert unknown_commit() == ("" if known else f"{line}HAM_COMMIT to it{digits}")


def test_the_cure_for_a_repository_of_another_user_is_a_command(answer: dict[str, Any]) -> None:
    answer.update(status=128, err="dubious ownership")
    cure = f": git config --global --add safe.directory {ROOT}, or set HAM_COMMIT to it"
    assert unknown_commit().endswith(cure)


def test_only_files_that_decide_results_count_as_changes(answer: dict[str, Any]) -> None:
    assert has_changes() is False
    assert answer["called"][0] == ["git", "status", "--porcelain", "--untracked-files=normal", "--", *CODE]
    answer["out"] = " M ham/files.py\n"
    assert has_changes() is True
