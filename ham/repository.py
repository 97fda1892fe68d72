"""The commit of this code by git, and whether the code has changes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess

from .errors import one_line
from .files import ROOT
from .programs import run_program

CODE = (
    *("train.py", "ham", "pruning", "configs", "scripts/theory_runs.py"),
    *(":(exclude)ham/report", ":(exclude)ham/sweep"),
)
"""What decides the result of a run: changes in reports, sweeps, cluster settings and records do not count."""

_SECONDS = 60.0
_HASH = re.compile(r"[0-9a-f]{7,64}")
_OTHER_REPOSITORY = re.compile(r"GIT_(DIR|WORK_TREE|INDEX_FILE|COMMON_DIR|OBJECT_DIRECTORY|NAMESPACE|PREFIX)")
"""Variables with which git looks elsewhere; a hook of another repository has them."""


class GitError(Exception):
    """git did not answer a question about this repository; the message says why."""


def git(*arguments: str) -> str:
    """The output of a git command in the repository. Raises GitError."""
    environment = {name: text for name, text in os.environ.items() if not _OTHER_REPOSITORY.fullmatch(name)}
    try:
        result = run_program(["git", *arguments], _SECONDS, environment | {"LC_ALL": "C"}, ROOT)
    except subprocess.TimeoutExpired:
        raise GitError(f"git does not answer within {_SECONDS:g} s") from None
    except FileNotFoundError as error:
        missing = "git is not on the PATH" if error.filename == "git" else f"git cannot be started ({error})"
        raise GitError(missing) from None
    except OSError as error:
        raise GitError(f"git cannot be started ({one_line(error)})") from None
    if "dubious ownership" in result.stderr:
        raise GitError(f"git rejects {ROOT}, which another user owns")
    if result.returncode:
        raise GitError(f"git finds no commit here ({(result.stderr.strip().splitlines() or ['?'])[0]})")
    return result.stdout.strip()


def commit() -> str | None:
    """The commit of this code: git's, else $HAM_COMMIT where the code was copied without its history."""
    try:
        return git("rev-parse", "HEAD")
    except GitError:
        given = os.environ.get("HAM_COMMIT", "")
        return given if _HASH.fullmatch(given) else None


def has_changes() -> bool | None:
    """Return True if `CODE` has uncommitted changes; None if git cannot tell."""
    try:
        return bool(git("status", "--porcelain", "--untracked-files=normal", "--", *CODE))
    except GitError:
        return None


def unknown_commit() -> str:
    """Why the commit of this code is unknown, with the cure; "" if it is known."""
    try:
        git("rev-parse", "HEAD")
        return ""
    except GitError as error:
        cause, cure = str(error), "set HAM_COMMIT to it"
    given = os.environ.get("HAM_COMMIT", "")
    if _HASH.fullmatch(given):
        return ""
    if given:
        cause += f", and HAM_COMMIT={given!a} is not a hash"
        cure += ", 7 to 64 hexadecimal digits"
    if "another user owns" in cause:
        cure = f"git config --global --add safe.directory {shlex.quote(str(ROOT))}, or {cure}"
    return f"{cause}; runs of an unknown commit cannot become records: {cure}"
