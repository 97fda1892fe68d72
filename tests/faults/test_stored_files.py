"""Files of a run that are damaged or of another type: one line, and a cure that works."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faults.runs import TINY, assert_one_line, copier, write_checkpoint

from ham.files import atomic_write_text
from ham.optim import implementations
from ham.run import checkpoint, trainer_checkpoints
from ham.run.build import resolve_mask_source
from ham.run.checkpoint import CheckpointError
from ham.run.config import Config, ConfigError, config_hash, from_yaml, load
from ham.run.directory import RunDirectory, explain_os_errors, read_summary
from ham.run.export import export
from ham.run.load import load_run
from ham.run.mask_source import load_source_masks
from pruning.export import load_masks

DAMAGED = {
    "empty": b"",
    "torn": b'{"config_hash": "ab',
    "a list": b"[1, 2]",
    "a number": b"3",
    "text": b'"done"',
    "null": b"null",
    "nested": b"[" * 100_000,
    "invalid UTF-8": b'{"config_hash": "\xff\xfe"}',
    "other keys": b'{"a": 1}',
    "NaN": b"NaN",
    "10 MB": b'["' + b"x" * 10**7 + b'"]',
    "zeros": bytes(4096),
    "keys of other types": b'{"config_hash": 1, "metrics": [], "resumed_from": {}, "config_hash": 2}',
}
damaged = pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)


@damaged
def test_a_damaged_summary_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    assert read_summary(tmp_path) is None


def test_a_summary_that_cannot_be_read_is_not_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "summary.json").symlink_to("nowhere")
    assert read_summary(tmp_path) is None
    (tmp_path / "summary.json").unlink()
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(ConfigError, match=r"summary\.json cannot be read .*move it away"):
        read_summary(tmp_path)


@damaged
def test_a_damaged_provenance_is_one_line(content: bytes, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "provenance.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        directory.write_metadata({"config_hash": "a"}, "")
    assert_one_line(caught.value, "provenance.json is damaged", "resume=false")
    assert not (tmp_path / "config.yaml").exists()
    directory.clear()
    directory.write_metadata({"config_hash": "a"}, "")
    directory.unlock()


@pytest.mark.parametrize("name", ["config.yaml", "masks.pt", "metrics.jsonl", ".saved", ".config.yaml.tmp"])
def test_a_folder_in_the_place_of_a_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError) as caught:
        RunDirectory(tmp_path)
    expected = f"{tmp_path / name} is a folder, but must be a file of the run: move it away"
    assert str(caught.value) == expected
    (tmp_path / name).rename(tmp_path / "away")  # the cure
    RunDirectory(tmp_path).unlock()


def test_an_error_of_an_atomic_write_names_the_file_and_not_its_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "masks.pt").mkdir()
    with pytest.raises(CheckpointError) as caught, explain_os_errors(tmp_path):
        atomic_write_text(tmp_path / "masks.pt", "text")
    assert_one_line(caught.value, f"{tmp_path}/masks.pt cannot be read or written: Is a directory")


CONFIGS = {name: content for name, content in DAMAGED.items() if name not in ("10 MB", "nested")}
CONFIGS |= {
    "nested": b"[" * 5000,
    "tabs": b"a:\n\t- b",
    "a section less": b"seed: 0\nmodel: {kind: resnet}\n",
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_configuration_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    for read in (load_run, lambda folder: export(folder, folder / "export")):
        with pytest.raises(ConfigError) as caught:
            read(tmp_path)
        assert_one_line(caught.value, "config.yaml is damaged or does not fit this version: ", "restore it")
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read: .*; move it away and restore it"):
        from_yaml(tmp_path / "config.yaml")


@damaged
def test_damaged_masks_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "masks.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"masks\.pt is damaged") as caught:
        load_masks(tmp_path)
    assert_one_line(caught.value, "train that run again")


@damaged
def test_a_damaged_mark_of_a_checkpoint_is_no_mark(content: bytes, tmp_path: Path) -> None:
    for step in (1, 2):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "model.bin").write_bytes(b"weights")
        trainer_checkpoints.mark(path, {"best_step": None})
    (tmp_path / "checkpoint-2" / "complete.json").write_bytes(content)
    lines: list[str] = []
    assert trainer_checkpoints.latest(tmp_path, lines.append).step == 1
    assert len(lines) == 1 and f"{tmp_path}/checkpoint-2/complete.json is damaged" in lines[0]
    (tmp_path / "checkpoint-1" / "complete.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        trainer_checkpoints.latest(tmp_path, lines.append)
    assert_one_line(caught.value, "resume=false")


def _denied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open

    def refuse(file: Any, *args: Any, **options: Any) -> Any:
        if file == path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(file, *args, **options)

    monkeypatch.setattr("builtins.open", refuse)


UNREADABLE: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "folder": lambda path, _: path.mkdir(),
    "dangling link": lambda path, _: path.symlink_to("nowhere"),
    "pipe": lambda path, _: os.mkfifo(path),
    "link to a device": lambda path, _: path.symlink_to("/dev/zero"),
    "denied": lambda path, patch: (write_checkpoint(path, {}), _denied(path, patch)),
    "not of torch": lambda path, _: write_checkpoint(path, b"something else"),
    "a list": lambda path, _: write_checkpoint(path, [1, 2]),
    "code": lambda path, _: write_checkpoint(path, {"path": SimpleNamespace()}),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"number": 1})
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    with monkeypatch.context() as patch:
        UNREADABLE[kind](tmp_path / "last.pt", patch)
        lines: list[str] = []
        assert checkpoint.load(tmp_path, lines.append) == {"number": 1}
        assert len(lines) == 1 and len(lines[0].splitlines()) == 1 and "last.pt" in lines[0]
    assert os.path.lexists(tmp_path / "last.damaged")
    for number in (2, 3):
        checkpoint.save(tmp_path, {"number": number})
    assert checkpoint.load(tmp_path, pytest.fail) == {"number": 3}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_two_checkpoints_that_cannot_be_read_are_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("last.pt", "previous.pt"):
            UNREADABLE[kind](tmp_path / name, patch)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(tmp_path, lambda line: None)
    is_file = (tmp_path / "last.pt").is_file()
    assert_one_line(caught.value, "resume=false" if is_file else "move last.pt and previous.pt away")
    if kind == "folder":
        for name in ("last.pt", "previous.pt"):
            (tmp_path / name).rmdir()
    directory.clear()  # the cure
    assert checkpoint.load(tmp_path, pytest.fail) is None
    directory.unlock()


@pytest.fixture(scope="module")
def finished(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """`finished(folder)`: puts a finished run there; returns its arguments."""
    runs = tmp_path_factory.mktemp("finished")
    assert train.main([*TINY, f"runs_dir={runs}"]) == 0

    return copier(runs)


@pytest.mark.parametrize("has_same_code", [True, False])
def test_a_run_resumes_with_the_code_of_its_checkpoint(
    has_same_code: bool,
    finished: Callable,
    command: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = finished(tmp_path / "runs")
    (path,) = (tmp_path / "runs").glob("*/seed0/summary.json")
    path.unlink()
    now = implementations.has_c_code(torch.float32) is has_same_code
    monkeypatch.setattr(implementations, "has_c_code", lambda dtype: now)
    outcome = command(*argv)
    assert outcome.status == (0 if has_same_code else 2), outcome.err
    lines = [line for line in outcome.complaints if "for HAM's step, and " in line and "resume=false" in line]
    assert len(lines) == len(outcome.complaints) == (not has_same_code)


def test_the_checkpoint_of_a_finished_run_replaces_its_masks(finished: Callable, tmp_path: Path) -> None:
    finished(tmp_path / "runs")
    (path,) = (tmp_path / "runs").glob("*/seed0/masks.pt")
    expected = load_masks(path)
    cfg = with_source(load(["+exp=mask_acdc_s90", "+demo=tiny"]), path.parent)
    for damage in (lambda: path.write_bytes(b"x"), path.unlink, path.mkdir):
        damage()
        masks, margins, origin = load_source_masks(cfg, cfg.sparsifier)
        assert masks.keys() == expected[0].keys() and (margins, origin) == expected[1:]
        assert all(torch.equal(mask, expected[0][name]) for name, mask in masks.items())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda last: last.write_bytes(b""), "is damaged (truncated or altered)"),
        (Path.unlink, "is not a file"),
        (lambda last: (last.unlink(), last.mkdir()), "is not a file"),
        (lambda last: (last.unlink(), os.mkfifo(last)), "is not a file"),
        (lambda last: (last.unlink(), last.symlink_to(last)), "is not a file"),
    ],
)
def test_masks_are_not_taken_from_the_checkpoint_of_an_earlier_epoch(
    damage: Callable[[Path], Any], reason: str, finished: Callable, tmp_path: Path
) -> None:
    finished(tmp_path / "runs")
    (path,) = (tmp_path / "runs").glob("*/seed0/masks.pt")
    path.unlink()
    damage(path.with_name("last.pt"))
    before = sorted(path.parent.iterdir())
    cfg = with_source(load(["+exp=mask_acdc_s90", "+demo=tiny"]), path.parent)
    with pytest.raises(ConfigError) as caught:
        load_source_masks(cfg, cfg.sparsifier)
    start = f"{path} is missing or damaged, and the last checkpoint cannot replace it"
    reason = f" ({path.with_name('last.pt')} {reason}): "
    assert_one_line(caught.value, f"{start}{reason}", f"delete {path.parent} and train that run again")
    assert sorted(path.parent.iterdir()) == before


def with_source(cfg: Config, source: Path) -> Config:
    return replace(cfg, sparsifier=replace(cfg.sparsifier, source=str(source)))


ORIGIN = {"exp": "acdc_s90", "demo": "tiny", "seed": 1}
COMMAND = "python train.py +exp=acdc_s90 +demo=tiny"
OTHERS = {  # what masks.pt states about its origin -> what the line says
    "experiment": ({"exp": "rigl_s90"}, "rigl_s90 with seed 1 and configuration {hash}"),
    "seed": ({"seed": 0}, "acdc_s90 with seed 0 and configuration {hash}"),
    "configuration": ({"config_hash": "0123456789"}, "acdc_s90 with seed 1 and configuration 01234567"),
    "unknown": ({"exp": None}, "an unknown run"),
}


@pytest.mark.parametrize(("change", "found"), OTHERS.values(), ids=OTHERS)
def test_masks_of_another_run_are_one_line(change: dict[str, Any], found: str, tmp_path: Path) -> None:
    hash_ = config_hash(load(["+exp=acdc_s90", "+demo=tiny"]))
    cfg = load(["+exp=mask_acdc_s90", "+demo=tiny", "seed=1", f"runs_dir={tmp_path}"])
    path = tmp_path / "acdc_s90-tiny" / "seed1" / "masks.pt"
    path.parent.mkdir(parents=True)
    origin = ORIGIN | {"config_hash": hash_}
    content = {"masks": {"weight": torch.ones(2) > 0}, "margins": {}}
    torch.save(content | {"origin": origin}, path)
    assert load_source_masks(cfg, resolve_mask_source(cfg))[2] == origin
    torch.save(content | {"origin": origin | change}, path)
    with pytest.raises(ConfigError) as caught:
        load_source_masks(cfg, resolve_mask_source(cfg))
    wanted = f"acdc_s90 with seed 1 and configuration {hash_[:8]}"
    cure = f"{COMMAND} seed=1 runs_dir={tmp_path} resume=false, or give sparsifier.source=PATH to use any"
    expected = f"{path} has masks of {found}, not of {wanted}: train it again by {cure}"
    assert str(caught.value) == expected.replace("{hash}", hash_[:8])
    free = with_source(cfg, path)  # of the user's own choice
    assert load_source_masks(free, resolve_mask_source(free))[2] == origin | change


MISSING = {  # source -> the line
    "acdc_s90": "RUNS/acdc_s90-tiny/seed0/masks.pt does not exist: finish the run that the masks come from "
    f"first, by {COMMAND} seed=0 runs_dir=RUNS",
    "acdc_s9": "sparsifier.source: unknown experiment 'acdc_s9'; nearest: acdc_s95, acdc_s90, acdc_s80; a "
    "path needs a slash",
}


@pytest.mark.parametrize(("source", "line"), MISSING.items(), ids=MISSING)
def test_missing_masks_are_one_line(source: str, line: str, tmp_path: Path) -> None:
    cfg = with_source(load(["+exp=mask_acdc_s90", "+demo=tiny", f"runs_dir={tmp_path}"]), Path(source))
    with pytest.raises(ConfigError) as caught:
        load_source_masks(cfg, resolve_mask_source(cfg))
    assert str(caught.value) == line.replace("RUNS", str(tmp_path))


def test_the_command_for_missing_masks_has_the_paths_of_the_data() -> None:
    cfg = load(["+exp=mask_acdc_s90", "data.root=/my data", "data.val=/val.beton"])
    with pytest.raises(ConfigError) as caught:
        load_source_masks(cfg, resolve_mask_source(cfg))
    command = "python train.py +exp=acdc_s90 seed=0 'data.root=/my data' data.val=/val.beton"
    assert_one_line(caught.value, "finish the run that the masks come from first, by", command)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"config_hash": "a"}', b"\xff"], ids=repr)
def test_a_damaged_summary_is_written_again_from_the_last_checkpoint(
    content: bytes, finished: Callable, command: Callable, tmp_path: Path
) -> None:
    argv = finished(tmp_path / "runs")
    (path,) = (tmp_path / "runs").glob("*/seed0/summary.json")
    before = json.loads(path.read_text())
    path.write_bytes(content)
    outcome = command(*argv)
    assert outcome.status == 0, outcome.err
    assert json.loads(path.read_text())["metrics"] == before["metrics"]


@pytest.mark.parametrize("key", ["metrics", "sparsity", "metrics.top1_last", "sparsity.layers", "type"])
def test_a_summary_that_lacks_values_is_one_line(
    key: str, finished: Callable, command: Callable, tmp_path: Path
) -> None:
    argv = finished(tmp_path / "runs")
    (path,) = (tmp_path / "runs").glob("*/seed0/summary.json")
    whole = json.loads(path.read_text())
    content = json.loads(path.read_text())
    outer, _, inner = key.partition(".")
    if key == "type":
        content["metrics"]["top1_last"] = "high"
    elif inner:
        del content[outer][inner]
    else:
        content[outer] = {}
    path.write_text(json.dumps(content))
    outcome = command(*argv)
    assert outcome.status == 2
    (line,) = outcome.complaints
    assert str(path) in line and "delete it" in line
    path.unlink()  # the cure
    assert command(*argv).status == 0
    assert json.loads(path.read_text())["metrics"] == whole["metrics"]


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("summary.json", 2, "summary.json cannot be read (not a regular file): fix that or move it away"),
        ("provenance.json", 1, "provenance.json cannot be read (not a regular file): fix that, or move"),
        ("metrics.jsonl", 1, "metrics.jsonl cannot be read or written: not a regular file; fix that and"),
    ],
)
def test_a_pipe_in_place_of_a_file_of_a_run_is_one_line(
    name: str, status: int, words: str, finished: Callable, command: Callable, tmp_path: Path
) -> None:
    argv = finished(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    (folder / "summary.json").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    outcome = command(*argv)
    (line,) = outcome.complaints
    assert outcome.status == status and f"{folder}/{words}" in line, line
