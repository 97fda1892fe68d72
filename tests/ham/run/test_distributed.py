"""Who a process is, and what a single process does in place of talking to others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ham import distributed
from ham.agreement import StartError
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
def test_the_environment_tells_who_a_process_is(environment: dict[str, str], expected: World) -> None:
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
