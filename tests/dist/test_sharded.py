"""HAM on parameters that FSDP2 shards over two ranks: the same weights as whole ones, bit for bit.

Run as a script this file is one of the two ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from ham import HAM, param_groups
from ham import distributed, process_group

RANKS, STEPS = 2, 6
OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
}
HAMS = {
    "plain": dict(alpha=20.0, beta=1e-2),
    "counted": dict(alpha=200.0, beta=1e-2, clamp=0.1, track_clamped=True),
    "clipped": dict(alpha=20.0, beta=1e-2, max_weight_norm=2.0),
}
CASES = [(optimizer, ham) for optimizer in OPTIMIZERS for ham in HAMS]


def network() -> nn.Sequential:
    """Odd sizes: shards of unequal length, and one rank without a piece of the smallest bias."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 15), nn.LayerNorm(15), nn.ReLU(), nn.Linear(15, 1), nn.Linear(1, 3)]
    return nn.Sequential(*layers).double()


def train(model: nn.Module, optimizer: str, ham: str) -> dict[str, object]:
    """Six steps on the same batches on every rank; weights whole, and what HAM counted."""
    steps = OPTIMIZERS[optimizer](param_groups(model, weight_decay=1e-3))
    hook = HAM(steps, **HAMS[ham])
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        inputs = torch.randn(16, 8, generator=generator, dtype=torch.float64)
        classes = torch.randint(3, (16,), generator=generator)
        cross_entropy(model(inputs), classes).backward()
        steps.step()
        steps.zero_grad()
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}
    share = float(hook.clamped_share()) if hook.track_clamped else 0.0
    groups = get_optimizer_state_dict(model, steps)["param_groups"]
    assert all("ham_alpha" in group for group in groups)  # torch's own distributed checkpoints carry it
    return {**{n: p.detach().clone() for n, p in whole.items()}, "share": torch.tensor(share)}


def main(folder: Path) -> None:
    """One of the ranks."""
    torch.set_num_threads(1)
    process_group.init_distributed({}, timeout=60)
    mesh = init_device_mesh("cpu", (RANKS,))
    ends = {}
    for case in CASES:
        model = network()
        fully_shard(model, mesh=mesh)
        assert any(isinstance(p, DTensor) for p in model.parameters())
        ends[" ".join(case)] = train(model, *case)
    torch.save(ends, folder / f"rank{distributed.world().rank}.pt")
    process_group.shutdown()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, launch: Callable) -> list[dict[str, dict[str, Tensor]]]:
    """What each rank came to, in every case."""
    folder = tmp_path_factory.mktemp("sharded")
    pair = launch(Path(__file__), str(folder))
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize(("optimizer", "ham"), CASES)
def test_sharded_weights_move_as_whole_ones(optimizer: str, ham: str, ends: list) -> None:
    expected = train(network(), optimizer, ham)
    start = dict(network().named_parameters())
    one, other = (end[f"{optimizer} {ham}"] for end in ends)
    for name in expected.keys() - {"share"}:
        assert torch.equal(one[name], other[name])
        assert torch.allclose(one[name], expected[name], rtol=1e-12, atol=1e-14), name
        assert not torch.equal(expected[name], start[name])
    shares = [end["share"] for end in (one, other)]  # of a rank's own pieces, which are no larger than half
    assert min(shares) <= expected["share"] <= max(shares)
    assert ham != "counted" or max(shares) > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
