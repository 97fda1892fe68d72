"""The commands of the README and docs/ work: CHECKS has a row for each, and one without a row fails."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Command, commands
from run_commands import Jobs, execute

COMMANDS = [command for page in PAGES for command in commands(page) if page.name != "extending.md"]


def compose(words: list[str], tmp: Path) -> Jobs:
    """The arguments of train.py form a valid configuration; training takes longer or needs a GPU."""
    script = next(i for i, word in enumerate(words) if word.endswith(("train.py", ".sbatch")))
    own = [word for word in words[script + 1 :] if word != "-m"]
    return [["compose", *(re.sub(r"^(seed=\d+),.*", r"\1", word) for word in own)]]


def run(*extra: str) -> Callable[[list[str], Path], Jobs]:
    """The command runs as it is, with `extra` arguments so that it writes to a temporary folder."""
    return lambda words, tmp: [[*words[1:], *(word.replace("TMP", str(tmp)) for word in extra)]]


def sweep(words: list[str], tmp: Path) -> Jobs:
    """The selection is counted, whatever is to be done with it."""
    words = words[1 : words.index("--")] if "--" in words else words[1:]
    takes_value = ("--jobs", "--seconds", "--pack")
    drop = {i + 1 for i, word in enumerate(words) if word in takes_value}
    modes = ("--submit", "--local", "--again", "--brief", "--dry-run", *takes_value)
    kept = [word for i, word in enumerate(words) if i not in drop and word not in modes]
    return [[*kept, *([] if "--status" in kept else ["--brief"]), "--runs", str(tmp)]]


def help_only(words: list[str], tmp: Path) -> Jobs:
    """It needs the network, data or minutes: its options are checked below."""
    return []


def target(words: list[str], tmp: Path) -> Jobs:
    """make targets exist."""
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words[1:])
    return []


def extras(words: list[str], tmp: Path) -> Jobs:
    """Installing takes minutes: the extras exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"\.\[([\w,]+)\]", " ".join(words))
    assert all(extra in project["optional-dependencies"] for extra in ",".join(named).split(",") if extra)
    return []


def exists(words: list[str], tmp: Path) -> Jobs:
    """It needs a GPU, the network or root: the script exists and mentions the options."""
    script = next(word for word in words if word.endswith(".sh"))
    own = words[: words.index("--")] if "--" in words else words
    text = (ROOT / script).read_text()
    assert all(re.search(rf"(?<![\w-]){word}\b", text) for word in own if word.startswith("--"))
    return []


CHECKS: dict[str, Callable[[list[str], Path], Jobs]] = {
    r"python train\.py --list": run(),
    r"(python|torchrun .*|srun .* python|sbatch) .*(train\.py|slurm/train\.sbatch) .*": compose,
    r"python scripts/sweep\.py .*": sweep,
    r"python scripts/collect\.py": run("TMP", "--results", "TMP"),
    r"python scripts/collect\.py --demo .*": run("TMP", "--results", "TMP"),
    r"python scripts/collect\.py out/.*": help_only,  # an archive that another command writes
    r"python scripts/tables\.py.*": run("--to", "TMP"),
    r"python scripts/study\.py .*": run("--to", "TMP"),
    r"python scripts/node_report\.py": run("--to", "TMP/reading.md"),
    r"python scripts/report\.py": help_only,  # writes among the results; tests/ham/site runs it
    r"python scripts/report\.py --to .*": help_only,
    r"python scripts/index\.py": help_only,  # writes among the results; test_index.py runs it
    r"python scripts/node_grid\.py .*": help_only,  # needs the runs of a search
    r"python scripts/figures\.py": run("--to", "TMP"),
    r"python scripts/figures\.py --theory": run("--figure", "1", "--to", "TMP"),
    r"python scripts/(theory_runs|export|prepare_\w+|write_beton)\.py.*": help_only,
    r"python scripts/lock\.py": help_only,  # composes every experiment; tests/scripts compares the result
    r"python benchmarks/\w+\.py.*": help_only,
    r"make .*": target,
    r"pip (install|wheel) .*": extras,
    r"scripts/install_ffcv\.sh": exists,
    r"(HAM_DATA=DIR )?benchmarks/gpu\.sh.*": exists,
    r"\. \.venv/bin/activate|\.venv/bin/pre-commit install|export HAM_DATA=.*": lambda words, tmp: [],
    r"git clone https://.*": lambda words, tmp: [],  # it needs the network
    r"\. slurm/site\.sh": exists,
}


def check_of(line: str) -> Callable[[list[str], Path], Jobs]:
    """The first row whose pattern matches the line."""
    for pattern, check in CHECKS.items():
        if re.fullmatch(pattern, line):
            return check
    raise AssertionError(f"no row of CHECKS matches {line!r}: say how it is checked")


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all commands run."""
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(scope="module")
def outcomes(tmp: Path) -> dict[tuple[str, ...], tuple[int, str]]:
    """Status and output of what the commands of all pages ask for, each distinct job once."""
    jobs: dict[tuple[str, ...], None] = {}
    for command in COMMANDS:
        with suppress(AssertionError):  # the command's own test reports it
            jobs |= dict.fromkeys(map(tuple, jobs_of(command, tmp)))
        jobs |= dict.fromkeys(help_of(script) for script in [script_of(command)] if script)
    return dict(zip(jobs, execute([list(job) for job in jobs], tmp), strict=True))


def jobs_of(command: Command, tmp: Path) -> Jobs:
    """What has to be run to check a command line; the rest of the check is done here."""
    words = shlex.split(command.line.replace("$HAM_DATA", "DATA"))
    return check_of(command.line)(words, tmp)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_command_works(command: Command, tmp: Path, outcomes: dict[tuple[str, ...], tuple[int, str]]):
    for job in jobs_of(command, tmp):
        status, output = outcomes[tuple(job)]
        assert status == 0, output


def script_of(command: Command) -> str:
    """The script with options of its own that a command line calls, or nothing."""
    script = re.match(r"python ((?:scripts|benchmarks)/(?!lock)\w+\.py)", command.line)
    return script[1] if script else ""


def help_of(script: str) -> tuple[str, ...]:
    """The job that prints a script's help, with that of its first argument where it has commands."""
    return (script, *(["cifar100"] if "prepare_data" in script else []), "--help")


@pytest.mark.parametrize("command", [c for c in COMMANDS if script_of(c)], ids=str)
def test_documented_options_exist(command: Command, outcomes: dict[tuple[str, ...], tuple[int, str]]):
    status, text = outcomes[help_of(script_of(command))]
    assert status == 0, text
    options = re.findall(r" (--[a-z][\w-]*)", command.line.split(" -- ")[0])
    assert not [option for option in options if option not in text]
