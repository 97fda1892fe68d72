"""Checkpoints of another version of the code, and of other numbers of ranks."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.runs import TINY, assert_one_line, copier, write_checkpoint

from ham import distributed
from ham.data import derived_seed
from ham.distributed import World
from ham.run.build import build, run_directory
from ham.run.checkpoint import CheckpointError, explain_mismatch
from ham.run.config import config_hash, load
from ham.run.load import load_run
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.run.state import Run
from ham.tasks import task_of


@pytest.fixture(scope="module")
def finished(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """`finished(folder)`: puts a finished run there; returns its arguments."""
    runs = tmp_path_factory.mktemp("finished")
    assert train.main([*TINY, f"runs_dir={runs}"]) == 0

    return copier(runs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has taken a step."""
    cfg = load([*TINY, f"runs_dir={tmp_path_factory.mktemp('runs')}"])
    hash_, device = config_hash(cfg), torch.device("cpu")
    task = task_of(cfg.data).load(cfg, device, derived_seed(cfg.seed, "data"), rank=0, world_size=1)
    run = build(cfg, hash_, task, NullLogger(run_directory(cfg, hash_), cfg), device)
    run.sparsifier.on_epoch_start(0, run.optimizer)
    run.metrics.update_loss(0, train_step(run, next(iter(task.batches(0, start=0)))))
    run.step = run.batch = 1
    return run


def state_of(run: Run) -> dict[str, Any]:
    """A copy of its state, as read from a checkpoint."""
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _rename_modules(state: dict[str, Any]) -> None:
    state["model"] = {f"net.{name}": value for name, value in state["model"].items()}


def _first(values: dict[str, Any]) -> str:
    return next(name for name, value in values.items() if isinstance(value, torch.Tensor) and value.ndim > 1)


def _reshape(values: dict[str, Any]) -> None:
    values[_first(values)] = torch.zeros(3, 2)


def _of_adamw(state: dict[str, Any]) -> None:
    numbers = [group["params"] for group in state["optimizer"]["param_groups"]]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2)) for _ in group]} for group in numbers]
    state["optimizer"] = torch.optim.AdamW(groups).state_dict()


def _of_other_parameters(state: dict[str, Any]) -> None:
    for values in state["optimizer"]["state"].values():
        values["momentum_buffer"] = torch.zeros(2, 2)


OLDER: dict[str, Callable[[dict[str, Any]], object]] = {
    "renamed modules": _rename_modules,
    "a weight less": lambda state: state["model"].pop(_first(state["model"])),
    "weights of another shape": lambda state: _reshape(state["model"]),
    "signs of another shape": lambda state: _reshape(state["flips"]),
    "signs of other weights": lambda state: state.update(flips={}),
    "another optimizer": _of_adamw,
    "an optimizer of other parameters": _of_other_parameters,
    "a group less": lambda state: state["optimizer"]["param_groups"].pop(),
    "masks of other weights": lambda state: state["sparsifier"].update(masks={"kept": {"a": torch.ones(2)}}),
    "a sparsifier without masks": lambda state: state["sparsifier"].pop("masks"),
    "a number for a module": lambda state: state.update(sparsifier=3),
    "HAM without counts": lambda state: state["ham"].clear(),
    "metrics of another kind": lambda state: state.update(metrics={"rows": torch.zeros(1, 2)}),
    "a generator of another kind": lambda state: state["rng"].update(cpu=torch.zeros(1, 3)),
    "progress of another kind": lambda state: state.update(progress=[1]),
}
OLDER |= {
    f"no {key}": lambda state, key=key: state.pop(key)
    for key in ("model", "optimizer", "scheduler", "sparsifier", "flips", "metrics", "progress", "rng")
}


@pytest.mark.parametrize("kind", OLDER)
def test_a_state_of_another_version_is_one_line(kind: str, run: Run, tmp_path: Path) -> None:
    state = state_of(run)
    OLDER[kind](state)
    with pytest.raises(CheckpointError) as caught, explain_mismatch(tmp_path):
        run.load_state_dict(state)
    assert_one_line(caught.value, str(tmp_path), "does not fit this version", "resume=false")


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (3, 2), (2, 3), (4, 4)], ids=str)
def test_a_checkpoint_of_other_ranks_is_restored(
    sizes: tuple[int, int], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums keep their total; a rank that was there continues its random stream, a new one starts its own."""
    before, after = sizes
    state = state_of(run)
    streams = [torch.Generator().manual_seed(rank).get_state() for rank in range(before)]
    state["rng"]["cpu"] = torch.stack(streams)
    state["metrics"]["rows"] = torch.tensor([[1.5, 1.0, 10.0, 20.0]] * before, dtype=torch.float64)
    total, seen = 0.0, []
    for rank in range(after):
        monkeypatch.setattr(distributed, "world", lambda rank=rank: World(rank, after))
        run.load_state_dict(state)
        total += float(run.metrics.loss_sum)
        seen.append(torch.get_rng_state())
        assert run.step == run.batch == 1
    monkeypatch.undo()
    assert total == 1.5 * before
    for rank, stream in enumerate(seen):
        assert rank >= before or torch.equal(stream, streams[rank])
    assert len({tuple(stream[:64].tolist()) for stream in seen}) == after


@pytest.mark.parametrize("kind", ["renamed modules", "no threads", "no config_hash", "another optimizer"])
def test_a_run_of_another_version_is_refused_before_anything_changes(
    kind: str, finished: Callable, command: Callable, tmp_path: Path
) -> None:
    argv = finished(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    (folder / "summary.json").unlink()
    state = torch.load(folder / "last.pt", weights_only=True)
    OLDER.get(kind, lambda state: state.pop(kind.removeprefix("no ")))(state)
    for name in ("last.pt", "previous.pt"):
        write_checkpoint(folder / name, state)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "train.log"}
    outcome = command(*argv)
    assert outcome.status == 1
    (line,) = outcome.complaints
    assert "does not fit this version" in line and "resume=false" in line
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "train.log"}
    assert after == before
    if kind == "renamed modules":
        with pytest.raises(CheckpointError, match="does not fit this version"):
            load_run(folder)
        assert command(*argv, "resume=false").status == 0
