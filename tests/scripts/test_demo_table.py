"""scripts/demo_table.py: a run that fails becomes a line of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "demo_table.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/demo_table.py as a module."""
    spec = importlib.util.spec_from_file_location("demo_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("child", "line"),
    [
        ("raise SystemExit(3)", "rigl_s90 seed 1: exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "rigl_s90 seed 1: exit status -9"),
        ("import sys; print(' \\n', file=sys.stderr); sys.exit(1)", "rigl_s90 seed 1: exit status 1"),
        ("import sys; sys.exit('one\\ntrain.py: diverged\\n')", "rigl_s90 seed 1: train.py: diverged"),
    ],
    ids=["silent", "killed", "blank", "told"],
)
def test_a_child_that_fails_gives_one_line(
    child: str, line: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text(child)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "RECORDS", tmp_path / "records")
    assert script.train("rigl_s90", 1, tmp_path / "runs") == line
    assert not (tmp_path / "records").exists()
