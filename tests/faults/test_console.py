"""A console that is gone or knows ASCII alone, and a log that cannot be written."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.injector import error, inject
from faults.runs import TINY

from ham.run.config import load
from ham.run.logger import RunLogger

ROOT = Path(__file__).resolve().parents[2]


class BrokenPipe(io.TextIOWrapper):
    """A stream into a pipe that nobody reads, in ASCII."""

    def __init__(self, *, buffered: bool) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        file = os.fdopen(writer, "wb", -1 if buffered else 0)
        super().__init__(file, encoding="ascii", write_through=not buffered)


@pytest.mark.parametrize("out", [True, False, None], ids=["buffered", "unbuffered", "fine"])
@pytest.mark.parametrize("err", [True, False, None], ids=["buffered", "unbuffered", "fine"])
def test_a_console_that_is_gone_leaves_everything_in_the_log(
    out: bool | None, err: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, buffered in (("stdout", out), ("stderr", err)):
        fine = open(tmp_path / name, "w", encoding="ascii")  # noqa: SIM115 - closed below
        monkeypatch.setattr(sys, name, fine if buffered is None else BrokenPipe(buffered=buffered))
    logger = RunLogger(tmp_path, load(TINY))
    texts = ["first", "Gr\u00f6\u00dfe", "\u2192 \U0001f40d", "\udcff", "last"]
    logger.log(texts[0])
    logger.start_progress(10, 0)
    for text in texts[1:]:
        logger.update_progress()
        logger.log(text)
    logger.close()
    sys.stdout.close()  # as the interpreter does: what is left is flushed
    sys.stderr.close()
    written = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    shown = [text.replace("\udcff", r"\udcff") for text in texts]
    assert [line.partition("  ")[2] for line in written] == shown
    if out is None:  # what still has a reader is not silenced
        shown = [text.encode("ascii", "backslashreplace").decode() for text in texts]
        assert (tmp_path / "stdout").read_text().splitlines() == shown
    if err is None:
        assert "10" in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("text", ["Gr\u00f6\u00dfe", "\u2192", "\U0001f40d", "\udcff", "\u65e5\u672c"])
def test_a_console_of_ascii_shows_escapes(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    logger = RunLogger(tmp_path, load(TINY))
    logger.log(text)
    logger.close()
    assert stream.buffer.getvalue() == text.encode("ascii", "backslashreplace") + b"\n"


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE], ids=errno.errorcode.get
)
def test_a_log_that_cannot_be_written_does_not_end_the_run_and_is_named(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger(tmp_path, load(TINY))
    with inject(tmp_path, 0, error(number)):
        logger.log("first")
    (tmp_path / "train.log").mkdir()
    logger.log("second")
    logger.close()
    out, err = capsys.readouterr()
    assert out == "first\nsecond\n"
    assert err == f"train.log cannot be written ({os.strerror(number)}): lines are missing there\n"


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """A shell command in which $RUN is a tiny run, in a locale of ASCII."""

    def run(text: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(ROOT / "train.py"), *TINY, f"runs_dir={tmp_path}/runs"]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "RUN": " ".join(words)}
        command = ["bash", "-c", text]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    yield run


def test_a_pipe_that_is_closed_and_a_locale_of_ascii_end_no_run(pipeline: Callable, tmp_path: Path) -> None:
    done = pipeline("$RUN 2>&1 | head -n 1; echo ${PIPESTATUS[0]}")
    assert done.stdout.splitlines()[-1] == "0", done.stdout
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    assert (folder / "summary.json").exists()
    assert "epoch 2/2" in (folder / "train.log").read_text(encoding="utf-8")
