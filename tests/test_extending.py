"""docs/extending.md, followed literally in a copy of the repository."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from pages import ROOT, code_words, commands, files, fragments
from run_commands import execute

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "extending.md"
LINES = [command.line for command in commands(PAGE)]
TRAINED = [line for line in LINES if "train.py" in line and "magnitude_ham" not in line]
COMPOSED = [
    line for line in LINES if "train.py" in line and "magnitude_ham" in line
]  # half a minute to train
RENDERED = [line for line in LINES if re.search("scripts/(sweep|tables)", line)]
TESTED = [line for line in LINES if "pytest" in line]
LOCK = """
# what scripts/lock.py does, for the new experiments alone: it composes every one
import json
from dataclasses import asdict
from ham.report.spec import LOCK, RunSpec, configs_digest
from ham.run.lock import info, tasks
content = json.loads(LOCK.read_text()) | {"configs": configs_digest(), "tasks": tasks()}
for exp in ("magnitude_ham_s90", "tabular_ham"):
    content[""][exp] = asdict(info(RunSpec(exp, 0)))
LOCK.write_text(json.dumps(content))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the files of the page, and the row in the contract test."""
    copy = tmp_path_factory.mktemp("repository")
    unneeded = shutil.ignore_patterns("__pycache__", ".venv")
    for folder in ("ham", "pruning", "configs", "scripts", "slurm", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=unneeded)
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    (copy / "results").mkdir()
    text = PAGE.read_text()
    for path, content in files(text).items():
        assert not (copy / path).exists(), path
        (copy / path).write_text(content)
    (row,) = fragments(text)
    (line,) = (word for word in code_words(text) if word.startswith("from pruning"))
    contract = copy / "tests" / "pruning" / "contract.py"
    before = contract.read_text()
    assert before.count("METHODS = {\n") == 1
    after = before.replace("METHODS = {\n", "METHODS = {\n" + row).replace(
        "\nEPOCHS, ", f"\n{line}\n\nEPOCHS, ", 1
    )
    contract.write_text(after)
    (copy / "partial_lock.py").write_text(LOCK)
    return copy


@pytest.fixture(scope="module")
def outcomes(repository: Path) -> dict[str, tuple[int, str]]:
    """Command line -> exit status and output."""
    jobs = {line: shlex.split(line)[1:] for line in TRAINED}
    jobs |= {line: ["compose", *shlex.split(line)[2:]] for line in COMPOSED}
    jobs |= {"lock": ["partial_lock.py"]} | {line: shlex.split(line)[1:] for line in RENDERED}
    # one optimizer of four: the page's command runs all
    jobs |= {line: [*shlex.split(line)[1:-1], "magnitude-sgd", "-p", "no:cacheprovider"] for line in TESTED}
    return dict(zip(jobs, execute(list(jobs.values()), repository, root=repository), strict=True))


def test_every_command_is_followed():
    assert set(LINES) - {*TRAINED, *COMPOSED, *RENDERED, *TESTED} == {"python scripts/lock.py"}


@pytest.mark.parametrize("line", [*TRAINED, *COMPOSED, "lock", *RENDERED, *TESTED])
def test_command_works(line: str, outcomes: dict[str, tuple[int, str]]):
    status, output = outcomes[line]
    assert status == 0, output


def test_the_new_sparsifier_prunes_to_its_target(repository: Path, outcomes: dict[str, tuple[int, str]]):
    pruned = [
        summary["sparsity"]
        for path in repository.glob("runs/*/seed0/summary.json")
        if (summary := json.loads(path.read_text()))["sparsity"]["target"] > 0
    ]
    assert len(pruned) == 2  # images and the new task
    for sparsity in pruned:
        assert sparsity["kept"] == sparsity["total"] - -(-8 * sparsity["total"] // 10)


def test_the_new_task_learns(repository: Path, outcomes: dict[str, tuple[int, str]]):
    summary = json.loads((repository / "runs" / "tabular_ham" / "seed0" / "summary.json").read_text())
    assert summary["metrics"]["accuracy_last"] > 90


def test_the_new_table_shows_its_rows(repository: Path, outcomes: dict[str, tuple[int, str]]):
    table = (repository / "results" / "tables" / "control_magnitude.md").read_text()
    assert "Magnitude pruning + HAM" in table and "not run" in table
