"""Many node runs in one process: paired, resumed, with the data of one set missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import graph_files
import pytest

from ham.files import ROOT
from ham.report.search_grid import runs
from ham.sweep import local

pytest.importorskip("torch_geometric", reason="needs pip install -e '.[gnn]'")

Sweep = Callable[..., tuple[int, str, str]]
SMALL = """
import sys
from dataclasses import replace

sys.path[:0] = [{tests!r}]
import graph_files
import pytest

from ham.data.graph_files import SETS as sets
from ham.sweep.worker import load_main

classes = sets["chameleon"].classes  # which enters the configuration hash
graph_files.shrink_sets(pytest.MonkeyPatch(), "chameleon")
sets["chameleon"] = replace(sets["chameleon"], classes=classes)
main = load_main({train!r})
"""


@pytest.fixture
def small_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small chameleon for train.py, which knows its real size."""
    graph_files.write("chameleon", tmp_path / "graphs")
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    train = tmp_path / "small.py"
    train.write_text(SMALL.format(tests=str(ROOT / "tests"), train=str(ROOT / "train.py")))
    monkeypatch.setattr(local, "TRAIN", train)


@pytest.mark.slow
@pytest.mark.usefixtures("small_graphs")
def test_runs_in_one_process_are_paired_and_pairs_of_a_search_have_directories_of_their_own(
    sweep: Sweep, tmp_path: Path
) -> None:
    local_runs = "--seeds 7 --local --allow-dirty"
    status, out, err = sweep("--exp node/chameleon_gcn node/chameleon_gcn_ham", local_runs)
    assert (status, err) == (0, ""), err
    assert out.splitlines()[0] == "2 not launched" and out.splitlines()[-1] == "2 done"
    status, out, err = sweep("--grid node/chameleon_gcn --only alpha=200", local_runs)
    assert status == 0 and out.splitlines()[-1] == "2 done"
    folders = sorted((tmp_path / "runs" / "node").iterdir())
    altered = [run.name for run in runs("node/chameleon_gcn", [7]) if "alpha=200" in run.spec]
    names = ["node/chameleon_gcn", "node/chameleon_gcn_ham", *altered]
    assert {f"node/{folder.name}" for folder in folders} == {*names} and len(folders) == 4
    first = [json.loads((f / "seed7" / "metrics.jsonl").read_text().splitlines()[0]) for f in folders]
    assert len({line["train_loss"] for line in first}) == 1
    for folder in folders:
        provenance = json.loads((folder / "seed7" / "provenance.json").read_text())
        assert provenance["argv"][0].startswith("+exp=node/chameleon_gcn") and provenance["threads"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("small_graphs")
def test_missing_data_of_one_set_are_reported_once_and_stop_no_other(sweep: Sweep) -> None:
    exps = "--exp node/cora_gcn* node/chameleon_gcn"
    status, out, err = sweep(exps, "--seeds 7 --local --allow-dirty")
    assert status == 2 and out.splitlines()[-1] == "1 done, 3 failed"
    first, more = err.splitlines()
    assert first.startswith("failed: node/cora_gcn seed 7: train.py: ")
    assert more.startswith("failed: 2 runs more: train.py: ")
