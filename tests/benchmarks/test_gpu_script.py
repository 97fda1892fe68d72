"""benchmarks/gpu.sh: stages, options and exit statuses; tests/ham/sweep covers the slices themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ham.files import ROOT


def gpu(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the script with its output in tmp_path/out."""
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_cells_stop_in_time_resume_and_are_packed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    own = ("--tiny", "cells", "--jobs", "2")
    options = ("--only", "cifar100_ham", "--seeds", "0", "--runs", str(runs))
    stopped = gpu(tmp_path, *own, "--seconds", "2", "--", *options)
    assert stopped.returncode == 85, stopped.stderr
    assert "1 run left to do" in stopped.stdout
    done = gpu(tmp_path, *own, "--seconds", "9999", "--", *options)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "out" / "cells.tar.gz") as archive:
        members = {member.name: archive.extractfile(member).read().decode() for member in archive}
    assert {name.rpartition("/")[0] for name in members} == {"cifar100_ham-tiny/seed0"}
    for place in (str(ROOT), str(tmp_path), os.uname().nodename):
        assert not any(place in text for text in members.values())
    assert gpu(tmp_path, *own, "--", *options).returncode == 0


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["train"], "unknown argument train: choose from tests, bench, cells"),
        (["cells", "--jobs", "0"], "--seconds and --jobs must be numbers above 0"),
        (["cells", "--seconds"], "--seconds and --jobs must be numbers above 0"),
    ],
)
def test_wrong_use_is_one_line_with_status_2(tmp_path: Path, argv: list[str], complaint: str) -> None:
    done = gpu(tmp_path, *argv)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("gpu.sh: ") and complaint in done.stderr


def test_a_machine_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = gpu(tmp_path, "tests")
    assert done.returncode == 2
    assert done.stderr == (
        "gpu.sh: torch sees no GPU here; 'benchmarks/gpu.sh --tiny cells' tries the script without one\n"
    )


def test_gpu_tests_that_are_all_skipped_are_not_a_success(tmp_path: Path) -> None:
    done = gpu(tmp_path, "--tiny", "tests")
    output = (tmp_path / "out" / "tests.txt").read_text()
    assert done.returncode == (0 if " passed" in output else 1)
    assert str(ROOT) not in output


def test_each_benchmark_writes_its_file(tmp_path: Path) -> None:
    """With an interpreter that lists the benchmarks instead of running them."""
    calls, interpreter = tmp_path / "calls", tmp_path / "python"
    interpreter.write_text(
        f'#!/bin/sh\ncase $1 in benchmarks/*) echo "$@" >>{calls}; [ "$1" != "$FAILS" ];; '
        f'*) exec {sys.executable} "$@";; esac\n'
    )
    interpreter.chmod(0o755)
    environment = os.environ | {"OUT": "out", "PYTHON": str(interpreter)}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--tiny", "bench"]
    for fails, status in (("", 0), ("benchmarks/masks.py", 1)):
        calls.write_text("")
        done = subprocess.run(command, capture_output=True, text=True, env=environment | {"FAILS": fails})
        assert done.returncode == status, done.stderr
        assert (
            calls.read_text().splitlines()
            == [
                "benchmarks/optimizer.py --device cuda --json out/optimizer.json",
                "benchmarks/masks.py --device cuda --json out/masks.json",
                "benchmarks/throughput.py --json out/throughput.json",
            ][: None if status == 0 else 2]
        )
