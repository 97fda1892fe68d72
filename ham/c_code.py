"""C code of this repository: the system's C compiler compiles it at its first use; it runs in threads."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from ctypes import CDLL
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

_OPTIONS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fopenmp-simd")
_ARITHMETIC = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")  # nan and infinity stay
_TARGETS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
_PLAIN = frozenset((Tensor, nn.Parameter))
_NAMES = ("cc", "gcc", "clang")
_TIMEOUT = 120  # seconds
_HANGING: set[str] = set()  # compilers that did not end


class CompilerError(ValueError):
    """C code cannot be compiled or loaded; the message says why, and the cure where it is known."""


def is_plain(t: Tensor) -> bool:
    """Return False for a tensor subclass with its own dispatch, such as a DTensor."""
    return type(t) in _PLAIN


def has_memory(t: Tensor) -> bool:
    """Return True if the values are stored at the tensor's address, unlike negated views and zero tensors."""
    return is_plain(t) and not t.is_neg() and not t._is_zerotensor()


def has_compiler() -> bool:
    """Return True if there is a C compiler, by the environment's CC or one of the usual names."""
    return bool(os.environ.get("CC") or _find_compiler())


def _find_compiler() -> str | None:
    return next((name for name in _NAMES if shutil.which(name)), None)


@cache
def load(source: Path, dtype: torch.dtype) -> CDLL:
    """The functions of a C file for float32 or float64.

    Each process compiles them, in a quarter of a second: they always suit its processor.

    Raises:
        CompilerError: no C compiler was found, or it fails. One that does not end is not tried again.
    """
    command = [*_compiler(), *_OPTIONS, *_ARITHMETIC, *(["-DDOUBLE"] if dtype == torch.float64 else [])]
    try:
        with tempfile.TemporaryDirectory(prefix="ham-") as folder:
            path = Path(folder) / "code.so"
            for target in _TARGETS:
                error = _run([*command, *target, str(source), "-o", str(path), "-lm"])
                if not error:
                    break
            else:
                raise CompilerError(f"the C compiler {command[0]} fails ({error})")
            return CDLL(str(path))
    except OSError as error:
        raise CompilerError(
            f"compiled code cannot be written or loaded ({error}); TMPDIR must name a folder for programs"
        ) from None


def _compiler() -> list[str]:
    given = os.environ.get("CC", "")
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise CompilerError(f"CC={given!r} cannot be read ({error})") from None
    if not command and not (compiler := _find_compiler()):
        raise CompilerError(f"no C compiler found ({', '.join(_NAMES)}); install one, or name it in CC")
    return command or [compiler]


def _run(command: list[str]) -> str:
    """Run a compiler; returns its error in one line, or ''. Raises CompilerError if it does not end."""
    hangs = f"the C compiler {command[0]} does not end within {_TIMEOUT} seconds; name another one in CC"
    if command[0] in _HANGING:
        raise CompilerError(hangs)
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        _HANGING.add(command[0])
        raise CompilerError(hangs) from None
    except OSError as error:
        return str(error)
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    first = next((line.strip() for line in lines if "error" in line.lower()), lines[-1].strip())
    return first if result.returncode else ""


def in_threads(call: Callable[[int, int, int], Any], bounds: Sequence[int]) -> list[Any]:
    """The results of call(0, bounds[0], bounds[1]), call(1, bounds[1], bounds[2]), ..., in a thread each.

    The first runs in this one. ctypes releases the interpreter's lock while C code runs. Whatever happens, it
    returns when all have ended: the memory that they use may be freed then.
    """
    first, *others = ((number, *part) for number, part in enumerate(pairwise(bounds)))
    started: list[Future] = []
    try:
        for part in others:
            started.append(_start(call, part))
        result = call(*first)
    finally:
        wait(started)
    return [result, *(part.result() for part in started)]


def _start(call: Callable[[int, int, int], Any], part: tuple[int, int, int]) -> Future:
    """Compute a part in another thread, or in this one if no other can be started; once in any case."""
    future: Future = Future()
    claim = Lock()

    def compute() -> None:
        if claim.acquire(blocking=False):
            try:
                future.set_result(call(*part))
            except BaseException as error:
                future.set_exception(error)

    try:
        _threads(os.getpid()).submit(compute)
    except RuntimeError:  # a limit, or the main thread has ended; a running thread may find `compute` queued
        compute()
    return future


def equal_shares(count: int, smallest: int) -> list[int]:
    """Bounds of up to `torch.get_num_threads()` equal parts of 0, ..., count - 1, none below `smallest`."""
    parts = max(1, min(torch.get_num_threads(), count // smallest))
    return [count * k // parts for k in range(parts + 1)]


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of this process, started when they are needed; those of its parent end at a fork."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="ham")
