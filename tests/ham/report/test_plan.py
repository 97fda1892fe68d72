"""Tables, figures and the lock file: mistakes in edited files are one line; an old lock file is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ham.report import plan
from ham.report import spec as catalog
from ham.report.spec import PlanError


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


def test_names_of_tables_and_figures() -> None:
    assert plan.table("4").name == "table04" and plan.figure("2a").name == "figure02a"
    for name, known in (("99", "table04"), ("nonsense", "control_str")):
        with pytest.raises(PlanError, match=f"choose one of .*{known}"):
            plan.table(name)
