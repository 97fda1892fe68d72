"""The training that test_sharded_sparsifiers.py compares: on two ranks that split weights, and in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from ham import HAM, param_groups
from pruning import (
    ACDC,
    GMP,
    SET,
    SNIP,
    Dense,
    GraSP,
    MaskFrom,
    OneShotMagnitude,
    RandomPruning,
    RigL,
    Sparsifier,
    SynFlow,
)

EPOCHS, STEPS = 8, 2
OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
}
METHODS: dict[str, Callable[[Path], Sparsifier]] = {
    "random": lambda masks: RandomPruning(0.6),
    "mask_from": lambda masks: MaskFrom(0.5, source=str(masks)),
    "rigl": lambda masks: RigL(0.6, interval=2, drop_fraction=0.8, until=1.0, allocation="uniform"),
    "acdc": lambda masks: ACDC(0.6),
    "acdc_layerwise": lambda masks: ACDC(
        0.4, scope="layerwise", revive="stale", revive_second_moment="zero", reset_momentum=False
    ),
    "dense": lambda masks: Dense(),
    "gmp": lambda masks: GMP(0.6, interval=3, scope="global"),
    "one_shot": lambda masks: OneShotMagnitude(0.6),
    "set": lambda masks: SET(0.6, allocation="uniform"),
    "grasp": lambda masks: GraSP(0.6, batches=2),
    "snip": lambda masks: SNIP(0.6, batches=2),
    "synflow": lambda masks: SynFlow(0.6, iterations=5),
}
AT_INITIALIZATION = ("snip", "synflow", "grasp")
Shard = Callable[[nn.Module], object]


@dataclass(frozen=True)
class Case:
    """A training; `order` says when weights are split: before `attach`, after it, or some of them before it."""

    method: str
    optimizer: str
    order: str

    def __str__(self) -> str:
        return f"{self.method}-{self.optimizer}-{self.order}"


CASES = [
    *(Case(method, "sgd", "before") for method in METHODS if method not in AT_INITIALIZATION),
    *(Case(method, "adamw", "after") for method in METHODS),
    *(Case(*names) for names in product(("rigl", "acdc"), ("adamw",), ("before", "partly", "hybrid"))),
    Case("acdc_layerwise", "adamw", "before"),
]


def network() -> nn.Sequential:
    """Odd sizes: shards of unequal length, and a weight with one row, of which rank 1 has nothing."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 15), nn.LayerNorm(15), nn.ReLU(), nn.Linear(15, 1), nn.Linear(1, 3)]
    return nn.Sequential(*layers).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(16, 8, generator=generator, dtype=torch.float64),
            torch.randint(3, (16,), generator=generator),
        )
        for _ in range(EPOCHS * STEPS)
    ]


def given_masks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {"0.weight": (15, 8), "3.weight": (1, 15), "4.weight": (3, 1)}
    return {name: torch.rand(shape, generator=generator) > 0.5 for name, shape in shapes.items()}


class Training:
    """A model, its optimizer with HAM, and a sparsifier: hooked where weights are split before `attach`."""

    def __init__(self, case: Case, masks: Path, shard: Shard = lambda model: None) -> None:
        self.model, self.data = network(), batches()
        self.sparsifier = METHODS[case.method](masks)
        if case.order != "after":
            shard(self.model)
        given = given_masks() if case.method == "dense" else None
        self.sparsifier.attach(self.model, total_epochs=EPOCHS, steps_per_epoch=STEPS, masks=given)
        self.sparsifier.initialize(self.data[:2], cross_entropy)
        if case.order == "after":
            shard(self.model)
        self.optimizer = OPTIMIZERS[case.optimizer](param_groups(self.model, weight_decay=1e-3))
        HAM(self.optimizer, alpha=20.0, beta=1e-2)
        if case.order == "before":
            self.sparsifier.hook(self.optimizer)
        self.is_hooked = case.order == "before"

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train an epoch, use the model, and report what it has then."""
        self.sparsifier.on_epoch_start(epoch, self.optimizer)
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            inputs, targets = self.data[step]
            cross_entropy(self.model(inputs), targets).backward()
            if self.is_hooked:
                self.optimizer.step()
            elif self.sparsifier.after_backward(step, self.optimizer):
                self.sparsifier.add_decay()
                self.optimizer.step()
                self.sparsifier.after_step()
            self.optimizer.zero_grad()
        if not distributed.is_initialized() or distributed.get_rank() == 0:
            self.sparsifier.stats()  # as a log of rank 0 does: the others need not take part
        with torch.no_grad():
            self.model(self.data[0][0])  # fully_shard leaves all weights of the outermost module afterwards
        return self.report()

    def report(self) -> dict[str, Any]:
        """Counts and stats as the sparsifier has them, and the weights as the model has them."""
        counts, stats = list(self.sparsifier.counts()), self.sparsifier.stats()
        of_masks = list(self.sparsifier.masks.counts())
        kept = {name: whole(mask).clone() for name, mask in self.sparsifier.kept().items()}
        weights = {name: whole(p).detach().clone() for name, p in self.model.named_parameters()}
        return {
            "counts": counts,
            "of_masks": of_masks,
            "stats": stats,
            "sparsity": self.sparsifier.achieved_sparsity(),
            "kept": kept,
            "weights": weights,
            "moments": self._moments(),
        }

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"{name} {key}": whole(value).clone()
            for name, p in self.model.named_parameters()
            for key, value in self.optimizer.state.get(p, {}).items()
            if isinstance(value, Tensor) and value.shape == p.shape
        }


def train(case: Case, masks: Path, shard: Shard = lambda model: None) -> list[dict[str, Any]]:
    training = Training(case, masks, shard)
    return [training.epoch(epoch) for epoch in range(EPOCHS)]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
