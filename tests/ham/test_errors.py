"""Errors as one line, and those that the machine causes."""

from __future__ import annotations

import errno
import os

import pytest

from ham.errors import explain, is_of_machine, names_error_of_machine, one_line, printable
from ham.regular_files import NotRegularError
from ham.report.odd_files import InvalidRecord


def test_an_error_is_shown_by_its_reason_its_first_line_or_its_class() -> None:
    assert one_line(OSError(2, "No such file", "a.txt")) == "No such file"
    assert one_line(ValueError("\n first\nsecond")) == "first"
    assert one_line(ValueError("  ")) == "ValueError"


def test_a_message_of_over_1000_characters_keeps_500_at_each_end() -> None:
    assert printable("x" * 1000) == "x" * 1000
    text = "a" * 600 + "b" + "c" * 600
    assert printable(text) == "a" * 500 + " ... " + "c" * 500
    assert printable("a\nb\x1b\u2028\u00e9") == "a\\nb\\x1b\\u2028\u00e9"
    assert str(InvalidRecord("a\nb")) == "a\\nb"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb"), "a\\nb"),
        (OSError(errno.ENOSPC, "full"), "[Errno 28] full"),  # of no file
        (OSError(errno.ENOSPC, "full", "a"), "a cannot be read or written (full): free space"),
        (
            PermissionError(errno.EACCES, "denied", "a"),
            "a cannot be read or written (denied): change its permissions",
        ),
        (
            OSError(errno.ESTALE, "stale", "a"),
            "a cannot be read or written (stale): check its path and its disk",
        ),
        (NotRegularError("a"), "a cannot be read or written (not a regular file): move it away"),
    ],
)
def test_an_error_of_a_file_has_its_cure(error: Exception, line: str) -> None:
    assert explain(error) == line


CAUSED = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE", "ENOMEM", "EMFILE", "ENFILE")
OTHERS = ("ENOENT", "EACCES", "ENOTDIR", "EISDIR", "EEXIST", "EPIPE", "EINVAL")


@pytest.mark.parametrize("name", [*CAUSED, *OTHERS])
def test_errors_that_the_machine_causes(name: str) -> None:
    number = getattr(errno, name)
    text = f"train.py: last.pt: {os.strerror(number)} (exit status 1)"
    assert is_of_machine(OSError(number, "x")) is names_error_of_machine(text) is (name in CAUSED)
