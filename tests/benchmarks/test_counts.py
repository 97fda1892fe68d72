"""The committed counts of a training step are what the code does now; they do not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import roofline
import torch

from ham.files import ROOT
from ham.optim.hyperbolic import IMPLEMENTATIONS

COMMITTED = json.loads((ROOT / "benchmarks" / "results" / "counts.json").read_text())
COUNTED = ("launches", "read", "written", "syncs", "live", "peak")
UPDATES = ("RigL, mask update", "GMP, mask update")
Rows = dict[str, dict[str, Any]]

EXAMPLE = """
import torch
from counts import Simulation
from simulated_device import run_and_exit

def work(device):
    with Simulation(13).used() as simulation:
        x = torch.ones(1000, device=device)
        print(simulation.count("chain", lambda: (x * 2).exp_().sum().item()))
        tensors = [torch.ones(10, device=device) for _ in range(200)]
        print(simulation.count("multi", lambda: torch._foreach_mul_(tensors, tensors)))

run_and_exit(work)
"""


def run(*command: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(facts: dict[str, Any]) -> Rows:
    return {row["step"]: row for row in facts["rows"]}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """ResNet18's rows, counted now."""
    file = tmp_path_factory.mktemp("counts") / "counts.json"
    run("benchmarks/counts.py", "--models", "resnet18", "--json", str(file))
    return rows_of(json.loads(file.read_text())["models"]["resnet18"])


def changed(now: Rows, committed: Rows) -> tuple[list[str], list[str]]:
    """What grew and what fell, each as "row: quantity before -> after"."""
    grew, fell = [], []
    for name in now.keys() & committed.keys():
        for key in COUNTED:
            before, after = committed[name][key], now[name][key]
            if before != after:
                (grew if after > before else fell).append(f"{name}: {key} {before} -> {after}")
    return sorted(grew), sorted(fell)


def test_changes_are_found():
    row = dict.fromkeys(COUNTED, 5)
    now = {"a": row | {"launches": 6}, "b": row | {"syncs": 0}, "c": row, "new": row}
    assert changed(now, dict.fromkeys("abc", row)) == (["a: launches 5 -> 6"], ["b: syncs 5 -> 0"])


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__.partition("+")[0] != COMMITTED["torch"], reason="another torch has other operations"
)
def test_counts_of_resnet18_do_not_grow(counted):
    committed = rows_of(COMMITTED["models"]["resnet18"])
    cure = "; if that is meant, run python benchmarks/counts.py --json benchmarks/results/counts.json"
    assert counted.keys() == committed.keys(), f"other rows{cure}, then benchmarks/page.py"
    grew, fell = changed(counted, committed)
    assert not grew, f"{grew} grew{cure}, then benchmarks/page.py"
    assert not fell, f"{fell} fell, so that the committed counts are stale{cure}, then benchmarks/page.py"


@pytest.mark.slow
def test_a_step_does_not_wait_for_the_device(counted):
    assert {name for name, row in counted.items() if row["syncs"]} == set(UPDATES)


@pytest.mark.parametrize("model", COMMITTED["models"])
def test_every_implementation_of_ham_is_counted(model):
    from counts import NOT_COUNTED

    rows = rows_of(COMMITTED["models"][model])
    for name in IMPLEMENTATIONS:
        assert (f"HAM, {name}" in rows) != (name in NOT_COUNTED), name


@pytest.mark.parametrize("model", COMMITTED["models"])
def test_ham_keeps_no_memory(model):
    rows = rows_of(COMMITTED["models"][model])
    base = rows.get("ham.run's step") or rows["bare step"]
    kept = {name: row["live"] - base["live"] for name, row in rows.items() if name.startswith("HAM")}
    assert kept and set(kept.values()) <= {0, 16}  # the two counts of track_clamped


def test_counts_of_other_models_stay_in_the_file_unless_the_setting_changed(tmp_path):
    from counts import merge_into

    file = tmp_path / "new" / "counts.json"
    merge_into(file, {"cuda": 13}, {"llama1b": 1, "resnet50": 2})
    merge_into(file, {"cuda": 13}, {"resnet18": 3, "llama1b": 4})
    content = json.loads(file.read_text())
    assert list(content["models"].items()) == [("resnet18", 3), ("resnet50", 2), ("llama1b", 4)]
    merge_into(file, {"cuda": 12}, {"deit": 5})
    assert json.loads(file.read_text()) == {"cuda": 12, "models": {"deit": 5}}


def test_bytes_and_launches_of_adamw_are_those_worked_by_hand():
    facts = COMMITTED["models"]["llama1b"]
    weights = facts["weights"]
    assert weights == 128256 * 2048 + 16 * (2 * 2048**2 + 2 * 512 * 2048 + 3 * 8192 * 2048 + 2 * 2048) + 2048
    row = rows_of(facts)["bare step"]
    steps = 1 + 16 * 9 + 1  # tensors, each with a count of steps in float32
    assert row["read"] == 16 * weights + 2 * 4 * steps
    assert row["written"] == 12 * weights + 4 * steps
    chunks = sum(-(-size // 65536) for size in sizes())
    assert row["launches"] == -(-chunks // 2240) + 1


def sizes() -> list[int]:
    from counts import llama_shapes

    return [torch.Size(shape).numel() for shape in llama_shapes()]


def test_masked_steps_add_launches_and_products_keep_twice_the_weights():
    rows = rows_of(COMMITTED["models"]["resnet50"])
    weights = COMMITTED["models"]["resnet50"]["weights"]
    dense = rows["ham.run's step"]
    assert rows["AC/DC"]["launches"] > dense["launches"]
    kept = (rows["m * w"]["live"] - dense["live"]) / weights
    assert 7.9 < kept <= 8  # bytes a weight: a second factor and its momentum, of all but norms and biases
    assert 3.9 < (rows["SAM"]["peak"] - dense["peak"]) / weights <= 4.1


def test_an_example_worked_by_hand():
    chain, multi = (eval(line) for line in run("-c", EXAMPLE).splitlines())
    assert chain["launches"] == 3  # mul, exp_, sum; the value is a host sync
    assert (chain["read"], chain["written"], chain["syncs"]) == (12000, 8004, 1)
    assert chain["live"] == 4000 and chain["peak"] == 8004
    assert (multi["launches"], multi["read"], multi["written"]) == (1, 8000, 8000)


@pytest.mark.parametrize(
    ("count", "gpu", "expected"),
    [
        ({"launches": 1000, "read": 0, "written": 0}, "A100 40 GB", 2.5),  # launches limit it
        ({"launches": 1, "read": 1_555_000_000, "written": 0}, "A100 40 GB", 1.0),  # memory does
        ({"launches": 1, "read": 1_000_000_000, "written": 1_039_000_000}, "A100 80 GB", 1.0),
        ({"launches": 400, "read": 3_352_000_000, "written": 0}, "H100 SXM", 1.0),  # both
        ({"launches": 401, "read": 3_352_000_000, "written": 0}, "H100 SXM", 1.0025),
        ({"launches": 0, "read": 0, "written": 0}, "H100 SXM", 0.0),
    ],
)
def test_roofline(count: dict[str, int], gpu: str, expected: float):
    assert roofline.milliseconds(count, gpu) == pytest.approx(expected)


def test_a_cheaper_launch_is_faster():
    assert roofline.milliseconds({"launches": 1000, "read": 0, "written": 0}, "H100 SXM", launch_us=1) == 1
