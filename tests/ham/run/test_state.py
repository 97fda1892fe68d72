"""A run in memory: which states do not fit it, and the random streams of its ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ham import distributed
from ham.data import derived_seed
from ham.distributed import World
from ham.run import state as state_module
from ham.run.checkpoint import CheckpointError
from ham.run.state import Run, _check_optimizer_state

CPU = torch.device("cpu")


def optimizer(kind: Any = torch.optim.SGD, shape: tuple[int, ...] = (2, 3), **options: Any) -> Any:
    """Of two weights, in a group each, after a step."""
    weights = [torch.nn.Parameter(torch.ones(shape)), torch.nn.Parameter(torch.ones(4))]
    made = kind([{"params": [weight]} for weight in weights], lr=0.1, **options)
    sum(weight.sum() for weight in weights).backward()
    made.step()
    return made


def test_a_state_with_tensors_of_other_shapes_is_refused() -> None:
    one, other = (optimizer(momentum=0.9, shape=shape) for shape in ((2, 3), (3, 2)))
    _check_optimizer_state(one, one.state_dict())
    with pytest.raises(ValueError, match=r"^momentum_buffer of parameter 0 has shape \[3, 2\]$"):
        _check_optimizer_state(one, other.state_dict())
    adam = optimizer(torch.optim.Adam)
    _check_optimizer_state(adam, adam.state_dict())  # its number of steps has no shape


def test_a_version_of_torch_may_add_keys() -> None:
    made = optimizer()
    state = made.state_dict()
    state["param_groups"][0]["of_the_future"] = 1
    _check_optimizer_state(made, state)
    del state["param_groups"][0]["of_the_future"], state["param_groups"][0]["foreach"]
    _check_optimizer_state(made, state)
    with pytest.raises(ValueError, match=r"another kind of optimizer: its groups have 'amsgrad'"):
        _check_optimizer_state(made, optimizer(torch.optim.Adam).state_dict())


class Part:
    """Of a run; it has a state of its own."""

    def __init__(self, name: str) -> None:
        self.name, self.loaded = name, None

    def state_dict(self) -> dict[str, str]:
        return {"of": self.name}

    def load_state_dict(self, state: object) -> None:
        self.loaded = state


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    parts = {name: Part(name) for name in ("scheduler", "sparsifier", "ham", "flips", "metrics", "logger")}
    made = optimizer(momentum=0.9, fused=True)
    network = torch.nn.Linear(2, 2)
    cfg, task = SimpleNamespace(seed=5), SimpleNamespace(data_digest="data's")
    monkeypatch.setattr(state_module, "operations_in_c", lambda cfg, device: {device.type: True})
    return Run(cfg, "hash", CPU, task, network, network, optimizer=made, **parts, epoch=2, batch=3, step=23)


def test_a_run_begins_at_0_and_its_state_has_every_part(run: Run) -> None:
    state = run.state_dict()
    assert state["progress"] == {"epoch": 2, "batch": 3, "step": 23}
    for name in ("scheduler", "sparsifier", "ham", "flips", "metrics", "logger"):
        assert state[name] == {"of": name}
    assert (state["config_hash"], state["history"], state["threads"]) == ("hash", [], torch.get_num_threads())
    assert state["data"] == "data's" and state["c_operations"] == {"cpu": True}
    assert state["rng"]["cuda"] is None and torch.equal(state["rng"]["cpu"], torch.get_rng_state()[None])
    assert [*state["model"]] == ["weight", "bias"] and len(state["optimizer"]["state"]) == 2
    run.ham = None
    assert run.state_dict()["ham"] == {} and len(run.params) == 2
    parts = (run.cfg, "hash", CPU, None, run.model, run.model, None, None, None, None, None, None, None)
    new = Run(*parts)
    assert (new.epoch, new.batch, new.step, new.saved_at, new.history) == (0, 0, 0, 0.0, [])


def test_a_loss_of_the_metrics_that_rank_0_sees_is_raised_on_all_ranks(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_gather_object(failures: list[object], own: object) -> None:
        failures[:] = [CheckpointError("metrics.jsonl was deleted"), own]

    monkeypatch.setattr(distributed.distributed, "all_gather_object", all_gather_object)
    monkeypatch.setattr(distributed, "world", lambda: World(1, 2))
    with pytest.raises(CheckpointError, match=r"^metrics\.jsonl was deleted$") as caught:
        run.state_dict()
    assert caught.value.shared is True


def test_a_restored_run_has_the_state_of_the_other(run: Run) -> None:
    torch.manual_seed(1)
    state = run.state_dict() | {"history": [{"epoch": 0}], "progress": {"epoch": 7, "batch": 8, "step": 9}}
    state["model"] = {name: torch.full_like(value, 3.0) for name, value in state["model"].items()}
    for group in state["optimizer"]["param_groups"]:
        group["fused"], group["lr"] = False, 0.5
    expected = torch.rand(3)
    run.load_state_dict(state)
    assert (run.epoch, run.batch, run.step, run.history) == (7, 8, 9, [{"epoch": 0}])
    for name in ("scheduler", "sparsifier", "ham", "flips", "metrics"):
        assert getattr(run, name).loaded == {"of": name}
    assert [group["fused"] for group in run.optimizer.param_groups] == [True, True], "of this device"
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.5, 0.5]
    assert run.model.weight.eq(3).all() and torch.equal(torch.rand(3), expected)
    state["optimizer"]["param_groups"][0]["of_others"] = 1
    del state["optimizer"]["param_groups"][0]["dampening"]
    with pytest.raises(ValueError, match=r"its groups have 'of_others', this run's 'dampening'$"):
        run.load_state_dict(state)


def test_each_rank_has_its_own_stream_and_one_more_a_new_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        streams.append(torch.get_rng_state())
    kept = {"cpu": torch.stack(streams), "cuda": None}
    seeds = (1, 2, derived_seed(5, "training 2 from 23"))
    for rank, seed in enumerate(seeds):
        expected = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        monkeypatch.setattr(distributed, "world", lambda rank=rank: World(rank, 3))
        run._load_rng(kept)
        assert torch.equal(torch.rand(3), expected)
