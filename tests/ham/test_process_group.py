"""What a rank hands to torch, and how its errors are named; torch's own functions are replaced."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ham import process_group
from ham.agreement import SAME_START, PeerLostError, StartError
from ham.distributed import World
from ham.endpoint import Endpoint


@pytest.fixture
def torch_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch is asked for; this is rank 1 of 3."""
    calls: dict[str, Any] = {}
    group = process_group.distributed
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(process_group, "world", lambda: World(1, 3, 1))
    monkeypatch.setattr(group, "is_initialized", lambda: False)
    monkeypatch.setattr(group, "init_process_group", lambda *a, **k: calls.update(init=(a, k)))
    monkeypatch.setattr(process_group, "TCPStore", lambda *a, **k: ("tcp", a, k))
    monkeypatch.setattr(process_group, "PrefixStore", lambda *a: ("prefix", *a))
    return calls


def test_a_rank_other_than_0_joins_the_store_that_rank_0_names(
    torch_calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(find: Any, *arguments: Any) -> tuple[Endpoint, int]:
        torch_calls["connect"] = arguments
        return find(), 4242

    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setattr(process_group, "connect", connect)
    process_group.init_distributed({"seed": 1}, 7.5)
    assert torch_calls["connect"] == (1, 3, {"seed": 1}, 7.5)
    wait = timedelta(seconds=7.5)
    store = ("tcp", ("node0", 4242, 3), {"is_master": False, "timeout": wait, "wait_for_workers": False})
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    assert torch_calls["init"] == ((backend,), {"store": store, "rank": 1, "world_size": 3, "timeout": wait})


class Listener:
    """Rank 0's end, which notes what happens."""

    port = 31000

    def __init__(self, endpoint: Endpoint, size: int) -> None:
        self.events: list[Any] = [(endpoint, size)]

    def collect(self, *arguments: Any) -> None:
        self.events.append(arguments)

    def answer(self, port: int) -> None:
        self.events.append(port)


@pytest.mark.parametrize("torchrun", [False, True])
def test_rank_0_collects_the_others_and_sends_them_the_store(
    torch_calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch, torchrun: bool
) -> None:
    made: list[Listener] = []

    pairs: list[tuple[str, str]] = []
    agent = SimpleNamespace(set=lambda *pair: pairs.append(pair))

    def listen(*arguments: Any) -> Listener:
        made.append(Listener(*arguments))
        return made[0]

    def rendezvous(url: str, rank: int, size: int, timeout: timedelta) -> Any:
        assert (url, rank, size, timeout) == ("env://", 0, 3, timedelta(seconds=5))
        return iter([(agent, rank, size)])

    class Store:
        port = 99

    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setattr(process_group, "world", lambda: World(0, 3, 0))
    monkeypatch.setattr(process_group, "Listener", listen)
    monkeypatch.setattr(process_group.distributed, "rendezvous", rendezvous)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
        process_group.init_distributed({"seed": 1}, 5)
        (endpoint, size), *events = made[0].events
        assert (endpoint.address, endpoint.ports, size) == ("node0", (0,), 3) and len(endpoint.run) == 16
        assert pairs == [("ham rank 0", f"31000 {endpoint.run}")]
        assert events == [({"seed": 1}, 5), 0]
        assert torch_calls["init"][1]["store"] == ("prefix", endpoint.run, agent)
    else:
        monkeypatch.setattr(
            process_group, "TCPStore", lambda *a, **k: torch_calls.update(tcp=(a, k)) or Store
        )
        process_group.init_distributed({"seed": 1}, 5)
        assert made[0].events == [(Endpoint("node0", (29500,)), 3), ({"seed": 1}, 5), 99]
        assert torch_calls["tcp"][0] == ("node0", 0, 3) and torch_calls["tcp"][1]["is_master"] is True


def test_torchruns_store_says_where_rank_0_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Agent:
        def get(self, key: str) -> bytes:
            return {"ham rank 0": b"31000 abc"}[key]

    monkeypatch.setenv("MASTER_ADDR", "node0")
    assert process_group._endpoint_in(Agent()) == Endpoint("node0", (31000,), "abc")


def test_a_rank_of_torchrun_asks_its_store_where_rank_0_listens(
    torch_calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = SimpleNamespace(get={"ham rank 0": b"31000 abc"}.__getitem__)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setattr(process_group.distributed, "rendezvous", lambda *_, **__: iter([(agent, 1, 3)]))
    monkeypatch.setattr(process_group, "connect", lambda find, *_: (find(), 4242))
    process_group.init_distributed({}, 5)
    assert torch_calls["init"][1]["store"] == ("prefix", "abc", agent)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError])
def test_ranks_that_do_not_connect_are_named(
    torch_calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise kind("[rank 1] Connection closed.")

    monkeypatch.setattr(process_group, "_rendezvous", fail)
    with pytest.raises(PeerLostError) as caught:
        process_group.init_distributed({}, 5)
    assert str(caught.value) == (
        "rank 1 of 3 could not connect to the others (Connection closed): start all ranks with torchrun or "
        "srun, see docs/clusters.md"
    )


def test_a_second_run_of_one_process_only_compares(
    torch_calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, "seed is 2 there"])

    def differs(own: dict[str, Any], cure: str) -> str | None:
        assert (own, cure) == ({"seed": 1}, SAME_START)
        return next(answers)

    monkeypatch.setattr(process_group.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(process_group, "difference_over_ranks", differs)
    process_group.init_distributed({"seed": 1}, 5)
    with pytest.raises(StartError, match=r"^seed is 2 there$"):
        process_group.init_distributed({"seed": 1}, 5)
    assert not torch_calls


@pytest.mark.parametrize(
    ("local_rank", "visible", "step", "index"),
    [(1, 4, False, 1), (3, 4, True, 3), (4, 4, False, None), (2, 1, True, 0), (1, 1, False, None)],
)
def test_a_process_has_the_gpu_of_its_number_or_the_only_one_that_slurm_shows_it(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, visible: int, step: bool, index: int | None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    if step:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    me = World(local_rank, 8, local_rank)
    if index is not None:
        assert process_group.local_device(me) == torch.device("cuda", index)
        return
    message = f"^process {local_rank + 1} on this node finds {visible} GPUs: start one process per GPU$"
    with pytest.raises(ValueError, match=message):
        process_group.local_device(me)


def test_gradients_are_averaged_without_buffers_and_on_a_cpu_in_the_order_of_ranks(
    torch_calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module, *, forward_sync_buffers: bool = True, **options: Any) -> None:
            super().__init__()
            made.append((forward_sync_buffers, options))

        def register_comm_hook(self, state: object, hook: object) -> None:
            made.append((state, hook))

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Wrapper)
    model = nn.Linear(2, 2)
    assert isinstance(process_group.wrap_ddp(model, torch.device("cpu")), Wrapper)
    options = {"device_ids": None, "gradient_as_bucket_view": True}
    assert made == [(False, options), (None, process_group._mean_in_rank_order)]
    made.clear()
    device = torch.device("cuda", 1)
    process_group.wrap_ddp(model, device)
    assert made == [(False, options | {"device_ids": [device]})]
    monkeypatch.setattr(process_group, "world", World)
    assert process_group.wrap_ddp(model, device) is model


def test_the_mean_gradient_is_added_from_rank_0_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1e8 + -1e8) + 3 is 3 in float32, and 1e8 + (-1e8 + 3) is 0."""
    own = torch.tensor([9.0])
    values = [torch.tensor([v]) for v in (1e8, -1e8, 3.0)]

    class Future:
        def get_future(self) -> Any:
            return self

        def value(self) -> None:
            self.waited = True

        def then(self, add: Any) -> Any:
            return add(self)

    def all_gather(parts: list[torch.Tensor], given: torch.Tensor, async_op: bool) -> Future:
        assert async_op and given.item() == 3.0, "a third of this rank's gradient"
        for part, value in zip(parts, values, strict=True):
            part.copy_(value)
        return Future()

    class Bucket:
        def buffer(self) -> torch.Tensor:
            return own

    monkeypatch.setattr(process_group, "world", lambda: World(1, 3))
    monkeypatch.setattr(process_group.distributed, "all_gather", all_gather)
    assert process_group._mean_in_rank_order(None, Bucket()).item() == 3.0


@pytest.mark.parametrize(("enabled", "size", "skipped"), [(True, 3, 0), (False, 3, 1), (False, 1, 0)])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_not_averaged_where_that_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, enabled: bool, size: int, skipped: int, compiled: bool
) -> None:
    calls: list[bool] = []
    inner = SimpleNamespace(no_sync=lambda: calls.append(True) or nullcontext())
    network = SimpleNamespace(_orig_mod=inner) if compiled else inner
    monkeypatch.setattr(process_group, "world", lambda: World(0, size))
    with process_group.gradient_sync(network, enabled):
        pass
    assert len(calls) == skipped
