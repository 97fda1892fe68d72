"""The scripts that read records: what they keep, what they print, and that they need no torch."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ham.run.config import config_hash, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script() -> ModuleType:
    """scripts/demo_table.py as a module."""
    spec = importlib.util.spec_from_file_location("demo_table", ROOT / "scripts" / "demo_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_made_without_torch() -> None:
    code = "import sys; sys.path.insert(0, 'scripts'); import demo_table; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_the_table_has_every_sparsifier_and_the_papers_pairs(script: ModuleType) -> None:
    with_all = {"random", "acdc", "rigl", "snip", "synflow", "mask_acdc", "mask_rigl", "mask_str"}
    expected = {f"{m}{c}_s90" for m in with_all for c in ("", "_sign_in", "_ham")}
    expected |= {"spred_s90", "pilot_s90", "str_s90", "str_ham_s90"}
    assert set(script.experiments()) == expected


def write(script: ModuleType, name: str, seed: int, top1: float, sparsity: float) -> None:
    path = script.RECORDS / name / f"seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": {"top1_last": top1}, "sparsity": {"overall": sparsity}}))


def test_a_cell_is_mean_spread_count_and_achieved_sparsity(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RECORDS", tmp_path)
    write(script, "rigl_s90", 0, 98.0, 0.9)
    write(script, "rigl_s90", 1, 99.0, 0.901)
    write(script, "str_s90", 0, 97.5, 0.9049)
    assert script.cell("rigl_s90") == "98.50 +- 0.71 (2), 90.05 %"  # 0.5 sqrt 2
    assert script.cell("str_s90") == "97.50 (1), 90.49 %"
    assert script.cell("acdc_s90") == "not run"
    assert script.cell("pilot_ham_s90") == "-"
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", script.table(), flags=re.MULTILINE))
    assert rows["RiGL"] == "98.50 +- 0.71 (2), 90.05 % | not run | not run"
    assert rows["STR"] == "97.50 (1), 90.49 % | - | not run"


def test_committed_records_are_whole_and_of_todays_configuration(script: ModuleType) -> None:
    paths = sorted(script.RECORDS.glob("*/seed*.json"))
    hashes = {}
    for path in paths:
        record = json.loads(path.read_text())
        name, seed = path.parent.name, int(path.stem.removeprefix("seed"))
        assert (record["exp"], record["seed"], record["demo"]) == (name, seed, "digits")
        assert record["status"] == "done" and not record["overridden"]
        assert record["provenance"]["dirty"] is False, path
        assert record["provenance"]["hardware"]["cpu"] and "/" not in "".join(record["provenance"]["argv"])
        current = hashes.setdefault(name, config_hash(load([f"+exp={name}", "+demo=digits"])))
        assert record["config_hash"] == current, f"{path} was made with another configuration: run it again"
    assert {path.parent.name for path in paths} == set(script.experiments())


def test_the_committed_table_is_that_of_the_committed_records(script: ModuleType) -> None:
    assert script.TABLE.read_text() == script.table()


def test_every_method_trains_scaled_down(script: ModuleType) -> None:
    """Each committed demo run is above 90 % accuracy and within half a point of its sparsity."""
    for path in script.RECORDS.glob("*/seed*.json"):
        record = json.loads(path.read_text())
        assert abs(record["sparsity"]["overall"] - 0.9) < 0.005, path
        assert record["metrics"]["top1_last"] > 90, path
