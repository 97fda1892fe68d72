"""Programs with a time limit: their input, output, surroundings and end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ham.programs import run_program


def test_a_program_has_no_input_and_its_outputs_are_kept_apart(tmp_path: Path) -> None:
    code = "import os, sys; os.write(1, os.getcwdb() + b' \\xff ' + sys.stdin.buffer.read()); "
    code += "os.write(2, os.environb[b'MARK']); sys.exit(3)"
    done = run_program([sys.executable, "-c", code], 60, {"MARK": "here"}, tmp_path)
    assert (done.returncode, done.stderr) == (3, "here")
    assert os.fsencode(done.stdout) == f"{tmp_path} ".encode() + b"\xff "


def test_a_program_has_a_session_of_its_own_and_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "ours")
    code = "import os; print(os.getsid(0) == os.getpid(), os.environ['MARK'])"
    assert run_program([sys.executable, "-c", code], 60).stdout == "True ours\n"


def test_a_program_that_does_not_end_is_killed_and_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(subprocess.TimeoutExpired):
        run_program(["/bin/sleep", "60"], 0.05)
    assert started[0].returncode == -9


def test_a_program_that_is_missing_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        run_program(["/no/such/program"], 60)
