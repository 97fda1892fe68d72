"""Scripts whose output goes nowhere, and options that a shell has left empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ham import command_line
from ham.command_line import Parser

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "tables.py": ["--table", "4", "--demo", "digits", "--to", "TMP"],
    "study.py": ["cifar16", "--to", "TMP"],
    "node_report.py": ["--to", "TMP/page.md"],
    "sweep.py": ["--table", "4"],
    "prepare_data.py": ["--help"],
}


def start(name: str, argv: list[str], *flags: str, **streams: object) -> subprocess.Popen:
    command = [sys.executable, *flags, str(ROOT / "scripts" / name), *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **streams)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_output_that_cannot_be_written_is_one_line(name: str, flags: list[str], tmp_path: Path) -> None:
    argv = [text.replace("TMP", str(tmp_path)) for text in SCRIPTS[name]]
    with open("/dev/full", "w") as full, start(name, argv, *flags, stdout=full) as full_run:
        said = full_run.communicate()[1].splitlines()
    assert full_run.returncode == 1
    line = f"{name}: its output cannot be written (No space left on device): send it to another file"
    assert said[-1] == line and not [text for text in said[:-1] if not text.startswith("sweep.py: queued")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_reader_that_leaves_ends_a_script_silently(name: str, tmp_path: Path) -> None:
    argv = [text.replace("TMP", str(tmp_path)) for text in SCRIPTS[name]]
    reader, writer = os.pipe()
    os.close(reader)
    with start(name, argv, "-u", stdout=writer) as left:
        os.close(writer)
        said = left.communicate()[1].splitlines()
    assert left.returncode == 141
    assert not [text for text in said if not text.startswith("sweep.py: queued")]


@pytest.mark.parametrize("given", ["--to=", "--to", "--results="])
def test_an_empty_path_is_an_error(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="some.py")
    for option in ("--to", "--results"):
        parser.add_argument(option, type=Path)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([given, *([""] if given == "--to" else [])])
    option = given.rstrip("=")
    line = f"some.py: argument {option}: the path is empty: give one, or omit the option\n"
    assert ended.value.code == 2 and capsys.readouterr().err == line
    assert parser.parse_args(["--to", "a b"]).to == Path("a b")


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_every_script_reports_in_one_line(script: str) -> None:
    text = (ROOT / "scripts" / script).read_text()
    assert "argparse.ArgumentParser(" not in text, "take ham.command_line.Parser"
    assert "sys.exit(run_script(main))" in text


def test_an_error_of_a_file_is_the_scripts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["some.py"])

    def main(argv: list[str]) -> int:
        raise FileNotFoundError(2, "No such file or directory", "records")

    with pytest.raises(FileNotFoundError, match="records"):
        command_line.run_script(main)


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("prepare_data.py", ["commonsense", "--to", "FILE"]),
        ("prepare_data.py", ["cifar100", "--to", "FILE/new"]),
        ("prepare_graphs.py", ["cora", "--to", "FILE"]),
        ("export.py", ["run", "--to", "FILE"]),
        ("export.py", ["run", "--to", "FILE/new"]),
    ],
)
def test_a_file_where_a_folder_is_wanted(script: str, argv: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with start(script, [text.replace("FILE", str(file)) for text in argv], stdout=subprocess.PIPE) as run:
        out, err = run.communicate()
    target = argv[-1].replace("FILE", str(file))
    line = f"{script}: --to {target} cannot be written: {file}: it is a file: give a folder\n"
    assert (run.returncode, out, err) == (2, "", line)


def test_ctrl_c_during_the_imports_of_a_run_is_one_line(tmp_path: Path) -> None:
    """A module that takes the place of hydra sends the signal while it is imported."""
    signals = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    (tmp_path / "hydra.py").write_text(signals)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, str(ROOT / "train.py"), "+exp=acdc_ham_s90"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "train.py: interrupted\n")


def test_ctrl_c_in_a_script_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def main(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["scripts/tables.py"])
    assert command_line.run_script(main) == 130
    assert capsys.readouterr().err == "tables.py: interrupted\n"
