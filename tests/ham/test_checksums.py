"""SHA256SUMS: the lines of sha256sum, and nothing else, are read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ham.data import checksums
from ham.data.checksums import SUMS, digest, file_sha256, read_sums, sha256, write_sums

DIGEST = hashlib.sha256(b"content").hexdigest()


def test_the_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(b"content")
    write_sums(tmp_path, ["b", "a"])
    assert (tmp_path / "SHA256SUMS").read_text() == f"{DIGEST}  b\n{DIGEST}  a\n"
    assert read_sums(tmp_path) == {"b": DIGEST, "a": DIGEST}
    assert file_sha256(tmp_path / "a") == sha256(b"content") == DIGEST


def test_the_mark_of_binary_files_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / SUMS).write_text(f"{DIGEST} *a\n")
    assert read_sums(tmp_path) == {"a": DIGEST}


def test_a_folder_without_sums_has_none(tmp_path: Path) -> None:
    assert read_sums(tmp_path) is None


@pytest.mark.parametrize("line", [DIGEST, f"{DIGEST[:63]}  a", f"{DIGEST}0  a", f"{DIGEST}  a  b", "a " * 64])
def test_lines_of_another_form_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / SUMS).write_text(f"{DIGEST}  a\n{line}\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS is damaged$"):
        read_sums(tmp_path)


def test_sums_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / SUMS).write_text("")
    monkeypatch.setattr(checksums, "read_text", refuse)
    with pytest.raises(ValueError, match=r"SHA256SUMS cannot be read \(Permission denied\)$"):
        read_sums(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "is_equal"),
    [
        (torch.arange(6), torch.arange(6), True),
        (torch.arange(6), np.arange(6), True),
        (torch.arange(6), torch.arange(6).view(2, 3), False),
        (torch.arange(6), torch.arange(6, dtype=torch.int32), False),
        (torch.arange(6).view(2, 3), torch.arange(6).view(3, 2).t(), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        ((1, "a"), [1, "a"], True),
        ((1, 2), ((1,), (2,)), False),
        (("ab", "c"), ("a", "bc"), False),
        ({"a": torch.zeros(0)}, {"b": torch.zeros(0)}, False),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2)}, True),
        (1, "1", False),
    ],
)
def test_a_digest_distinguishes_contents(one: Any, other: Any, is_equal: bool) -> None:
    assert (digest(one) == digest(other)) is is_equal
    assert (digest([one, one]) == digest([one, other])) is is_equal
