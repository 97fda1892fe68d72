"""How C code is compiled, what its errors say, and how it is shared by threads."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ham import c_code
from ham.c_code import CompilerError, equal_shares, has_compiler, has_memory, in_threads, is_plain


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing is compiled yet."""
    c_code.load.cache_clear()
    yield
    c_code.load.cache_clear()


def test_only_plain_tensors_with_values_of_their_own_have_memory() -> None:
    x = torch.zeros(2)
    assert is_plain(x) and is_plain(nn.Parameter(x)) and not is_plain(nn.Buffer(x).as_subclass(Odd))
    assert has_memory(x) and not has_memory(x.as_subclass(Odd))
    assert not has_memory(torch.zeros(2, dtype=torch.complex64).conj().imag), "a negated view"
    assert not has_memory(torch._efficientzerotensor(2))


class Odd(torch.Tensor):
    """A subclass."""


def test_a_compiler_is_that_of_cc_or_has_a_usual_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_code.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert not has_compiler()
    with pytest.raises(CompilerError, match=r"^no C compiler found \(cc, gcc, clang\); install one, or name"):
        c_code._compiler()
    monkeypatch.setenv("CC", "mine -m64")
    assert has_compiler() and c_code._compiler() == ["mine", "-m64"]
    monkeypatch.setenv("CC", "'open")
    with pytest.raises(CompilerError, match=r"^CC=\"'open\" cannot be read \("):
        c_code._compiler()
    monkeypatch.delenv("CC")
    monkeypatch.setattr(c_code.shutil, "which", lambda name: name if name in ("gcc", "clang") else None)
    assert has_compiler() and c_code._compiler() == ["gcc"]


def test_targets_are_tried_in_turn_and_the_last_error_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        commands.append(command)
        return "" if len(commands) == works_at else f"error {len(commands)}"

    monkeypatch.setenv("CC", "mine")
    monkeypatch.setattr(c_code, "_run", run)
    monkeypatch.setattr(c_code, "CDLL", lambda path: ("loaded", path))
    source = Path("code.c")
    for works_at in (1, 3):
        commands.clear()
        loaded, path = c_code.load(source, torch.float64 if works_at == 3 else torch.float32)
        assert loaded == "loaded" and len(commands) == works_at
        assert commands[-1][-4:] == ["code.c", "-o", path, "-lm"] and commands[0][0] == "mine"
        assert ("-DDOUBLE" in commands[0]) is (works_at == 3)
        assert "-march=native" in commands[0]
        c_code.load.cache_clear()
    commands.clear()
    works_at = 0
    with pytest.raises(CompilerError, match=r"^the C compiler mine fails \(error 4\)$"):
        c_code.load(source, torch.float32)


def test_a_folder_that_holds_no_programs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError("failed to map segment")

    monkeypatch.setenv("CC", "mine")
    monkeypatch.setattr(c_code, "_run", lambda command: "")
    monkeypatch.setattr(c_code, "CDLL", refuse)
    with pytest.raises(
        CompilerError, match=r"\(failed to map segment\); TMPDIR must name a folder for programs$"
    ):
        c_code.load(Path("code.c"), torch.float32)


@pytest.mark.parametrize(
    ("status", "printed", "line"),
    [
        (0, "error: no", ""),
        (1, "In file a\n  a.c:1: Error: bad  \nnote: more", "a.c:1: Error: bad"),
        (1, "first\n last ", "last"),
        (4, "", "exit status 4"),
    ],
)
def test_the_error_of_a_compiler_is_its_clearest_line(
    monkeypatch: pytest.MonkeyPatch, status: int, printed: str, line: str
) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command == ["cc"] and options["text"] and options["capture_output"]
        return subprocess.CompletedProcess(command, status, "", printed)

    monkeypatch.setattr(subprocess, "run", run)
    assert c_code._run(["cc"]) == line


def test_a_compiler_that_is_missing_is_one_line() -> None:
    assert "/no/compiler" in c_code._run(["/no/compiler"])


def test_each_share_has_a_thread_and_the_first_runs_in_this_one() -> None:
    names: dict[int, str] = {}

    def call(number: int, first: int, last: int) -> tuple[int, int, int]:
        names[number] = threading.current_thread().name
        return number, first, last

    assert in_threads(call, [0, 3, 5, 9]) == [(0, 0, 3), (1, 3, 5), (2, 5, 9)]
    assert names[0] == threading.current_thread().name
    assert names[1].startswith("ham") and names[2].startswith("ham")
    assert in_threads(call, [4, 6]) == [(0, 4, 6)]


def test_an_error_waits_for_the_other_threads() -> None:
    ended = threading.Event()

    def call(number: int, *_: int) -> None:
        if number == 0:
            raise ValueError("first")
        ended.wait(0.05)
        ended.set()

    with pytest.raises(ValueError, match="first"):
        in_threads(call, [0, 1, 2])
    assert ended.is_set()


def test_shares_run_here_where_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        def submit(self, *_: object) -> None:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(c_code, "_threads", lambda process: Ended())
    assert in_threads(lambda *share: share, [0, 1, 2]) == [(0, 0, 1), (1, 1, 2)]


def test_shares_are_equal_and_none_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert equal_shares(10, 2) == [0, 2, 5, 7, 10]
    assert equal_shares(8, 2) == [0, 2, 4, 6, 8]
    assert equal_shares(7, 2) == [0, 2, 4, 7]
    assert equal_shares(3, 2) == [0, 3] and equal_shares(1, 2) == [0, 1] and equal_shares(0, 2) == [0, 0]


def test_a_process_has_a_thread_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((5, 5), (None, 1)):
        monkeypatch.setattr(c_code.os, "cpu_count", lambda cores=cores: cores)
        assert c_code._threads.__wrapped__(0)._max_workers == threads
