"""scripts/sweep.py in this process, without SLURM, git and committed records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import script

from ham.command_line import run_command_line
from ham.sweep import status
from ham.sweep.status import Sweeps


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with no SLURM on it, for stand-ins; no committed records."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("bash", "env"):
        (binaries / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setenv("HAM_COMMIT", "c0ffee0")  # git is not on the PATH either
    monkeypatch.setattr(status, "RESULTS", tmp_path / "results")
    return binaries


@pytest.fixture
def sweep(
    tmp_path: Path, no_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`sweep("--table=4")`: status, stdout and stderr of sweep.py with the runs in tmp_path/runs."""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        before, dash, after = " ".join(argv).partition(" -- ")
        command = [*before.split(), f"--runs={tmp_path / 'runs'}", *(dash + after).split()]
        try:
            status = run_command_line(script("sweep").main, command)
        except SystemExit as end:
            status = int(end.code)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def sweeps(tmp_path: Path, no_slurm: Path) -> Sweeps:
    """The runs in tmp_path/runs."""
    return Sweeps(tmp_path / "runs")
