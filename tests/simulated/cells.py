"""Short trainings of every sparsifier on any device; what they share: where tensors are, when the host waits.

The same code runs on the simulated device, on a CUDA device and on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contract import EPOCHS, METHODS, RESETS
from extent import ALL
from recorder import Outcome, Recorder
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ham import HAM, param_groups, perturbed
from ham.run.metrics import EpochMetrics
from pruning import Product, RandomPruning
from pruning.base import SPARSIFIERS
from pruning.export import save_masks
from pruning.stats import SignFlips, inverse_metric_at_zero, l1_norm, small_fractions

Around = Callable[[int], AbstractContextManager]
"""Step number -> the context in which that step runs, such as one that forbids host syncs."""

BATCH = 4
TRAINED, LOOKS = (0, 2, 3, 7), (3, 7)
"""Epochs with a step, and after which statistics are computed. An epoch is one step: the first, AC/DC's first
sparse one, that of its decompression, of Sign-In's reset and of RigL's update, and the last."""

ALSO_TRAINED = {"set": 5}
"""Method -> another epoch with a step: that in which it updates its masks."""

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=3e-3, fused=True),
}


@dataclass(frozen=True)
class Cell:
    """What to train.

    Args:
        method: a row of METHODS in tests/pruning/contract.py.
        optimizer: a key of OPTIMIZERS.
        rule: "ham", "sam" or "neither".
        product: weights are products m * w, with resets.
        implementation: of HAM's step; None is the fastest.
    """

    method: str
    optimizer: str
    rule: str = "neither"
    product: bool = False
    implementation: str | None = None

    def __str__(self) -> str:
        parts = (
            self.method,
            "product" if self.product else "",
            self.optimizer,
            self.rule,
            self.implementation,
        )
        return "-".join(part for part in parts if part)


def network() -> nn.Module:
    """A convolution with BatchNorm and a linear layer, for gray images of 8x8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


def write_masks(path: Path) -> None:
    """A mask file for `network`, as a finished run leaves it."""
    origin = RandomPruning(0.8)
    origin.attach(network(), total_epochs=1)
    save_masks(path, origin)


def made_by(method: str) -> type:
    """The class of a row of METHODS."""
    return type(METHODS[method].make(Path("masks.pt")))


def cells() -> Iterator[Cell]:
    """The first row of each class with a part of its cells, its other rows with SGD and HAM.

    A cell is a parameterization with HAM, SAM or neither; it has one of the two optimizers, in turn. RigL and
    the classes with a parameterization of their own have every cell, those whose masks never change one of
    four, the others two of four, another choice for each class. HAM_TESTS=all has every cell and optimizer.
    """
    seen: set[type] = set()
    for place, (method, row) in enumerate(METHODS.items()):
        products, cls = (False, True)[: 1 + row.plain], made_by(method)
        if cls in seen:
            yield Cell(method, "sgd", "ham")
            continue
        seen.add(cls)
        part = 4 if ALL or method == "rigl" or not row.plain else 1 if row.fixed else 2
        for turn, (product, rule) in enumerate(itertools.product(products, ("ham", "sam", "neither")), place):
            both = list(OPTIMIZERS)
            for optimizer in both if ALL else [both[turn % 2]]:
                if turn % 4 < part:
                    yield Cell(method, optimizer, rule, product)
    for implementation in ("reference", "foreach"):
        yield Cell("dense", "sgd", "ham", implementation=implementation)


CELLS = list(cells())


def methods_without_a_row() -> list[str]:
    """Registered sparsifiers that no row of METHODS makes."""
    made = set(map(made_by, METHODS))
    own = {name: cls for name, cls in SPARSIFIERS.items() if cls.__module__.partition(".")[0] == "pruning"}
    return sorted(name for name, cls in own.items() if cls not in made)


class Training:
    """A cell's model, sparsifier, optimizer and statistics on a device.

    Args:
        cell: what to train.
        masks: path of a mask file for `network`.
        device: where.
    """

    def __init__(self, cell: Cell, masks: Path, device: torch.device) -> None:
        self.cell, self.recorder = cell, Recorder(device)
        self.model = network().to(device)
        images = torch.rand(BATCH, 1, 8, 8, device=device)
        self.batch = images, torch.zeros(BATCH, dtype=torch.long, device=device)
        self.sparsifier = METHODS[cell.method].make(masks)
        parameterization = Product(decay=1e-4, reset_every=RESETS[0]) if cell.product else None
        lengths = dict(total_epochs=EPOCHS, steps_per_epoch=1)
        self.sparsifier.attach(self.model, **lengths, seed=0, parameterization=parameterization)
        groups = self.sparsifier.param_groups(param_groups(self.model, weight_decay=0.01))
        self.optimizer = OPTIMIZERS[cell.optimizer](groups)
        self.ham = self._ham() if cell.rule == "ham" else None
        self.flips, self.metrics = SignFlips(self.sparsifier.masks, every=4), EpochMetrics(device)

    def _ham(self) -> HAM:
        factors = self.sparsifier.parameterization
        if self.cell.product:  # HAM sees gradients without decay
            factors.decoupled_decay = True
            self.optimizer.register_step_post_hook(factors.remove_decay)
        return HAM(self.optimizer, track_clamped=True, implementation=self.cell.implementation)

    def run(self, around: Around) -> Outcome:
        """Go through all epochs of the contract."""
        self.sparsifier.initialize([self.batch] * 10, cross_entropy)
        self.flips.begin()
        for epoch in range(EPOCHS):
            self.sparsifier.on_epoch_start(epoch, self.optimizer)
            if epoch in TRAINED or epoch == ALSO_TRAINED.get(self.cell.method):
                with around(epoch), self.recorder.updates_noted(self.sparsifier.masks, epoch):
                    self.step(epoch)
            if epoch in LOOKS:
                self.write_statistics(epoch)
            self.sparsifier.on_epoch_end(train_accuracy=(epoch + 1) / EPOCHS)
        self.sparsifier.on_end()
        self.sparsifier.load_state_dict(copied_to_cpu(self.sparsifier.state_dict()))
        self.look("after a resume")
        return self.recorder.outcome

    def step(self, number: int) -> None:
        """One step, in the order of `ham.run.loop.train_step`."""
        loss = self.backward()
        if self.sparsifier.after_backward(number, self.optimizer):
            if self.cell.rule == "sam":
                with perturbed(self.model.parameters(), rho=0.05, freeze_bn=self.model):
                    self.backward()
                    self.sparsifier.mask_gradients()
            self.sparsifier.add_decay()
            self.optimizer.step()
            self.sparsifier.after_step()
        self.recorder.look_at("gradients", {name: p.grad for name, p in self.model.named_parameters()})
        self.optimizer.zero_grad()
        self.metrics.update_loss(number, loss)

    def backward(self) -> Tensor:
        images, labels = self.batch
        logits = self.model(images)
        loss = cross_entropy(logits, labels)
        loss.backward()
        self.recorder.look_at("outputs", {"logits": logits, "loss": loss})
        self.metrics.update_accuracy(logits, labels)
        return loss

    def write_statistics(self, epoch: int) -> None:
        """What `ham.run.loop` reads after an epoch, where it may wait for the device."""
        self.metrics.running_loss(), self.metrics.diverged_at(), self.metrics.means()
        self.metrics.reset()
        masks = self.sparsifier.masks
        self.sparsifier.stats(), l1_norm(masks), small_fractions(masks), self.flips.on_epoch_end(epoch + 1)
        for name, weight in masks.weights.items():
            inverse_metric_at_zero(weight, mask=masks.masks.get(name))
        if self.ham:
            self.recorder.look_at("HAM", {"clamped_share": self.ham.clamped_share()})
            self.ham.load_state_dict(self.ham.state_dict())
        self.look(f"after epoch {epoch}")

    def look(self, when: str) -> None:
        """Note every tensor that is on another device."""
        self.recorder.look(when, self.model, self.sparsifier, self.optimizer)


def copied_to_cpu(content: Any) -> Any:
    """Nested mappings and sequences with every tensor on the CPU, as a checkpoint is loaded.

    Those that are there, such as the state of a generator, stay real: a fake one would have no values.
    """
    if isinstance(content, Tensor):
        return content if content.device.type == "cpu" else content.detach().cpu()
    if isinstance(content, Mapping):
        return {key: copied_to_cpu(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [copied_to_cpu(value) for value in content]
    return content


def train(cell: Cell, masks: Path, device: torch.device, around: Around) -> Outcome:
    """Train a cell; see `Training`."""
    return Training(cell, masks, device).run(around)
