"""configs/lock.json: what scripts/lock.py writes without composing is what composing says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ham.report import search_grid
from ham.report.plan import figure
from ham.report.spec import LOCK, RunSpec, lock, tasks
from ham.run.config import config_hash, load
from ham.run.main import run_directory

ALTERED = [
    search_grid.run("node/cora_sage", "ham", (1, 0.01), 0),
    search_grid.run("node/squirrel_gat", "nham", (-100, 0), 0),
    search_grid.run("node/pubmed_gcn", "ham", (0, 0.1), 0),
    next(run for run in figure("11").points.values() if run.overrides),
]


@pytest.mark.parametrize("run", ALTERED, ids=str)
def test_altered_runs_have_the_hash_and_directory_of_their_command_line(run: RunSpec) -> None:
    cfg = load(run.argv)
    known = replace(cfg, seed=3)
    assert config_hash(cfg) == run.info.config_hash
    assert run_directory(known, config_hash(known)) == replace(run, seed=3).folder(Path("runs"))


def test_every_run_of_every_search_is_known() -> None:
    bases = search_grid.bases()
    assert len(bases) == 39 and set(bases) <= set(lock()[""])
    for base in bases:
        runs = search_grid.runs(base, (0, 1))
        assert len({run.info.config_hash for run in runs}) == 27 and len({*runs}) == 54
        assert [run.exp for run in runs if not run.overrides and run.seed == 0] == [
            base,
            f"{base}_ham",
            f"{base}_nham",
        ]


def test_tasks_say_what_is_reported() -> None:
    assert RunSpec("dense", 0).info.task == "images" and RunSpec("node/cora_gcn", 0).info.task == "nodes"
    assert RunSpec("dense", 0).info.reported == ("top1_last", "top1_best")
    assert tasks()["nodes"].reported == ("valid_last", "valid_best") and not tasks()["nodes"].stores_history


def test_the_file_has_a_line_for_each_run() -> None:
    lines = LOCK.read_text().splitlines()
    runs = sum(map(len, lock().values()))
    assert sum('"config_hash"' in line for line in lines) == runs == "".join(lines).count('"config_hash"')
