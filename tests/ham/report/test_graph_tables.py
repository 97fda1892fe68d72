"""Table 12 at the paper's scale and at 20 epochs: paired rows, cells that are not run, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ham.report import plan, records, table_files
from ham.report.scales import SCALES
from ham.report.spec import RunSpec
from ham.report.tables import build_table


def test_table_12_compares_ham_with_gcn_plus_seed_by_seed_at_each_scale(
    tmp_path: Path, make_summary: Callable[..., dict[str, Any]]
) -> None:
    """Differences 1, 2, 3: mean 2, Student's interval 2 +- 4.303 / sqrt(3). One set has runs at 20 epochs."""
    assert not build_table("table12", {}).cells[0].ours and table_files.render_table("table12", {})
    assert table_files.render_table("table12", {}, "epochs20") is None  # nothing has been run
    for seed in range(3):
        for exp, valid in (("graph/ogbg_molhiv", 80.0), ("graph/ogbg_molhiv_ham", 81.0 + seed)):
            run = RunSpec(exp, seed, demo="epochs20")
            graphs = {"name": "ogbg-molhiv", "metric": "rocauc", "graphs": {"train": 32901}}
            metrics = {"valid_best": valid, "valid_last": valid - 1, "test_at_best": 75.0}
            path = records.write(run, make_summary(run, graphs=graphs, metrics=metrics), None, tmp_path)
            assert path == tmp_path / "epochs20" / exp / f"seed{seed}.json"
            assert json.loads(path.read_text())["graphs"] == graphs
    loaded, problems = records.read_all("epochs20", tmp_path)
    table = build_table("table12", loaded, "epochs20")
    cells = dict(zip(plan.table("12").columns, table.rows[1].cells, strict=True))
    half = 4.302653 / math.sqrt(3)
    assert len(loaded) == 6 and not problems and cells["ogbg-ppa"].ours is None
    assert cells["ogbg-molhiv"].paired.value == pytest.approx(2)
    assert cells["ogbg-molhiv"].paired.interval == pytest.approx((2 - half, 2 + half), abs=1e-5)
    text = table_files.render_table("table12", loaded, "epochs20").text["md"]
    assert "the paper's GCN+ on all graphs of the set, 20 epochs, on a CPU" in text
    assert "| GCN+ | ours | not run | not run | 80.00 ± 0.00 (n = 3) | not run |" in text
    assert "82.37" not in text


def test_table_12_exists_at_the_scales_of_graph_classification_alone() -> None:
    assert [demo for demo in SCALES if plan.table("12").has_scale(demo)] == ["epochs20"]
    assert [name for name in plan.tables() if plan.table(name).has_scale("epochs20")] == ["table12"]
    infos = [RunSpec(cell.exp, 0, demo="epochs20").info for cell in plan.table("12").cells]
    assert {info.epochs for info in infos} == {20} and {info.base for info in infos} == {
        *SCALES["epochs20"].models
    }
