"""What is recorded of a run's code and machine, and whether a start continues an earlier one."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path

import pytest
import torch

from ham.run import provenance as module
from ham.run.provenance import hardware, is_requeued, provenance


def test_provenance_has_code_versions_machine_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "commit", lambda: "abc")
    monkeypatch.setattr(module, "has_changes", lambda: True)
    monkeypatch.setattr(module, "_version", lambda name: None if name == "ffcv" else f"{name} 1")
    monkeypatch.setattr(module, "hardware", lambda: {"cpu": "x"})
    monkeypatch.setattr(sys, "argv", ["train.py", "+exp=dense", "seed=1"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    found = provenance("h")
    versions = found.pop("versions")
    assert versions["torch"] == "torch 1" and "ffcv" not in versions
    assert found == {
        **{"commit": "abc", "dirty": True, "python": platform.python_version(), "hardware": {"cpu": "x"}},
        **{"threads": torch.get_num_threads(), "ranks": 1, "slurm_job": "7"},
        **{"argv": ["+exp=dense", "seed=1"], "config_hash": "h"},
    }
    monkeypatch.delenv("SLURM_JOB_ID")
    assert provenance("h")["slurm_job"] is None


def test_versions_are_those_of_installed_packages() -> None:
    assert module._version("torch").split("+")[0] == torch.__version__.split("+")[0]
    assert module._version("no-such-package-at-all") is None


def test_the_processor_is_named_by_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    read = module.read_text
    monkeypatch.setattr(module, "read_text", lambda path, **options: read(tmp_path / "cpuinfo", **options))
    monkeypatch.setattr(platform, "processor", lambda: "by platform")
    monkeypatch.setattr(platform, "machine", lambda: "x86")
    texts = (None, "processor: 0\nmodel name\t:  Fast: 3 GHz \nmodel name: other\n", "processor: 0\n")
    for text, name in zip(texts, ("by platform", "Fast: 3 GHz", "x86"), strict=True):
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        assert hardware() == {"cpu": name, "cores": os.cpu_count(), "gpus": ["GPU 0", "GPU 1"]}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("place", [".", "trial3"])
@pytest.mark.parametrize(
    ("job", "restarts", "known", "requeued"),
    [
        ("7", "1", {"slurm_job": "7"}, True),
        ("7", "2", {"slurm_job": "8"}, False),
        ("7", "1", None, False),
        ("7", "0", {"slurm_job": "7"}, False),
        ("7", None, {"slurm_job": "7"}, False),
        (None, "1", {"slurm_job": None}, False),
    ],
)
def test_a_requeued_job_continues_what_the_same_job_began(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    job: str | None,
    restarts: str | None,
    known: dict | None,
    requeued: bool,
) -> None:
    for name, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", restarts)):
        if value is not None:
            monkeypatch.setenv(name, value)
    if known is not None:
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "provenance.json").write_text(json.dumps(known))
    assert is_requeued(tmp_path) is requeued


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("count", "age", "restarted"),
    [("1", 50.0, False), ("1", 150.0, True), ("1", None, False), ("0", 150.0, False)],
)
def test_ranks_that_torchrun_starts_again_continue_what_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str, age: float | None, restarted: bool
) -> None:
    """The file is 100 seconds old, and torchrun `age`."""
    path = tmp_path / "provenance.json"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    asked: list[int] = []
    monkeypatch.setattr(module, "age_of_process", lambda pid: asked.append(pid) or age)
    assert not is_requeued(tmp_path)
    path.write_text("{}")
    then = time.time() - 100
    os.utime(path, (then, then))
    assert is_requeued(tmp_path) is restarted
    assert asked == ([os.getppid()] * 2 if count == "1" else [])


def test_a_file_as_old_as_torchrun_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "provenance.json"
    path.touch()
    os.utime(path, (1000, 1000))
    monkeypatch.setattr(module.time, "time", lambda: 1064.0)
    assert module._is_younger(path, 64.0) and not module._is_younger(path, 63.0)
