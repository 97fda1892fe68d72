"""A C compiler that disappears, appears or hangs between the start of a run and its resume."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from ham import c_code
from ham.models import graph_kernels
from ham.optim import implementations
from ham.run.c_operations import check_same_operations, operations_in_c
from ham.run.config import Config, ConfigError, load

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
STEP, GRAPHS = "HAM's step", "graph networks"
IN_TORCH = (
    "the checkpoint in FOLDER was saved with C code for {}, and torch's operations here would change the "
    "results: install the C compiler again, or name it in CC, or start again with resume=false"
)
IN_C = (
    "the checkpoint in FOLDER was saved with torch's operations for {}, and C code here would change the "
    "results: set CC=false to use torch's operations, or start again with resume=false"
)
GRAPH_HAM = "node/chameleon_gcn_ham"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether C code works; a warning says so where it does not."""
    known = {"works": True}

    def has_c_code(dtype: torch.dtype) -> bool:
        if not known["works"]:
            warnings.warn("the C code does not work", stacklevel=2)
        return known["works"]

    for module in (implementations, graph_kernels):
        monkeypatch.setattr(module, "has_c_code", has_c_code)
    return known


def config(experiment: str) -> Config:
    return load([f"+exp={experiment}"])


@pytest.mark.parametrize(
    ("experiment", "device", "operations"),
    [
        ("dense", CPU, []),
        ("dense_ham", CPU, [STEP]),
        ("dense_ham", CUDA, []),
        ("node/chameleon_gcn", CPU, [GRAPHS]),
        (GRAPH_HAM, CPU, [STEP, GRAPHS]),
    ],
)
def test_a_run_names_its_operations_that_have_c_code(
    experiment: str, device: torch.device, operations: list[str], compiler: dict[str, bool]
) -> None:
    assert operations_in_c(config(experiment), device) == dict.fromkeys(operations, True)


@pytest.mark.parametrize(
    ("state", "works", "line"),
    [
        ({STEP: True, GRAPHS: True}, False, IN_TORCH.format(STEP)),
        ({STEP: False, GRAPHS: True}, False, IN_TORCH.format(GRAPHS)),
        ({STEP: False, GRAPHS: False}, True, IN_C.format(STEP)),
        ({STEP: True, GRAPHS: False}, True, IN_C.format(GRAPHS)),
    ],
)
def test_a_run_is_not_resumed_with_other_operations(
    state: dict[str, bool], works: bool, line: str, compiler: dict[str, bool], tmp_path: Path
) -> None:
    compiler["works"] = works
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the line says it all
        with pytest.raises(ConfigError) as caught:
            check_same_operations(tmp_path, {"c_operations": state}, config(GRAPH_HAM), CPU)
    assert str(caught.value) == line.replace("FOLDER", str(tmp_path))


@pytest.mark.parametrize("state", [{}, {"c_operations": {}}, {"c_operations": {GRAPHS: True}}])
def test_a_checkpoint_of_an_earlier_version_or_of_a_gpu_is_resumed(
    state: dict[str, Any], compiler: dict[str, bool], tmp_path: Path
) -> None:
    compiler["works"] = "c_operations" not in state
    check_same_operations(tmp_path, state, config("dense_ham"), CUDA)
    compiler["works"] = True
    check_same_operations(tmp_path, state, config(GRAPH_HAM), CPU)


def test_the_warning_of_a_broken_compiler_is_shown_where_the_run_resumes(
    compiler: dict[str, bool], tmp_path: Path
) -> None:
    compiler["works"] = False
    with pytest.warns(UserWarning, match="^the C code does not work$"):
        check_same_operations(tmp_path, {"c_operations": {STEP: False}}, config("dense_ham"), CPU)


def test_a_compiler_that_hangs_is_tried_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], timeout: float, **_: object) -> None:
        started.append(command)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(c_code, "_HANGING", set())
    monkeypatch.setenv("CC", "slow -m64")
    expected = "^the C compiler slow does not end within 120 seconds; name another one in CC$"
    for source in (Path("a.c"), Path("b.c")):
        for dtype in (torch.float32, torch.float64):
            with pytest.raises(c_code.CompilerError, match=expected):
                c_code.load(source, dtype)
    assert len(started) == 1
    monkeypatch.setenv("CC", "another")  # the cure
    with pytest.raises(c_code.CompilerError, match="another does not end"):
        c_code.load(Path("a.c"), torch.float32)
    assert len(started) == 2
