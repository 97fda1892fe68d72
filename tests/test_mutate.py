"""tests/mutate.py on a small repository: which mutants it makes, which tests it runs, what survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mutate
import pytest
import yaml
from covering import CoveringTests
from mutants import mutants_of, related_tests

from ham.files import ROOT

MODULE = """\
def clipped(value, bound):
    \"\"\"At most `bound`.\"\"\"
    if value > bound:
        return bound
    return value
"""
FILES = {
    "pruning/__init__.py": "from .clipping import clipped\n",
    "pruning/clipping.py": MODULE,
    "pruning/used.py": "from . import inner\nfrom .clipping import clipped\n",
    "pruning/inner.py": "LIMIT = 4\n",
    "pruning/alone.py": "LIMIT = 3\n",
    "tests/pruning/helper.py": "from pruning import clipped\n",
    "tests/pruning/test_clipping.py": "from pruning.clipping import clipped\n\n\n"
    "def test_clipped():\n    assert [clipped(n, 3) for n in (1, 3, 5)] == [1, 3, 3]\n",
    "tests/pruning/test_other.py": "import helper\n\n\ndef test_broken():\n    assert helper is None\n",
    "tests/pruning/test_user.py": "import pruning.used\n",
}
SURVIVOR = {"file": "pruning/clipping.py", "before": "if value > bound:", "after": "if (value >= bound):"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    subprocess.run(["git", *identity, "commit", "-qm", "all"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = a < b", {"x = (a <= b)"}),
        ("x = a - b", {"x = (a + b)"}),
        ("x = a and b", {"x = (a or b)"}),
        ("x = not a", {"x = (a)"}),
        ("x = -a", {"x = (a)"}),
        ("x = True", {"x = (False)"}),
        ("x = a[3]", {"x = a[(4)]", "x = a[(2)]"}),
        ("x = 0.5", {"x = (1.5)", "x = (-0.5)"}),
        ("x = f(a, b)", {"x = f((b), (a))", "x = (f(b, a))"}),
        ("f(a)", {"pass"}),
        ("a.b = c", {"pass"}),
        ("a += b", {"pass"}),
        ("raise ValueError(f'{a + 1} is odd')", {"pass"}),
        ("x = zip(*a, strict=True)", set()),
        ("x = max(a, b)", set()),
        ("x: TypeAlias = A | B", set()),
        ("x = torch.minimum(a, b)", set()),
        ("x: int = a", set()),
        ("'A docstring of 3 words.'", set()),
        ("x = f'{a + 1}'", set()),
    ],
)
def test_mutants_of_a_line(line: str, expected: set[str]) -> None:
    found = {mutant.after for mutant in mutants_of("a.py", f"{line}\n")}
    assert found == expected or (len(expected) > 1 and found and found < expected)


def test_mutants_of_a_function_change_one_place_each() -> None:
    mutants = mutants_of("pruning/clipping.py", MODULE)
    assert [(mutant.line, mutant.after) for mutant in mutants] == [
        (3, "if (not (value > bound)):"),
        (3, "if (value >= bound):"),
        (4, "return None"),
        (5, "return None"),
    ]
    for mutant in mutants:
        pairs = zip(MODULE.splitlines(), mutant.source.splitlines(), strict=True)
        assert [n for n, (old, new) in enumerate(pairs, start=1) if old != new] == [mutant.line]


def test_the_tests_of_a_module_import_it_or_what_imports_it(repository: Path) -> None:
    own = ["tests/pruning/test_clipping.py", "tests/pruning/test_other.py"]
    assert (
        related_tests(repository, "pruning/clipping.py") == own
    )  # by its name, and by a helper and the package
    assert related_tests(repository, "pruning/used.py") == ["tests/pruning/test_user.py"]
    assert related_tests(repository, "pruning/inner.py") == [
        "tests/pruning/test_user.py"
    ]  # of what imports it
    assert len(related_tests(repository, "pruning/alone.py")) == 3  # all of the folder


def test_survivors_are_printed_kept_and_listed_as_equivalent(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> tuple[int, str]:
        return mutate.main(["pruning/clipping.py", "--jobs", "2"], repository), capsys.readouterr().out

    status, out = run()
    assert status == 1 and "3 of 4 mutants killed: 75.0 %" in out
    assert "survived: pruning/clipping.py:3\n  - if value > bound:\n  + if (value >= bound):\n" in out
    assert "left out, because they fail without a mutant: tests/pruning/test_other.py::test_broken" in out
    assert all((repository / name).read_text() == text for name, text in FILES.items())
    lines = [json.loads(line) for line in (repository / ".mutants.jsonl").read_text().splitlines()]
    assert sorted(line["status"] for line in lines) == ["killed", "killed", "killed", "survived"]
    status, out = run()
    assert status == 1 and "4 mutants, 4 of them finished earlier" in out
    test = repository / "tests" / "pruning" / "test_clipping.py"
    test.write_text(test.read_text() + "\n")
    assert "4 mutants, 3 of them finished earlier" in run()[1]  # a changed test may kill a survivor
    listed = repository / "tests" / "equivalent_mutants.yaml"
    listed.write_text(yaml.safe_dump([SURVIVOR | {"reason": "both return the bound"}]))
    status, out = run()
    assert status == 0 and "3 of 3 mutants killed: 100.0 %" in out


@pytest.mark.parametrize(
    ("entry", "argv", "complaint"),
    [
        ({}, ["nowhere"], "nowhere does not exist: give files or folders of"),
        ({}, ["--base", "HEAD"], "no module changed since HEAD: give --base COMMIT, or folders"),
        ({}, ["--base", "nothing"], "git diff: "),
        (SURVIVOR, ["pruning"], "has no reason: write one"),
        ({**SURVIVOR, "after": "x", "reason": "y"}, ["pruning"], "has no mutant 'if value > bound:' -> 'x'"),
    ],
)
def test_wrong_use_is_one_line(
    entry: dict, argv: list[str], complaint: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if entry:
        (repository / "tests" / "equivalent_mutants.yaml").write_text(yaml.safe_dump([entry]))
    assert mutate.main(argv, repository) == 2
    assert complaint in capsys.readouterr().err.splitlines()[0]


def test_test_files_that_cannot_run_are_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "tests" / "pruning" / "test_user.py").write_text("import nothing, pruning.used\n")
    (repository / "pruning" / "used.py").write_text("LIMIT = 4\n")
    assert mutate.main(["pruning/used.py"], repository) == 2
    assert "no test of pruning/used.py can run without a mutant: pytest" in capsys.readouterr().err


def test_modules_changed_since_a_commit_are_the_default(repository: Path) -> None:
    (repository / "pruning" / "used.py").write_text("LIMIT = 4\n")
    (repository / "tests" / "pruning" / "helper.py").write_text("")
    assert mutate.targets(repository, [], "HEAD") == ["pruning/used.py"]


@pytest.mark.parametrize(
    ("options", "limit", "expected"),
    [
        (["--timeout=1"], 60.0, (mutate.KILLED, ["test_endless.py::test_endless"])),
        ([], 1.0, (mutate.UNDECIDED, [])),
    ],
)
def test_an_endless_test_kills_and_endless_tests_decide_nothing(
    options: list[str], limit: float, expected: tuple[str, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "test_endless.py").write_text("def test_endless():\n    while True:\n        pass\n")
    assert mutate.run_pytest(tmp_path, [*options, "test_endless.py"], limit) == expected


def test_what_is_undecided_is_not_counted_as_killed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutate, "run_pytest", lambda tree, arguments: (mutate.UNDECIDED, []))
    assert mutate.main(["pruning/clipping.py"], repository) == 1
    out = capsys.readouterr().out
    assert "undecided: pruning/clipping.py:3" in out and "0 of 4 mutants killed: 0.0 %" in out
    monkeypatch.undo()
    assert mutate.main(["pruning/clipping.py"], repository) == 1  # what is undecided runs again
    assert "4 mutants, 0 of them finished earlier" in capsys.readouterr().out


def test_a_test_that_the_mutant_made_kills_it(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "pruning" / "alone.py").write_text("LIMIT = 3\n")
    (repository / "tests" / "pruning" / "test_alone.py").write_text(
        "import pytest\nfrom pruning.alone import LIMIT\n\n\n"
        "@pytest.mark.parametrize('x', range(LIMIT))\ndef test_small(x):\n    assert x < 3\n"
    )
    status = mutate.main(["pruning/alone.py"], repository)
    out = capsys.readouterr().out
    assert "LIMIT = (2)" not in out or status == 1
    assert "survived: pruning/alone.py:1\n  - LIMIT = 3\n  + LIMIT = (4)" not in out


def test_a_conftest_that_the_mutant_breaks_kills_it(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "pruning" / "used.py").write_text("def number():\n    return 1\n")
    (repository / "tests" / "conftest.py").write_text(
        "from pruning.used import number\n\nassert number() == 1\n"
    )
    (repository / "tests" / "pruning" / "test_used.py").write_text(
        "import pruning.used\n\n\ndef test_nothing():\n    pass\n"
    )
    assert mutate.main(["pruning/used.py"], repository) == 0
    assert "2 of 2 mutants killed" in capsys.readouterr().out


def test_a_crash_that_also_happens_without_the_mutant_decides_nothing(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "tests" / "pruning" / "test_used.py").write_text(
        "import os\n\nimport pruning.used\n\n\ndef test_crash():\n    os._exit(3)\n"
    )
    (repository / "pruning" / "used.py").write_text("def number():\n    return 1\n")
    assert mutate.main(["pruning/used.py"], repository) == 1
    assert "undecided: pruning/used.py:2" in capsys.readouterr().out


def test_a_line_of_a_log_is_no_test() -> None:
    log = "ERROR    ham:test_m.py:4 boom\n"
    summary = "=== short test summary info ===\nFAILED tests/test_a.py::test_b[x - y] - assert 1 == 2\n"
    summary += "ERROR tests/test_c.py\n"
    assert mutate.failing(log + summary) == ["tests/test_a.py::test_b[x - y]", "tests/test_c.py"]
    assert mutate.failing(log) == []


def test_missing_files_of_contexts_and_times_are_one_line(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, complaint in (
        (["--contexts", "none"], "--contexts none is not a file"),
        (["--times", str(repository / "pruning" / "used.py")], "--times needs --contexts"),
    ):
        assert mutate.main(["pruning", *argv], repository) == 2
        assert complaint in capsys.readouterr().err


def test_tests_that_execute_the_line_run_first(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = repository / "contexts"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--cov=pruning", "--cov-context=test"]
    environment = os.environ | {"COVERAGE_FILE": str(data), "PYTHONPATH": str(repository)}
    subprocess.run(
        [sys.executable, *command, "tests/pruning/test_clipping.py"], cwd=repository, env=environment
    )
    clipped = "tests/pruning/test_clipping.py::test_clipped"
    mutants = mutants_of("pruning/clipping.py", MODULE)
    covering, related = CoveringTests(data), related_tests(repository, "pruning/clipping.py")
    assert [covering.of(mutant, related) for mutant in mutants] == [[clipped]] * 4
    assert covering.of(mutants_of("pruning/alone.py", "LIMIT = 3\n")[0], related) == []
    times = repository / "times.xml"
    case = '<testcase classname="tests.pruning.test_clipping" name="test_clipped" time="7"/>'
    times.write_text(f"<testsuites>{case}</testsuites>")
    assert CoveringTests(data, times, seconds=7).of(mutants[0], related) == [clipped]
    assert CoveringTests(data, times, seconds=6).of(mutants[0], related) == []

    ran: list[list[str]] = []

    def run(tree: Path, arguments: list[str]) -> tuple[str, list[str]]:
        ran.append([argument for argument in arguments if argument.startswith("tests")])
        return mutate.SURVIVED, []

    monkeypatch.setattr(mutate, "run_pytest", run)
    assert mutate.main(["pruning/clipping.py", "--contexts", str(data)], repository) == 1
    assert ran == [[clipped], related] * 4  # all related files of a survivor


def test_the_listed_mutants_exist_and_have_reasons() -> None:
    listed = yaml.safe_load((ROOT / "tests" / "equivalent_mutants.yaml").read_text())
    mutants = [
        m for file in {entry["file"] for entry in listed} for m in mutants_of(file, (ROOT / file).read_text())
    ]
    assert len(mutants) - len(mutate.without_equivalent(mutants, listed)) >= len(listed)
