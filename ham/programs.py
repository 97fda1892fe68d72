"""Run another program with a time limit, whatever processes it starts and whatever bytes it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO


def run_program(
    command: Sequence[str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its input is empty.

    The output goes to files: a process that the command leaves behind would keep a pipe open.

    Args:
        command: the program and its arguments.
        seconds: the time limit.
        environment: environment of the program; None for that of this process.
        folder: working directory of the program; None for the current folder.

    Returns:
        Exit status and output; bytes that the locale does not decode are kept as surrogates.

    Raises:
        subprocess.TimeoutExpired: it did not end in time; it and its process group are killed.
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a process that waits for a file system cannot die
                process.wait(1)
            raise
        return subprocess.CompletedProcess(command, status, *map(_content, (output, errors)))


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return os.fsdecode(file.read())
