"""The speed harness measures what it promises, on any machine, and says so in one table and one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_has_every_promised_row(tmp_path: Path) -> None:
    path = tmp_path / "throughput.json"
    command = [sys.executable, "benchmarks/throughput.py", "--quick", "--json", str(path)]
    environment = os.environ | {"HAM_DATA": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    methods = ("dense", "AC/DC", "RigL", "STR")
    expected = ["bare torch", *(m + h for m in methods for h in ("", " + HAM")), "m * w"]
    assert [row["step"] for row in results["steps"]] == expected
    assert results["steps"][0]["over_bare"] == 1
    assert all(row["ms"] > 0 and row["images_per_second"] > 0 for row in results["steps"])
    for row in results["steps"]:
        assert (
            abs(row["images_per_second"] - 1e3 * row["batch_size"] / row["ms"])
            < 1e-6 * row["images_per_second"]
        )
    assert [row["part"] for row in results["overheads"]] == ["HAM", "AC/DC", "RigL", "STR", "m * w"]
    assert all(0 < row["share"] < 1 for row in results["overheads"])
    assert all(low <= row["ms"] <= high for row in results["steps"] for low, high in [row["spread_ms"]])
    assert [row["pipeline"] for row in results["pipelines"]] == ["digits"]  # the others' data are not there
    assert results["hardware"]["cores"] and str(tmp_path) not in path.read_text()
    assert all(name in done.stdout for name in expected)
