"""Right on an accelerator, shown without one: every sparsifier, HAM and entire runs on a simulated device.

One process runs everything (simulate.py); each test here judges one part of what it saw. The places at which
the host waits for the device are those of the table in docs/benchmarks.md, with reasons, and no others.

Fake tensors have no values, so shapes that depend on values are invented (benchmarks/simulated_device.py):
what top-k selects is tested elsewhere, here only where its masks are and how often it waits. Not simulated:
kernels, torch.compile, several ranks, image folders and FFCV, and GAT's attention, whose sparse product is
never fake.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import CELLS, methods_without_a_row, train, write_masks
from probes import DOES_NOT_WAIT, PROBES, WAITS
from runs import RUNS

from ham.run.build import build
from ham.run.config import config_hash, load
from ham.run.logger import NullLogger
from ham.tasks.images import ImageClassification

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
ELSEWHERE = "elsewhere"
REFUSED = {"mixed_devices", "fused_step_of_ham"}
FIRST_STEP = {"ham/models/sparse.py:starts", "ham/models/sparse.py:Csr.rows"}
"""A graph's transposed edges are computed at the first backward pass and kept."""

Seen = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Kind -> name -> what `observed` returns."""
    file = tmp_path_factory.mktemp("simulated") / "seen.json"
    folders = [ROOT, ROOT / "benchmarks", HERE.parent, HERE.parent / "pruning"]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "simulate.py"), str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_every_sparsifier_is_simulated():
    missing = methods_without_a_row()
    assert not missing, f"add a row for {', '.join(missing)} to METHODS in tests/pruning/contract.py"


@pytest.mark.parametrize("name", list(map(str, CELLS)))
def test_a_training_stays_on_the_device_and_its_steps_do_not_wait(seen, name):
    cell = seen["cells"][name]
    assert not cell["error"]
    assert not cell["stray"]
    assert not {
        number: syncs for number, syncs in cell["steps"].items() if int(number) not in cell["updates"]
    }


def test_the_update_of_a_mask_is_seen_as_one(seen):
    for name, cell in seen["cells"].items():
        if name.startswith("rigl"):
            assert cell["updates"] == [3] and cell["steps"].keys() == {"3"}, name
        if name.startswith("set"):
            assert cell["updates"] == [5] and cell["steps"].keys() == {"5"}, name
        if name.startswith(("dense", "random", "snip", "str")):
            assert not cell["updates"], name


@pytest.mark.parametrize(
    "name", ["rigl-sgd-ham", "rigl-product-sgd-sam", "acdc-product-adamw-sam", "str-adamw-ham"]
)
def test_the_same_training_runs_on_real_tensors(seen, name, tmp_path):
    write_masks(tmp_path / "masks.pt")
    cell = next(cell for cell in CELLS if str(cell) == name)
    outcome = train(cell, tmp_path / "masks.pt", torch.device("cpu"), lambda number: nullcontext())
    assert not outcome.stray
    assert sorted(outcome.updates) == seen["cells"][name]["updates"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_and_its_resume_stay_on_the_device_and_their_steps_do_not_wait(seen, name):
    run = seen["runs"][name]
    assert not run["error"]
    assert not run["stray"]
    waiting = {int(number): set(syncs) for number, syncs in run["steps"].items()}
    if name.startswith("node/"):
        for first in (0, 2):  # of the run, and after its resume
            assert waiting.pop(first) == FIRST_STEP
    assert waiting.keys() <= set(run["updates"])
    assert bool(run["updates"]) == name.startswith("rigl")


@pytest.mark.parametrize("name", sorted(PROBES.keys() - REFUSED - {"masks_of_a_dense_model"}))
def test_results_are_on_the_device(seen, name):
    assert not seen["probes"][name]["error"]
    assert not seen["probes"][name]["stray"]


def test_the_masks_of_a_dense_model_are_on_its_device(seen):
    assert not seen["probes"]["masks_of_a_dense_model"]["stray"]


def test_tensors_of_two_devices_do_not_mix(seen):
    assert "Expected all tensors to be on the same device" in seen["probes"]["mixed_devices"]["error"]


def test_the_fused_step_of_ham_refuses_an_accelerator(seen):
    error = "ValueError: implementation='fused' is for CPU weights and a float learning rate"
    assert seen["probes"]["fused_step_of_ham"]["error"].startswith(error)


@pytest.mark.parametrize("name", [*WAITS, *DOES_NOT_WAIT])
def test_an_operation_waits_for_the_device_as_on_cuda(seen, name):
    operation = seen["waits"][name]
    assert not operation["error"]
    assert operation["syncs"].keys() == ({ELSEWHERE} if name in WAITS else set())


def listed() -> set[str]:
    """The places in the table of the page."""
    section = PAGE.read_text().partition("## Host syncs\n")[2].partition("\n## ")[0]
    return {
        f"{file}:{name}" for file, name in re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", section, re.MULTILINE)
    }


def test_the_host_waits_where_the_table_says(seen):
    places = {place for kind in seen.values() for work in kind.values() for place in work["syncs"]} - {
        ELSEWHERE
    }
    table = listed()
    new, gone = sorted(places - table), sorted(table - places)
    cure = "benchmarks/page.md, and run python benchmarks/page.py"
    assert not new, f"{new} wait for the device: avoid it, or add them and the reason to {cure}"
    assert not gone, f"{gone} no longer wait: remove them from {cure}"


def test_a_run_is_built_without_a_parameter_on_the_cpu(tmp_path):
    """On the meta device, which has no values either and needs no process of its own."""
    cfg = load(["+exp=str_ham_s90", "+demo=tiny", "model.width=4"])
    device = torch.device("meta")
    task = ImageClassification(cfg, device, cfg.data.load(batch_size=128, seed=0, device=device))
    run = build(cfg, config_hash(cfg), task, NullLogger(tmp_path, cfg), device)
    assert {p.device.type for p in [*run.model.parameters(), *run.params]} == {"meta"}
    assert {b.device.type for b in run.model.buffers()} == {"meta"}
    assert any("threshold" in name for name, _ in run.model.named_parameters())
