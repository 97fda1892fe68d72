"""The speed harness measures what it promises, on any machine, and says so in one table and one file."""

from __future__ import annotations

import json
from pathlib import Path

import overheads
import pytest
import throughput


def test_a_quick_run_has_every_promised_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "throughput.json"
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    throughput.main(["--quick", "--json", str(path)])
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
    out = capsys.readouterr().out
    assert all(name in out for name in expected)


def test_what_a_part_adds_is_computed_in_each_round() -> None:
    """Two steps are timed together; STR takes the base step, RigL an update in every 100 steps."""
    times = {"HAM": [4, 6], "STR": [10, 12], "RigL": [2, 4], "base step": [1, 3], "RigL's update": [100, 200]}
    found = {part: overheads.added_in_rounds(part, times, 100) for part in ("HAM", "STR", "RigL")}
    assert found == {"HAM": [2, 3], "STR": [4, 3], "RigL": [2, 4]}
