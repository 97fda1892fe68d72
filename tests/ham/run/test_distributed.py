"""Who a process is, and what a single process does in place of talking to others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ham import distributed
from ham.agreement import PeerLostError, RanksDisagreeError, StartError
from ham.distributed import World, world
from ham.run.metrics import EpochMetrics

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
STEP = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "3", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, World(0, 1, 0)),
        (TORCHRUN, World(5, 8, 1)),
        (STEP, World(3, 4, 3)),
        (TORCHRUN | STEP, World(5, 8, 1)),  # torchrun inside of srun: its own ranks count
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, World(0, 1, 0)),  # a batch script
    ],
    ids=["alone", "torchrun", "srun", "torchrun in srun", "batch script"],
)
def test_the_environment_gives_rank_and_world_size(environment: dict[str, str], expected: World) -> None:
    assert world(environment) == expected


@pytest.mark.parametrize(
    "change",
    [{"RANK": "8"}, {"RANK": "-1"}, {"RANK": "x"}, {"RANK": ""}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "one"}],
    ids=str,
)
def test_variables_that_name_no_rank_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(StartError, match=r"RANK=\S* WORLD_SIZE=\S* LOCAL_RANK=\S* are not a valid rank"):
        world(TORCHRUN | change)


def test_a_single_process_talks_to_itself() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert torch.equal(distributed.all_reduce_sum(tensor), tensor)
    assert torch.equal(distributed.all_gather(tensor), tensor[None])
    assert distributed.all_reduce_or(5) == 5
    assert (
        distributed.on_rank_zero(lambda: 7)
        == distributed.raise_on_all_ranks(lambda: 7)
        == distributed.broadcast_object(7)
        == 7
    )
    with pytest.raises(RuntimeError, match="gloo"), distributed.translate_collective_errors(lambda: "now"):
        raise RuntimeError("gloo has nobody to talk to")


def test_sums_of_other_numbers_of_ranks_are_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[1.5, 2.0, 10.0, 20.0], [2.5, 2.0, 5.0, 20.0], [3.0, 2.0, 1.0, 20.0]])
    for size in (1, 2, 3, 5):
        sums = torch.zeros(4)
        for rank in range(size):
            monkeypatch.setattr(distributed, "world", lambda rank=rank, size=size: World(rank, size))
            metrics = EpochMetrics(torch.device("cpu"))
            metrics.load_state_dict({"rows": rows.double()})
            own = torch.tensor(
                [float(metrics.loss_sum), metrics.steps, float(metrics.correct), metrics.count]
            )
            assert size != 3 or torch.equal(own, rows[rank])
            sums += own
        assert torch.equal(sums, rows.sum(dim=0))


# as one of several ranks: torch's collectives are replaced


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is rank 1 of 2; rank 0 has the value 4."""
    group = distributed.distributed
    monkeypatch.setattr(distributed, "world", lambda: World(1, 2, 1))

    def all_reduce(tensor: torch.Tensor, op: object = None) -> None:
        tensor.copy_(tensor | 4 if op == group.ReduceOp.BOR else tensor + 4)

    def all_gather(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        parts[0].fill_(4)
        parts[1].copy_(own)

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        tensor.fill_(4)

    def broadcast_object_list(box: list[object], src: int) -> None:
        assert src == 0 and len(box) == 1
        box[0] = 4

    monkeypatch.setattr(group, "all_reduce", all_reduce)
    monkeypatch.setattr(group, "all_gather", all_gather)
    monkeypatch.setattr(group, "broadcast", broadcast)
    monkeypatch.setattr(group, "broadcast_object_list", broadcast_object_list)


@pytest.mark.usefixtures("second")
def test_values_of_the_ranks_are_added_joined_or_those_of_rank_0() -> None:
    assert distributed.all_reduce_sum(torch.tensor([1, 2])).tolist() == [5, 6]
    assert distributed.all_gather(torch.tensor([1, 2])).tolist() == [[4, 4], [1, 2]]
    assert distributed.all_reduce_or(3) == 7
    assert distributed.broadcast_object(1) == 4
    model = torch.nn.BatchNorm1d(3)
    distributed.broadcast_buffers(model)
    assert model.running_mean.tolist() == [4.0] * 3 and model.num_batches_tracked == 4
    assert model.weight.tolist() == [1.0] * 3


@pytest.mark.usefixtures("second")
def test_the_first_error_of_a_rank_is_raised_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: list[Exception | None] = [None]
    calls: list[int] = []

    def all_gather_object(failures: list[object], own: object) -> None:
        failures[:] = [theirs[0], own]

    monkeypatch.setattr(distributed.distributed, "all_gather_object", all_gather_object)
    assert distributed.raise_on_all_ranks(lambda: 7) == 7
    assert distributed.on_rank_zero(lambda: calls.append(1)) is None and not calls
    assert distributed.from_rank_zero(lambda: calls.append(1)) == 4 and not calls
    with pytest.raises(ZeroDivisionError) as caught:
        distributed.raise_on_all_ranks(lambda: 1 // 0)
    assert caught.value.shared is True
    theirs[0] = ValueError("on rank 0")
    for act in (lambda: 7, lambda: 1 // 0):
        with pytest.raises(ValueError, match="on rank 0") as caught:
            distributed.raise_on_all_ranks(act)
        assert caught.value.shared is True


def test_an_error_that_cannot_be_pickled_is_sent_by_class_and_message() -> None:
    class Local(Exception):
        pass

    error = ValueError("x")
    assert distributed._portable(error) is error
    sent = distributed._portable(Local("what\nmore"))
    assert type(sent) is RuntimeError and str(sent) == "Local: what"


@pytest.mark.usefixtures("second")
def test_ranks_that_hold_different_values_are_reported_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather_object(found: list[object], own: object) -> None:
        found[:] = [{"step": 1}, own]

    monkeypatch.setattr(distributed.distributed, "all_gather_object", all_gather_object)
    distributed.check_ranks_agree({"step": 1}, "resume")
    line = "rank 1 differs from rank 0: step is 2 there and 1 on rank 0; resume"
    with pytest.raises(RanksDisagreeError, match=f"^{line}$"):
        distributed.check_ranks_agree({"step": 2}, "resume")
    monkeypatch.setattr(distributed, "world", World)
    distributed.check_ranks_agree({"step": 2}, "resume")


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/a.cc:1] Connection closed by peer. "),
        RuntimeError("[x] nccl: Connection closed by peer"),
        torch.distributed.DistError("Connection closed by peer"),
    ],
)
def test_a_failed_collective_names_this_rank_and_the_place(error: Exception) -> None:
    with pytest.raises(PeerLostError) as caught, distributed.translate_collective_errors(lambda: "in step 3"):
        raise error
    assert (
        str(caught.value).startswith("rank 1 of 2 lost another rank in step 3 (") and caught.value.__cause__
    )
    assert "Connection closed by peer): it died or hangs: see the end of its log, then start" in str(
        caught.value
    )


@pytest.mark.usefixtures("second")
def test_another_error_is_not_taken_for_a_lost_rank() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes do not match"),
        distributed.translate_collective_errors(lambda: "now"),
    ):
        raise RuntimeError("shapes do not match")


PAIR = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545]"
CALLBACK = "Got the following error when running the callback: "
REASONS = [
    ("[a.cc:1]  lost. . \nmore", "lost"),
    ("x" * 200, "x" * 160),
    ("x" * 80 + " " + "y" * 79, "x" * 80 + " " + "y" * 79),
    ("x" * 80 + " " + "y" * 80, "x" * 80),
    (f"{PAIR} Read error [127.0.0.1]:50123: reset by peer", "Read error [127.0.0.1]:50123: reset by peer"),
    (f"{CALLBACK}RuntimeError: {PAIR} Read error [127.0.0.1]:5: reset", "Read error [127.0.0.1]:5: reset"),
    (f"{CALLBACK}{CALLBACK}RuntimeError: {PAIR} Timed out.\nException raised", "Timed out"),
    (f"{CALLBACK}ValueError: shapes differ", "shapes differ"),
    (f"{PAIR} Closed by peer [127.0.0.1]:5. Check the logs of", "Closed by peer [127.0.0.1]:5"),
    ("NCCL error in: /pytorch/torch/x.cpp:3690, remote process exited", "NCCL error, remote process exited"),
    ("no space left in /data/a: 3", "no space left in /data/a: 3"),
]


@pytest.mark.parametrize(("text", "expected"), REASONS)
def test_the_reason_of_a_collectives_error_is_short_and_has_no_path_of_torchs_sources(
    text: str, expected: str
) -> None:
    assert distributed.reason(RuntimeError(text)) == expected


def test_a_wrong_rank_is_printed_by_every_rank() -> None:
    with pytest.raises(StartError) as caught:
        world(TORCHRUN | {"RANK": "8"})
    assert caught.value.shared is False
    assert str(caught.value).startswith("RANK=8 WORLD_SIZE=8 LOCAL_RANK=1 are not a valid rank: ")
    assert world({"RANK": "7", "WORLD_SIZE": "8"}) == World(7, 8, 0)
    assert [World(rank).is_main_process for rank in (0, 1)] == [True, False]


END = """
import atexit, sys, torch
from ham import process_group

class Late:
    def __del__(self):
        print("python was taken down")

if len(sys.argv) > 1:
    torch.distributed.init_process_group("gloo", init_method=sys.argv[1], rank=0, world_size=1)
late = Late()
atexit.register(print, "tidied up")
sys.stdout.write("said ")
process_group.shutdown(3)
"""


def test_a_rank_ends_tidily_but_does_not_take_python_down(tmp_path: Path) -> None:
    """That would race with threads of gloo, which DistributedDataParallel keeps, and abort a finished run."""
    rendezvous = (tmp_path / "rendezvous").as_uri()
    rank = subprocess.run(
        [sys.executable, "-c", END, rendezvous], capture_output=True, text=True, timeout=120
    )
    assert (rank.returncode, rank.stdout) == (3, "said tidied up\n"), rank.stderr
    alone = subprocess.run([sys.executable, "-c", END], capture_output=True, text=True, timeout=120)
    assert (alone.returncode, alone.stdout) == (0, "said tidied up\npython was taken down\n"), alone.stderr
