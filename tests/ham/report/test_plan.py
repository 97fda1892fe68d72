"""Tables, figures and the lock file: mistakes in edited files are one line; an old lock file is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ham.report import plan
from ham.report import spec as catalog
from ham.report.spec import PlanError, RunSpec, with_sources


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of configs/ that may be spoiled."""
    folder = tmp_path / "configs"
    shutil.copytree(plan.CONFIGS, folder)
    for module in (plan, catalog):
        monkeypatch.setattr(module, "CONFIGS", folder)
    monkeypatch.setattr(catalog, "LOCK", folder / "lock.json")
    plan.lock.cache_clear()
    yield folder
    plan.lock.cache_clear()


@pytest.mark.parametrize(
    ("file", "was", "now", "said"),
    [
        ("tables/table04.yaml", "metric: top1_last", "metrik: top1_last", "no 'metric'"),
        ("tables/table04.yaml", "paper: [73.87", "papr: [73.87", "papr"),
        ("tables/table04.yaml", "seeds: [0, 1, 2]", "seeds: [0, 1", "expected"),
        ("figures/figure02a.yaml", "metric: sign_flips", "metrc: sign_flips", "metrc"),
        ("figures/figure02a.yaml", "seeds: [0, 1, 2]", "seeds: 3", "not iterable"),
        ("figures/figure02a.yaml", "kind: curves", "kind: pie", "not pie"),
        ("tables/table14.yaml", "[2708, ", "[", "facts need a value for each of the 8 columns"),
        ("tables/table14.yaml", "  - [0, 1, 2, 3, 4]\n", "", "zip() argument 2 is shorter"),
        ("tables/table04.yaml", "columns: [", "columns: [none, ", "zip() argument 2 is longer"),
    ],
)
def test_mistakes_are_one_line_with_the_file(file: str, was: str, now: str, said: str, configs: Path) -> None:
    path = configs / file
    assert was in path.read_text()
    path.write_text(path.read_text().replace(was, now, 1))
    with pytest.raises(PlanError) as error:
        (plan.table if "table" in path.stem else plan.figure)(path.stem)
    message = str(error.value)
    assert message.startswith(f"configs/{file} cannot be used: ") and said in message and "\n" not in message


def test_a_lock_file_that_is_older_than_the_configurations_is_refused(configs: Path) -> None:
    assert plan.lock()[""]["dense"].epochs == 100
    plan.lock.cache_clear()
    table = configs / "tables" / "table04.yaml"
    table.write_text(table.read_text().replace("title: ", "title: My ", 1))  # shows runs, and alters none
    assert plan.lock()
    plan.lock.cache_clear()
    leaf = configs / "exp" / "dense.yaml"
    leaf.write_text(f"{leaf.read_text()}epochs: 90\n")
    with pytest.raises(PlanError, match=r"has changed since lock\.json .*: run python scripts/lock\.py$"):
        plan.lock()


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"configs": "x"})])
def test_a_damaged_lock_file_is_one_line(content: str, configs: Path) -> None:
    (configs / "lock.json").write_text(content)
    with pytest.raises(PlanError) as error:
        plan.lock()
    assert "\n" not in str(error.value)


def test_a_cell_a_panel_and_a_figure_by_default() -> None:
    assert plan.Cell("a", "b") == plan.Cell("a", "b", (), False, (), "")
    assert plan.Panel("a", "b") == plan.Panel("a", "b", 1.0, 1)
    assert plan.figure("9").metric == "top1_last" and plan.figure("9").chosen is None


def test_the_runs_of_a_table_are_those_of_its_cells_and_seeds() -> None:
    table = plan.table("14")
    counts = Counter(run.exp for run in table.runs())
    assert counts["node/cora_gcn"] == 5 and counts["node/wikics_gcn"] == 3
    assert {run.seed for run in table.runs(seeds=(7,))} == {7}
    assert len(table.runs(seeds=(7,))) == len(counts)
    assert {run.demo for run in plan.table("4").runs(demo="digits")} == {"digits"}


def test_the_runs_of_a_grid_are_named_experiments_where_there_are_some() -> None:
    grid = plan.figure("11")
    assert grid.points[50, 0.001] == RunSpec("cifar100_ham", 0, ("ham.alpha=50", "ham.beta=0.001"))
    for runs, seeds in ((grid.runs(), {0}), (grid.runs(seeds=(3, 4)), {3, 4})):
        assert {run.seed for run in runs} == seeds and len(runs) == 35 * len(seeds)
        named = {run.exp for run in runs if not run.overrides}
        assert {"cifar100", "cifar100_ham"} <= named
    assert grid.chosen == (200, 0.016) and grid.has_scale("") and not grid.has_scale("smollm")
    assert {run.demo for run in plan.figure("2a").runs(demo="digits")} == {"digits"}
    runs = plan.every_run()
    assert len(runs) == len({*runs}) and {RunSpec("cifar100_ham", 0), RunSpec("random_s90", 2)} <= {*runs}


def test_a_run_in_words_and_on_the_command_line() -> None:
    run = RunSpec("dense", 2, demo="digits")
    assert (str(run), str(RunSpec("dense", 2))) == ("dense seed 2 (digits)", "dense seed 2")
    assert run.argv == ["+exp=dense", "+demo=digits", "seed=2"]
    point = plan.figure("11").points[50, 0.001]
    assert point.argv == ["+exp=cifar100_ham", "ham.alpha=50", "ham.beta=0.001", "seed=0"]
    assert point.name == f"cifar100_ham-{point.info.config_hash[:8]}" and run.name == "dense-digits"
    assert run.folder(Path("runs")) == Path("runs/dense-digits/seed2")
    source = RunSpec("mask_str_s90", 2, demo="digits").depends_on
    assert source == RunSpec("str_s90", 2, demo="digits") and run.depends_on is None


def test_sources_of_masks_come_first_and_each_once() -> None:
    masked, source = RunSpec("mask_str_s90", 2), RunSpec("str_s90", 2)
    assert with_sources([masked, RunSpec("dense", 0), source]) == [source, masked, RunSpec("dense", 0)]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (RunSpec("node/cora_gcn", 0, demo="digits"), "node/cora_gcn has no demo=digits: omit --demo"),
        (RunSpec("nothing", 0), "lock.json does not contain 'nothing': run python scripts/lock.py"),
        (
            RunSpec("nothing", 0, demo="digits"),
            "lock.json does not contain 'nothing' at demo=digits: run python scripts/lock.py",
        ),
    ],
)
def test_a_run_that_is_not_known_is_named_with_the_cure(run: RunSpec, said: str) -> None:
    with pytest.raises(PlanError) as error:
        _ = run.info
    assert str(error.value) == said


def test_names_of_tables_and_figures() -> None:
    names = {"4": "table04", "table4": "table04", "table04": "table04", "12": "table12", "control": "control"}
    assert {name: plan.table_name(name) for name in names} == names
    names = {"2a": "figure02a", "figure2a": "figure02a", "11": "figure11", "forest": "forest", "a": "a"}
    assert {name: plan.figure_name(name) for name in names} == names
    with pytest.raises(PlanError, match=r"unknown figure 'figure03': .*; scripts/figures.py --theory draws"):
        plan.figure("3")
    with pytest.raises(PlanError, match=r"unknown table 'table99': [^;]*$"):
        plan.table("99")
    assert plan.table("4").name == "table04" and plan.figure("2a").name == "figure02a"
    for name, known in (("99", "table04"), ("nonsense", "control_str")):
        with pytest.raises(PlanError, match=f"choose one of .*{known}"):
            plan.table(name)
