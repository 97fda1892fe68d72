"""The page of paired differences by hand, of the committed records, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import script

from ham.report import spec as lock_file
from ham.report.node_report import PAGE
from ham.report.spec import RunSpec

COMMAND = script("node_report")


def summary(exp: str, seed: int, valid: float, test: float) -> dict:
    return {
        "config_hash": RunSpec(exp, seed).info.config_hash,
        "graph": {"name": "cora", "metric": "accuracy", "nodes": {"train": 140, "valid": 500, "test": 1000}},
        "metrics": {"valid_best": valid, "test_at_best": test},
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of GCN and GCN+HAM on cora; one summary of another configuration and one incomplete."""
    folder = tmp_path / "runs"
    cells = {"node/cora_gcn": [80, 81, 82], "node/cora_gcn_ham": [80.2, 81.4, 82]}
    texts = {
        f"{exp}/seed{seed}": json.dumps(summary(exp, seed, value, value + 3))
        for exp, values in cells.items()
        for seed, value in enumerate(values)
    }
    texts["node/cora_gcn_ham/seed3"] = json.dumps(summary("node/cora_gcn", 3, 99, 99))
    texts["node/cora_gcn_ham/seed4"] = '{"config_hash"'
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "summary.json").write_text(text)
    return folder


def test_the_page_by_hand(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences 0.2, 0.4, 0.0: mean 0.2, standard deviation 0.2, t 4.303 over sqrt(3): half width 0.50."""
    page = tmp_path / "page.md"
    assert COMMAND.main(["--runs", str(runs), "--to", str(page)]) == 0
    incomplete = runs / "node" / "cora_gcn_ham" / "seed4" / "summary.json"
    assert capsys.readouterr().err.splitlines() == [
        f"node_report.py: left out {incomplete}: it is incomplete: run it again"
    ]
    text = page.read_text()
    base, ham = (line for line in text.splitlines() if line.startswith("| cora |"))
    assert base == "| cora | GCN | 3 of 5 | 81.00 ± 1.00 | 81.32 ± 0.30 |  |  |  |  | 84.00 ± 1.00 |  |  |"
    assert "| +0.20 [-0.30, +0.70] | +1.0 of 500 | 2 / 1 / 0 | +0.12 |" in ham
    assert "0 of 1 differences with an interval exclude 0." in text
    assert "Without a run: cora (GCN+nHAM, GAT, GAT+HAM, GAT+nHAM, SAGE, SAGE+HAM" in text


def test_the_page_of_run_directories_is_written_among_them(runs: Path) -> None:
    committed = PAGE.read_text()
    assert COMMAND.main(["--runs", str(runs)]) == 0
    assert (runs / "node_reading.md").exists() and PAGE.read_text() == committed


def test_wrong_use_is_one_line_and_status_2(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "empty").mkdir()
    assert COMMAND.main(["--runs", str(runs / "empty")]) == 2
    assert "no node run in" in capsys.readouterr().err
    assert COMMAND.main(["--runs", str(runs), "--to", "/proc/page.md"]) == 2
    with pytest.raises(SystemExit, match="2"):
        COMMAND.main(["--runs", str(runs / "none")])
    assert "none is not a directory" in capsys.readouterr().err


def test_the_committed_page_is_that_of_the_committed_records(tmp_path: Path) -> None:
    assert COMMAND.main(["--to", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()


def test_changed_configurations_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock_file.lock.cache_clear()
    monkeypatch.setattr(lock_file, "configs_digest", lambda: "another")
    try:
        assert COMMAND.main(["--to", str(tmp_path / "page.md")]) == 2
    finally:
        lock_file.lock.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert "configs/ has changed since lock.json was written" in line
    assert not (tmp_path / "page.md").exists()
