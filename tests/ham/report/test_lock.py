"""configs/lock.json: what scripts/lock.py writes without composing is what composing says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from commands import script

from ham.report import plan, search_grid
from ham.report.plan import figure, table
from ham.report.spec import LOCK, PlanError, RunSpec, lock, tasks
from ham.run.config import ConfigError, config_hash, load
from ham.run.main import run_directory

ALTERED = [
    search_grid.run("node/cora_sage", "ham", (1, 0.01), 0),
    search_grid.run("node/squirrel_gat", "nham", (-100, 0), 0),
    search_grid.run("node/pubmed_gcn", "ham", (0, 0.1), 0),
    search_grid.run("graph/ogbg_code2", "ham", (100, 0.1), 0),
    next(run for run in figure("11").points.values() if run.overrides),
]


@pytest.mark.parametrize("run", ALTERED, ids=str)
def test_altered_runs_have_the_hash_and_directory_of_their_command_line(run: RunSpec) -> None:
    cfg = load(run.argv)
    known = replace(cfg, seed=3)
    assert config_hash(cfg) == run.info.config_hash
    assert run_directory(known, config_hash(known)) == replace(run, seed=3).folder(Path("runs"))


def test_every_run_of_every_search_is_known() -> None:
    """Nodes: 25 pairs, beta only and the baseline; graph classification: no negative alpha."""
    bases = search_grid.bases()
    assert len(bases) == 43 and set(bases) <= set(lock()[""])
    for base in bases:
        is_node = base.startswith("node/")
        methods = ("ham", "nham") if is_node else ("ham",)
        count = 27 if is_node else 15
        runs = search_grid.runs(base, (0, 1))
        assert search_grid.methods(base) == methods and len(search_grid.pairs(base)) == count
        assert len({run.info.config_hash for run in runs}) == count and len({*runs}) == 2 * count
        assert [run.exp for run in runs if not run.overrides and run.seed == 0] == [
            base,
            *(f"{base}_{method}" for method in methods),
        ]
        alphas = {float(text.removeprefix("ham.alpha=")) for run in runs for text in run.overrides[:1]}
        assert (min(alphas) < 0) == is_node and max(alphas) == 200


def test_the_bases_of_node_classification_are_the_recipes_of_tables_14_and_15() -> None:
    """In the order in which these name them, with their numbers of seeds."""
    shown = {cell.exp: cell.seeds for number in ("14", "15") for cell in table(number).cells}
    expected = {exp: seeds for exp, seeds in shown.items() if not exp.endswith("_ham")}
    assert len(expected) == 39 and list(expected) == search_grid.node_bases()
    assert expected == {base: search_grid.seeds()[base] for base in expected}


def test_published_values_are_found_in_the_experiment_and_in_the_group_that_it_selects() -> None:
    composed = {exp: load([f"+exp={exp}"]).ham for exp in ("node/cora_sage_nham", "graph/ogbg_code2_ham")}
    assert {exp: (ham.alpha, ham.beta) for exp, ham in composed.items()} == {
        exp: search_grid.published(exp) for exp in composed
    }
    with pytest.raises(PlanError, match=r"configs/exp/graph/ogbg_ppa\.yaml cannot be used: it has no"):
        search_grid.published("graph/ogbg_ppa")


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        (["hams"], "unknown search 'hams': choose from ham, nham"),
        (["nham"], "no experiment has siblings _nham: remove search"),
        ("ham", "search must be a list of methods, got 'ham'"),
    ],
)
def test_a_wrong_search_of_a_table_is_one_line(
    search: object, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = plan.read_yaml
    monkeypatch.setattr(
        plan, "read_yaml", lambda path: read(path) | ({"search": search} if path.stem == "table12" else {})
    )
    search_grid.searches.cache_clear()
    with pytest.raises(PlanError, match=r"configs/tables/table12\.yaml") as error:
        search_grid.bases()
    assert complaint in str(error.value) and "\n" not in str(error.value)
    search_grid.searches.cache_clear()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PlanError("no such file"), "no such file"),
        (OSError(13, "denied", "x"), "x cannot be read or written (denied): change its permissions"),
        (ConfigError("unknown option"), "unknown option"),
    ],
)
def test_a_wrong_configuration_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = script("lock")

    def fail() -> str:
        raise error

    monkeypatch.setattr(command, "lock_text", fail)
    assert command.main([]) == 2
    assert capsys.readouterr().err == f"lock.py: {line}\n"


def test_tasks_say_what_is_reported() -> None:
    assert RunSpec("dense", 0).info.task == "images" and RunSpec("node/cora_gcn", 0).info.task == "nodes"
    assert RunSpec("dense", 0).info.reported == ("top1_last", "top1_best")
    assert RunSpec("graph/ogbg_ppa", 0).info.task == "graphs"
    assert tasks()["nodes"].reported == tasks()["graphs"].reported == ("valid_last", "valid_best")
    assert not tasks()["nodes"].stores_history


def test_the_file_has_a_line_for_each_run() -> None:
    lines = LOCK.read_text().splitlines()
    runs = sum(map(len, lock().values()))
    assert sum('"config_hash"' in line for line in lines) == runs == "".join(lines).count('"config_hash"')
