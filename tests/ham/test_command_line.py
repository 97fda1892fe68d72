"""How commands end, what their output may hold, and the streams that a shell has closed."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ham import command_line
from ham.command_line import OutputError, Parser, run_command_line, run_script, unusable


@pytest.fixture
def silenced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """An entry for each time that the output is discarded."""
    calls: list[bool] = []
    monkeypatch.setattr(command_line, "ignore_broken_pipe", lambda: calls.append(True))
    monkeypatch.setattr(sys, "argv", ["scripts/some.py", "a", "b"])
    return calls


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def main(argv: list[str]) -> int:
        raise error

    return main


def test_the_status_and_the_arguments_are_those_of_the_command(silenced: list[bool]) -> None:
    assert run_command_line(lambda argv: len(argv), ["x", "y", "z"]) == 3
    assert run_script(lambda argv: 7 if argv == ["a", "b"] else 0) == 7
    assert not silenced


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "some.py: interrupted\n"),
        (BrokenPipeError(), 141, ""),
        (OSError(errno.ENOSPC, "No space left"), 1, "No space left"),
        (OSError(errno.EDQUOT, "Quota"), 1, "Quota"),
        (OSError(errno.EIO, "I/O"), 1, "I/O"),
    ],
)
def test_errors_of_the_output_end_a_command_with_a_status(
    silenced: list[bool], capsys: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    assert run_command_line(raising(error), []) == status
    line = f"some.py: its output cannot be written ({said}): send it to another file\n"
    assert capsys.readouterr() == ("", line if status == 1 else said)
    assert len(silenced) == (0 if status == 130 else 1)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "x", "file"), OSError(errno.EACCES, "x"), ValueError()]
)
def test_other_errors_are_not_of_the_output(silenced: list[bool], error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command_line(raising(error), [])
    assert not silenced


class Full(io.StringIO):
    """A stream that cannot be written, or not flushed."""

    def __init__(self, number: int, at: str) -> None:
        super().__init__()
        self.number, self.at = number, at

    def write(self, text: str) -> int:
        if self.at == "write":
            raise OSError(self.number, "No space left")
        return super().write(text)

    def flush(self) -> None:
        if self.at == "flush":
            raise OSError(self.number, "No space left")


@pytest.mark.parametrize("at", ["write", "flush"])
@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 1), (errno.EPIPE, 141)])
def test_a_script_distinguishes_errors_of_its_output_from_those_of_its_files(
    silenced: list[bool],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    number: int,
    status: int,
) -> None:
    stream = Full(number, at)
    monkeypatch.setattr(sys, "stdout", stream)
    caught: list[OSError] = []

    def main(argv: list[str]) -> int:
        try:
            print("text", flush=True)
        except OSError as error:
            caught.append(error)
        return 0

    assert run_script(main) == status and sys.stdout is stream
    line = "some.py: its output cannot be written (No space left): send it to another file\n"
    assert capsys.readouterr().err == (line if status == 1 else "")
    assert not caught and len(silenced) == 1


def test_output_is_flushed_and_has_escapes_for_what_its_encoding_lacks(
    silenced: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run_script(lambda argv: print("é") or sys.stdout.write("abc")) == 3
    assert raw.getvalue() == b"\\xe9\nabc"


@pytest.mark.parametrize("kind", [BrokenPipeError, OSError])
def test_an_error_of_the_stream_stays_the_cause(kind: type[OSError]) -> None:
    output = command_line._Output(Full(errno.EPIPE if kind is BrokenPipeError else errno.EIO, "write"))
    with pytest.raises(OutputError) as caught:
        output.write("x")
    assert type(caught.value.__cause__) is kind and output.at == "write"


def in_child(act: Callable[[], bytes]) -> bytes:
    """What `act` returns in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, act())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    return content


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_becomes_the_null_device_with_its_own_number(number: int) -> None:
    name = ("stdin", "stdout", "stderr")[number]

    def act() -> bytes:
        setattr(sys, name, None)
        os.close(number)
        command_line._open_missing_streams()
        stream = getattr(sys, name)
        able = stream.readable() if number == 0 else stream.writable()
        place = os.readlink(f"/proc/self/fd/{number}")
        spare = os.open(os.devnull, os.O_RDONLY)
        return f"{stream.fileno()} {able} {place} {spare > 2}".encode()

    assert in_child(act) == f"{number} True /dev/null True".encode()


def test_discarded_output_goes_to_the_null_device() -> None:
    def act() -> bytes:
        sys.stdout = os.fdopen(os.dup(1), "w")
        command_line.ignore_broken_pipe()
        return os.readlink(f"/proc/self/fd/{sys.stdout.fileno()}").encode()

    assert in_child(act) == b"/dev/null"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("plain é 日本 ~", ""),
        ("a\x1fb", "a control character ('\\x1f')"),
        ("a\nb", "a control character ('\\n')"),
        ("\x7f", "a control character ('\\x7f')"),
        ("\udce9", "bytes that are not utf-8"),
    ],
)
def test_what_no_configuration_can_hold_is_named(text: str, what: str) -> None:
    assert unusable(text) == what


def test_bytes_of_another_locale_name_its_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert unusable("\udce9") == "bytes that are not ascii, the encoding of this locale"


@pytest.mark.parametrize(("given", "path"), [("a b", Path("a b")), ("", None)])
def test_a_path_is_not_empty(capsys: pytest.CaptureFixture[str], given: str, path: Path | None) -> None:
    parser = Parser(prog="some.py")
    parser.add_argument("--to", type=Path)
    if path is not None:
        assert parser.parse_args(["--to", given]).to == path
        return
    with pytest.raises(SystemExit):
        parser.parse_args(["--to", given])
    line = "some.py: argument --to: the path is empty: give one, or omit the option\n"
    assert capsys.readouterr().err == line


def test_an_error_of_arguments_is_one_line_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Parser(prog="some.py").parse_args(["--no"])
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "some.py: unrecognized arguments: --no\n")
