"""C code of this repository: the system's C compiler compiles it at its first use; it runs in threads."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

_OPTIONS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fopenmp-simd")
_ARITHMETIC = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")  # nan and infinity stay
_TARGETS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())


class CompilerError(ValueError):
    """There is no C compiler, or it fails; the message is one line."""


def has_compiler() -> bool:
    """Is there a C compiler, by the environment's CC or one of the usual names?"""
    return bool(os.environ.get("CC") or _found())


def _found() -> str | None:
    return next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


@cache
def load(source: Path, dtype: torch.dtype) -> CDLL:
    """The functions of a C file for float32 or float64.

    Each process compiles them, in a quarter of a second: they always suit its processor.

    Raises:
        CompilerError: there is no C compiler, or it fails.
    """
    command = [*_compiler(), *_OPTIONS, *_ARITHMETIC, *(["-DDOUBLE"] if dtype == torch.float64 else [])]
    with tempfile.TemporaryDirectory(prefix="ham-") as folder:
        path = Path(folder) / "code.so"
        for target in _TARGETS:
            error = _run([*command, *target, str(source), "-o", str(path), "-lm"])
            if not error:
                break
        else:
            raise CompilerError(f"it needs a C compiler ({error})")
        try:
            return CDLL(str(path))
        except OSError as reason:
            raise CompilerError(f"its code cannot be loaded ({reason})") from None


def _compiler() -> list[str]:
    given = os.environ.get("CC", "")
    try:
        return shlex.split(given) or [_found() or "cc"]
    except ValueError as error:
        raise CompilerError(f"CC={given!r} cannot be read ({error})") from None


def _run(command: list[str]) -> str:
    """Run a compiler; returns its error in one line, or ''."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
    return lines[-1] if done.returncode else ""


def in_threads(call: Callable[[int, int, int], Any], bounds: Sequence[int]) -> list[Any]:
    """The results of call(0, bounds[0], bounds[1]), call(1, bounds[1], bounds[2]), ..., in a thread each.

    The first runs in this one. ctypes releases the interpreter's lock while C code runs.
    """
    first, *others = ((number, *share) for number, share in enumerate(pairwise(bounds)))
    pool = _threads(os.getpid(), len(others)) if others else None
    started = [pool.submit(call, *share) for share in others]
    return [call(*first), *(share.result() for share in started)]


def equal_shares(count: int, smallest: int) -> list[int]:
    """Bounds of up to `torch.get_num_threads()` equal parts of 0, ..., count - 1, none below `smallest`."""
    parts = max(1, min(torch.get_num_threads(), count // smallest))
    return [count * k // parts for k in range(parts + 1)]


@cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Threads of this process: those of its parent do not exist after a fork."""
    return ThreadPoolExecutor(count, thread_name_prefix="ham")
