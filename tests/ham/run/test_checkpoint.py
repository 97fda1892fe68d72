"""Checkpoints on disk: what is read back, what damage and full disks do."""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ham.run.checkpoint import (
    FORMAT,
    SAVED,
    CheckpointError,
    check_not_purged,
    explain_mismatch,
    load,
    mark_saved,
    save,
)
from ham.run.config import ConfigError
from ham.run.metrics import EpochMetrics
from ham.run.state import _check_optimizer_state

TINY = ["+exp=acdc_s90", "+demo=digits", "model.width=4", "batch_size=479", "epochs=2"]


class Killed(BaseException):
    """Leaves the disk as a SIGKILL would."""


def state(number: int) -> dict[str, Any]:
    """A state as the loop's: tensors of several kinds, plain values, nesting."""
    generator = torch.Generator().manual_seed(number)
    return {
        "config_hash": f"{number:064x}",
        "model": {"w": torch.randn(50, 3, 3, generator=generator), "n": torch.tensor(number)},
        "masks": {"w": torch.rand(50, 3, 3, generator=generator) < 0.5},
        "rng": {"cpu": torch.get_rng_state(), "cuda": None},
        "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}]},
        "layout": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "loss": torch.zeros((), dtype=torch.float64) + number,
    }


def assert_equal(found: Any, expected: Any) -> None:
    """Same types, same keys, same bits."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        assert torch.equal(found, expected)
    else:
        assert found == expected


def silent(warning: str) -> None:
    """No warning is due."""
    raise AssertionError(warning)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full once a file reaches `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load(tmp_path, silent) is None


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, state(1))
    assert_equal(load(tmp_path, silent), state(1))
    # anybody can open it: torch's format, weights only, whatever stands behind it
    assert_equal(torch.load(tmp_path / "last.pt", weights_only=True), {"format": FORMAT, **state(1)})


def test_the_one_before_the_last_is_kept(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path, state(number))
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "previous.pt", SAVED}
    assert_equal(load(tmp_path, silent), state(3))
    (tmp_path / "last.pt").unlink()
    assert_equal(load(tmp_path, silent), state(2))


@pytest.mark.parametrize("renames", [0, 1])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_kill_between_the_renames_is_survived(
    tmp_path: Path, renames: int, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        save(tmp_path, state(number))
    if damaged:
        (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    good = load(tmp_path, [].append)
    assert_equal(good, state(1 if damaged else 2))
    replace, calls = os.replace, []

    def kill(source: Path, target: Path) -> None:
        if len(calls) == renames:
            raise Killed
        calls.append(replace(source, target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        try:
            save(tmp_path, state(3))
        except Killed:
            assert_equal(load(tmp_path, [].append), good)
        else:  # it took a single rename
            assert renames == 1 and damaged
    save(tmp_path, state(4))
    assert_equal(load(tmp_path, silent), state(4))


def damages(size: int) -> dict[str, Callable[[bytes], bytes]]:
    """Ways to spoil a file of `size` bytes."""

    def cut(length: int) -> Callable[[bytes], bytes]:
        return lambda content: content[:length]

    def flip(bit: int) -> Callable[[bytes], bytes]:
        def damage(content: bytes) -> bytes:
            spoiled = bytearray(content)
            spoiled[bit // 8] ^= 1 << bit % 8
            return bytes(spoiled)

        return damage

    lengths = [0, 1, 31, 32, 33, size // 3, size // 2, size - 33, size - 32, size - 31, size - 1]
    places = random.Random(0)
    bits = [0, 8 * size - 1, 8 * (size - 32), 8 * (size - 32) - 1]
    bits += [places.randrange(8 * size) for _ in range(40)]
    table = {f"cut to {length}": cut(length) for length in lengths}
    table |= {f"bit {bit}": flip(bit) for bit in bits}
    table["a byte more"] = lambda content: content + b"\0"
    return table


def test_damage_anywhere_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    save(tmp_path, state(1))
    save(tmp_path, state(2))
    last = tmp_path / "last.pt"
    whole = last.read_bytes()
    for name, damage in damages(len(whole)).items():
        last.write_bytes(damage(whole))
        warnings: list[str] = []
        assert_equal(load(tmp_path, warnings.append), state(1))
        assert len(warnings) == 1 and str(last) in warnings[0] and "\n" not in warnings[0], name


def test_two_damaged_checkpoints_are_an_error_that_names_the_cure(tmp_path: Path) -> None:
    save(tmp_path, state(1))
    save(tmp_path, state(2))
    for name in ("last.pt", "previous.pt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    warnings: list[str] = []
    with pytest.raises(CheckpointError, match="resume=false") as caught:
        load(tmp_path, warnings.append)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert [path for path in ("last.pt", "previous.pt") if path in " ".join(warnings)] == [
        "last.pt",
        "previous.pt",
    ]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, share: float) -> None:
    save(tmp_path, state(1))
    save(tmp_path, state(2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with largest_file(int(share * len(before["last.pt"]))), pytest.raises(CheckpointError) as caught:
        save(tmp_path, state(3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert str(tmp_path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert_equal(load(tmp_path, silent), state(2))
    save(tmp_path, state(4))
    assert_equal(load(tmp_path, silent), state(4))


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory") as caught:
        save(tmp_path / "gone", state(1))
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_is_torchs_file_and_its_sha_256(tmp_path: Path) -> None:
    """Also of tensors above a megabyte, which a thread hashes."""
    large = {"w": torch.arange(2**19, dtype=torch.float32), "n": 3}
    save(tmp_path, large)
    content = (tmp_path / "last.pt").read_bytes()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest() and len(content) > 2**21
    assert_equal(load(tmp_path, silent), large)


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    assert FORMAT == 2
    for other in ({"format": 1}, {"format": 3}, {}):
        buffer = io.BytesIO()
        torch.save({**other, "n": 1}, buffer)
        (tmp_path / "last.pt").write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path, silent)
        cure = "finish the run with that version, or start again with resume=false"
        assert str(caught.value) == f"checkpoint {tmp_path / 'last.pt'} is of another version: {cure}"


@pytest.mark.parametrize("content", [b"no archive", None], ids=["text", "list"])
def test_a_whole_file_that_holds_something_else_is_damaged(tmp_path: Path, content: bytes | None) -> None:
    save(tmp_path, state(1))
    save(tmp_path, state(2))
    if content is None:
        buffer = io.BytesIO()
        torch.save([1], buffer)
        content = buffer.getvalue()
    last, warnings = tmp_path / "last.pt", []
    last.write_bytes(content + hashlib.sha256(content).digest())
    assert_equal(load(tmp_path, warnings.append), state(1))
    line = f"checkpoint {last} is damaged (it holds something else); trying the one before it"
    assert warnings == [line] and (tmp_path / "last.damaged").exists() and not last.exists()


def test_what_cannot_be_read_is_reported_with_its_cure(tmp_path: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, [].append)
    reasons = "last.pt is not a file; previous.pt is not a file"
    cure = "move last.pt and previous.pt away"
    assert str(caught.value) == f"no checkpoint in {tmp_path} can be read ({reasons}): {cure}"
    (tmp_path / "previous.pt").rmdir()
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"\(truncated or altered\)\): move last\.pt away$"):
        load(tmp_path, [].append)


@pytest.mark.parametrize(
    ("metrics", "reached"),
    [
        ('{"epoch": 0}\n{"epoch": 4}\n', "metrics.jsonl says that epoch 5 was reached"),
        ("", ".saved says that a checkpoint was written"),
        ("{", ".saved says that a checkpoint was written"),
        ("[1]", ".saved says that a checkpoint was written"),
    ],
)
def test_deleted_checkpoints_are_distinguished_from_a_run_that_had_none(
    tmp_path: Path, metrics: str, reached: str
) -> None:
    (tmp_path / "metrics.jsonl").write_text(metrics)
    check_not_purged(tmp_path)
    mark_saved(tmp_path)
    os.utime(tmp_path / SAVED, (1000, 1000))
    mark_saved(tmp_path)
    assert (tmp_path / SAVED).stat().st_mtime > 1000 and (tmp_path / SAVED).read_bytes() == b""
    for check in (check_not_purged, lambda folder: load(folder, silent)):
        with pytest.raises(ConfigError) as caught:
            check(tmp_path)
        assert str(caught.value).startswith(
            f"{reached}, but the checkpoints in {tmp_path} are missing (purged?)"
        )


@pytest.mark.parametrize("kept", [False, True])
def test_a_failed_write_says_what_is_left(
    tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept:
        save(tmp_path, state(1))

    def fail(*_: Any, **__: Any) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("enforce fail") from error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, state(2))
    rest = "the last good one is kept" if kept else "none was written before"
    assert str(caught.value) == f"cannot write a checkpoint in {tmp_path}: No space left on device; {rest}"


@pytest.mark.parametrize("kind", [KeyError, TypeError, ValueError, AttributeError, RuntimeError])
def test_a_state_that_does_not_fit_is_of_another_version(tmp_path: Path, kind: type[Exception]) -> None:
    with pytest.raises(CheckpointError) as caught, explain_mismatch(tmp_path):
        raise kind("what\nmore")
    start = f"the checkpoint in {tmp_path} does not fit this version ({kind.__name__}: "
    assert str(caught.value).startswith(start) and "\n" not in str(caught.value)
    with pytest.raises(torch.OutOfMemoryError), explain_mismatch(tmp_path):
        raise torch.OutOfMemoryError("no memory")


@pytest.fixture
def stopped(command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """A run that SIGUSR1 stopped in its second epoch: its command line and its directory."""
    argv = [*TINY, f"runs_dir={tmp_path}"]
    update_loss = EpochMetrics.update_loss

    def stop(metrics: EpochMetrics, number: int, loss: torch.Tensor) -> None:
        update_loss(metrics, number, loss)
        if number == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(EpochMetrics, "update_loss", stop)
        patch.setattr("ham.run.loop._SHORT_EPOCH", 0.0)  # a checkpoint after every epoch
        assert command(*argv).status == 85
    (folder,) = tmp_path.glob("*/seed0")
    assert {"last.pt", "previous.pt"} <= {path.name for path in folder.iterdir()}
    return argv, folder


def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_later(
    command: Callable, stopped: tuple[list[str], Path]
) -> None:
    argv, folder = stopped
    before = (folder / "last.pt").read_bytes()
    with largest_file(len(before) // 2):
        outcome = command(*argv)
    assert outcome.status == 1
    assert len(outcome.complaints) == 1 and "File too large" in outcome.complaints[0]
    assert (folder / "last.pt").read_bytes() == before
    assert not list(folder.glob("*.tmp"))
    assert command(*argv).status == 0


def test_a_disk_too_full_to_start_on_ends_in_one_line_too(
    command: Callable, stopped: tuple[list[str], Path]
) -> None:
    argv, folder = stopped
    before = (folder / "last.pt").read_bytes()
    with largest_file(400):
        outcome = command(*argv)
    assert outcome.status == 2
    *log, line = outcome.complaints
    assert "File too large" in line and all("train.log" in other for other in log)
    assert (folder / "last.pt").read_bytes() == before
    assert command(*argv).status == 0


def test_a_run_that_lost_lines_of_its_record_does_not_make_them_up(
    command: Callable, stopped: tuple[list[str], Path]
) -> None:
    argv, folder = stopped
    (folder / "metrics.jsonl").write_text("")
    outcome = command(*argv)
    assert outcome.status == 1
    assert len(outcome.complaints) == 1
    assert "metrics.jsonl" in outcome.complaints[0] and "resume=false" in outcome.complaints[0]


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_can_start_anew(
    command: Callable, stopped: tuple[list[str], Path]
) -> None:
    argv, folder = stopped
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"no checkpoint")
    outcome = command(*argv)
    assert outcome.status == 1
    assert len(outcome.complaints) == 1 and "resume=false" in outcome.complaints[0]
    assert "last.pt" in outcome.out and "previous.pt" in outcome.out
    assert command(*argv, "resume=false").status == 0


@pytest.mark.parametrize("count", [1, 2])
def test_the_state_of_another_kind_of_optimizer_is_refused(count: int) -> None:
    """Whatever the number of groups: SGD has dampening, which AdamW has not."""
    weights = [torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(count)]
    one, other = (
        kind([{"params": [weight]} for weight in weights], lr=0.1)
        for kind in (torch.optim.SGD, torch.optim.AdamW)
    )
    _check_optimizer_state(one, one.state_dict())
    _check_optimizer_state(other, other.state_dict())
    with pytest.raises(ValueError, match=r"another kind of optimizer: .* '\w+', this run's 'dampening'"):
        _check_optimizer_state(one, other.state_dict())
    with pytest.raises(ValueError, match=r"another kind of optimizer: .* 'dampening', this run's '\w+'"):
        _check_optimizer_state(other, one.state_dict())
