"""Two ranks compute what one process does that normalises each rank's images by themselves.

Run as a script this file is one of the two ranks; the test process computes the reference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from extent import ALL
from torch import Tensor, nn
from torch.nn import functional as F

from ham import distributed, perturbed, process_group
from ham.data import derived_seed
from ham.models import Model
from ham.optim.sam import frozen_running_statistics
from ham.run.build import build, setup_device
from ham.run.config import config_hash, load
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.run.state import Run
from ham.tasks.images import ImageClassification

RANKS, STEPS = 2, 15
"""Of 24 in 8 epochs: AC/DC compresses before step 6 and decompresses before step 9."""

TINY = ["+demo=digits", "model.width=4", "batch_size=400", "epochs=8", "optimizer.lr=0.01"]
RIGL_SAM = ["sparsifier.interval=4", "optimizer.sam_rho=0.05", "optimizer.sam_ascent=per_rank"]
CASES = {
    "dense": ["+exp=dense"],
    "ham": ["+exp=dense_ham"],
    "acdc": ["+exp=acdc_s90"],
    "acdc_ham": ["+exp=acdc_ham_s90"],
    "acdc_parts": ["+exp=acdc_s90", "optimizer.accumulate=2"],
    "rigl": ["+exp=rigl_s90", "sparsifier.interval=4"],
    "rigl_product": ["+exp=rigl_sign_in_s90", "sparsifier.interval=4", "parameterization.reset_every=2"],
    "sam": ["+exp=dense_sam_ham", "optimizer.sam_ascent=averaged"],
    "sam_per_rank": ["+exp=dense_sam_ham", "optimizer.sam_ascent=per_rank"],
    "rigl_sam_per_rank": ["+exp=rigl_ham_s90", *RIGL_SAM],
    "group_norm": ["+exp=acdc_ham_s90"],
}
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}
TRAINED = [
    (case, dtype)
    for case in CASES
    for dtype in BOUNDS
    if ALL or dtype == torch.float64 or case in ("dense", "acdc_ham", "rigl_sam_per_rank")
]
"""In float32 a part of the cases by default, with HAM_TESTS=all every one."""

pytestmark = pytest.mark.timeout(1800)


@dataclass
class GroupNormNet(Model):
    """A network without BatchNorm: how a batch is split up cannot matter to it."""

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2)]
        head = [nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
        return nn.Sequential(*layers, *head)


@contextmanager
def prepared(case: str, dtype: torch.dtype, folder: Path, rank: int, ranks: int) -> Iterator[Run]:
    """The run of a case before its first step, computing in `dtype` from the images on."""
    cfg = load([*CASES[case], *TINY])
    if case == "group_norm":
        cfg = replace(cfg, model=GroupNormNet())
    torch.set_default_dtype(dtype)
    try:
        device = setup_device(cfg)
        loaders = cfg.data.load(
            batch_size=cfg.batch_size,
            seed=derived_seed(0, "data"),
            device=device,
            rank=rank,
            world_size=ranks,
        )
        run = build(
            cfg, config_hash(cfg), ImageClassification(cfg, device, loaders), NullLogger(folder, cfg), device
        )
        run.task.forward = lambda network, images: network(images.to(dtype))
        yield run
    finally:
        torch.set_default_dtype(torch.float32)


def follow(run: Run, step: Callable[[Run, tuple[Tensor, Tensor]], object]) -> dict[str, Tensor]:
    """Masks and the model's state after the steps."""
    epoch = 0
    while run.step < STEPS:
        run.sparsifier.on_epoch_start(epoch, run.optimizer)
        for batch in run.task.loaders.train.batches(epoch):
            step(run, batch)
            run.step += 1
        epoch += 1
    distributed.broadcast_buffers(run.model)
    kept = {f"mask {name}": mask for name, mask in run.sparsifier.kept().items()}
    return {name: t.clone() for name, t in run.model.state_dict().items()} | kept


def main(folder: Path) -> None:
    """One of the ranks."""
    torch.set_num_threads(1)
    process_group.init_distributed({}, timeout=60)
    rank = distributed.world().rank
    ends = {}
    for case, dtype in TRAINED:
        with prepared(case, dtype, folder, rank, RANKS) as run:
            ends[f"{case} {dtype}"] = follow(run, train_step)
    torch.save(ends, folder / f"rank{rank}.pt")
    process_group.shutdown()


def gradients(run: Run, shard: tuple[Tensor, Tensor], *, first: bool) -> list[Tensor]:
    """Of the mean loss over one rank's images, part by part; running statistics are those of the first."""
    images, classes = shard
    sums = [torch.zeros_like(p) for p in run.params]
    parts = run.cfg.optimizer.accumulate
    with nullcontext() if first else frozen_running_statistics(run.model):
        for x, y in zip(images.chunk(parts), classes.chunk(parts), strict=True):
            loss = F.cross_entropy(run.task.forward(run.network, x), y) / parts
            for total, gradient in zip(sums, torch.autograd.grad(loss, run.params), strict=True):
                total += gradient
    return sums


def mean_gradient_(run: Run, rows: list[list[Tensor]]) -> None:
    for p, own in zip(run.params, zip(*rows, strict=True), strict=True):
        p.grad = sum(own) / len(own)


def by_hand(run: Run, batch: tuple[Tensor, Tensor]) -> None:
    """A step of two ranks in one process, from gradients of each rank's images."""
    cfg = run.cfg.optimizer
    plain = isinstance(run.cfg.model, GroupNormNet)  # then the whole batch at once is the reference
    shards = [batch] if plain else list(zip(*(t.chunk(RANKS) for t in batch), strict=True))
    own = [gradients(run, shard, first=k == 0) for k, shard in enumerate(shards)]
    mean_gradient_(run, own)
    if run.sparsifier.after_backward(run.step, run.optimizer):
        if cfg.sam_rho > 0:
            ahead = []
            for shard, gradient in zip(shards, own, strict=True):
                mean_gradient_(run, [gradient] if cfg.sam_ascent == "per_rank" else own)
                run.sparsifier.mask_gradients()
                with perturbed(run.params, rho=cfg.sam_rho, freeze_bn=run.model):
                    ahead.append(gradients(run, shard, first=False))
            mean_gradient_(run, ahead)
            run.sparsifier.mask_gradients()
        run.sparsifier.add_decay()
        run.optimizer.step()
        run.sparsifier.after_step()
    run.scheduler.step()
    run.optimizer.zero_grad()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, launch: Callable) -> list[dict[str, dict[str, Tensor]]]:
    """What each rank came to, in every case: one pair of them for all."""
    folder = tmp_path_factory.mktemp("equivalence")
    pair = launch(Path(__file__), str(folder))
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize(("case", "dtype"), TRAINED, ids=str)
def test_two_ranks_are_one_process(case: str, dtype: torch.dtype, ends: list, tmp_path: Path) -> None:
    with prepared(case, dtype, tmp_path, 0, 1) as run:
        start = {name: t.clone() for name, t in run.model.state_dict().items()}
        expected = follow(run, by_hand)
    one, other = (end[f"{case} {dtype}"] for end in ends)
    assert one.keys() == other.keys() == expected.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    masks = [name for name in expected if name.startswith("mask ")]
    assert masks and all(torch.equal(one[name], expected[name]) for name in masks)
    names = [name for name, t in expected.items() if t.is_floating_point()]
    size = norm([expected[name] for name in names])
    assert norm([one[name] - expected[name] for name in names]) <= BOUNDS[dtype] * size
    assert norm([start[name] - expected[name] for name in names]) > 0.05 * size  # they have come far


def norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([t.double().flatten() for t in tensors]).norm())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
