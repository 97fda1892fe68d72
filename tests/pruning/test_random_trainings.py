"""A sparsifier never reports what the model does not have: held in trainings drawn at random.

Each draw picks a network, a method, an optimizer, a trainer and a point of resume. After every step the
reported sparsity is the fraction of exact zeros in the exported weights, what a mask prunes is exactly zero
there, and in a method's sparse phase the kept count is the method's target. Where a draw is impossible,
`attach` or `initialize` raises one line that names a cure.
"""

from __future__ import annotations

import io
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from contract import CELLS, METHODS, RESETS
from extent import ALL
from small_networks import NETWORKS, Network
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from ham import HAM
from pruning import MaskFrom, Product, RandomPruning
from pruning.export import plain_state_dict, save_masks

EPOCHS = 8
"""Of one step each: the phases of METHODS are of eight epochs."""

SPARSITY = Fraction(4, 5)
PART, TRAININGS = 125, 2000 if ALL else 500
"""Drawn per test, and in all."""

CURES = r"exclude it|or exclude \S+$|untie them first|choose SNIP or RandomPruning|another parametrization"


def lion(groups: list[dict]) -> Optimizer:
    from timm.optim import Lion

    return Lion(groups, lr=1e-3)


OPTIMIZERS: dict[str, Callable[[list[dict]], Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=3e-3),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, centered=True, momentum=0.5),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2, initial_accumulator_value=0.1),
    "lion": lion,
}
TRAINERS = ("explicit", "accumulating", "hooked", "closure", "scaled")


@dataclass(frozen=True)
class Draw:
    """One training; `resume_after` is the step after which a new model continues from saved bytes."""

    network: str
    method: str
    parameterization: str
    optimizer: str
    ham: bool
    trainer: str
    resume_after: int
    seed: int

    @classmethod
    def of(cls, seed: int) -> Draw:
        pick = random.Random(seed)
        method, factored, ham = pick.choice(CELLS)
        return cls(
            network=pick.choice(list(NETWORKS)),
            method=method,
            parameterization=pick.choice(["product", "sign_in"]) if factored else "plain",
            optimizer=pick.choice(list(OPTIMIZERS)),
            ham=ham,
            trainer=pick.choice(TRAINERS),
            resume_after=pick.randrange(EPOCHS),
            seed=seed,
        )

    @property
    def is_impossible(self) -> bool:
        """Must attach or initialize refuse this draw?"""
        network = NETWORKS[self.network]
        factors = self.parameterization != "plain" or not METHODS[self.method].plain
        takes = network.takes_factors if factors else network.takes_masks
        return not takes or (self.method == "synflow" and network.tokens)


class Training:
    """A model, its sparsifier and its optimizer, new or resumed from saved bytes."""

    def __init__(self, draw: Draw, masks: Path, saved: bytes | None = None) -> None:
        self.draw, self.network = draw, NETWORKS[draw.network]
        self.model = self.network.build(draw.seed + 1 if saved else draw.seed)
        self.sparsifier = METHODS[draw.method].make(masks)
        if isinstance(self.sparsifier, MaskFrom):
            self.sparsifier.tolerance = 0.05  # of ERK's rounding on so few weights
        product = draw.parameterization != "plain"
        resets = RESETS[0] if draw.parameterization == "sign_in" else 0
        self.sparsifier.attach(
            self.model,
            total_epochs=EPOCHS,
            steps_per_epoch=1,
            seed=draw.seed,
            parameterization=Product(decay=1e-4, reset_every=resets) if product else None,
            include=self.network.include,
            exclude=self.network.exclude,
        )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[draw.optimizer](self.sparsifier.param_groups(trained))
        if draw.ham:
            if product:  # HAM sees gradients without decay
                parameterization = self.sparsifier.parameterization
                parameterization.decoupled_decay = True
                self.optimizer.register_step_post_hook(parameterization.remove_decay)
            HAM(self.optimizer, model=self.model, alpha=2.0, beta=1e-3)
        if draw.trainer in ("hooked", "closure", "scaled"):
            self.sparsifier.hook(self.optimizer)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        if saved is None:
            batches = [self.network.batch(draw.seed), self.network.batch(draw.seed + 1)]
            self.sparsifier.initialize(batches, cross_entropy)
        else:
            state = torch.load(io.BytesIO(saved), weights_only=True)
            for name in ("model", "optimizer", "sparsifier"):
                getattr(self, name).load_state_dict(state[name])

    def save(self) -> bytes:
        file = io.BytesIO()
        parts = ("model", "optimizer", "sparsifier")
        torch.save({name: getattr(self, name).state_dict() for name in parts}, file)
        return file.getvalue()

    def loss(self, step: int) -> Tensor:
        inputs, labels = self.network.batch(1000 * self.draw.seed + step)
        return cross_entropy(self.model(inputs), labels)

    def step(self, step: int) -> None:
        """An epoch of one optimizer step."""
        self.sparsifier.on_epoch_start(step, self.optimizer)
        getattr(self, f"_{self.draw.trainer}")(step)
        self.optimizer.zero_grad()
        self.sparsifier.on_epoch_end(train_accuracy=step / EPOCHS)
        if step == EPOCHS - 1 and self.draw.trainer in ("explicit", "accumulating"):
            self.sparsifier.on_end()

    def _explicit(self, step: int) -> None:
        self.loss(step).backward()
        if self.sparsifier.after_backward(step, self.optimizer):
            self.sparsifier.add_decay()
            self.optimizer.step()
            self.sparsifier.after_step()

    def _accumulating(self, step: int) -> None:
        (self.loss(step + EPOCHS) / 2).backward()
        self._explicit(step)

    def _hooked(self, step: int) -> None:
        self.loss(step).backward()
        self.optimizer.step()

    def _closure(self, step: int) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()
            return loss

        self.optimizer.step(closure)

    def _scaled(self, step: int) -> None:
        self.scaler.scale(self.loss(step)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def check_report(training: Training, phase: str) -> None:
    """Hold the sparsifier's report to the exported weights; `phase` is one of METHODS' letters."""
    sparsifier, state = training.sparsifier, plain_state_dict(training.model)
    weights = {name: state[name] for name in training.network.prunable}
    assert sparsifier.masks.weights.keys() == weights.keys()
    total = sum(value.numel() for value in weights.values())
    nonzero = sum(int((value != 0).sum()) for value in weights.values())
    assert all(value.isfinite().all() for value in weights.values())
    assert sparsifier.achieved_sparsity() == 1 - nonzero / total
    assert sparsifier.stats()["kept"] == nonzero
    for name, kept in sparsifier.kept().items():
        assert not weights[name][~kept].any(), name
    kept = sum(int(mask.sum()) for mask in sparsifier.kept().values())
    if phase == "t":
        assert kept == nonzero
    elif phase == "d":
        assert kept == total
    elif phase == "g":  # on the way
        assert total >= kept >= int(total * (1 - SPARSITY)) - len(weights)
    else:
        check_target(training.draw.method, kept, {name: value.numel() for name, value in weights.items()})


def check_target(method: str, kept: int, sizes: dict[str, int]) -> None:
    total = sum(sizes.values())
    if method in ("acdc_layerwise", "gmp"):
        assert kept == sum(int(size * (1 - SPARSITY)) for size in sizes.values())
    elif isinstance(METHODS[method].kept, int):
        assert kept == int(total * (1 - SPARSITY))
    else:  # per layer, whose sizes are rounded up at most twice
        assert 0 <= kept - total * (1 - SPARSITY) < 2 * len(sizes)


def train(draw: Draw, masks: Path) -> None:
    """Train and resume; check after every step."""
    training, phases = Training(draw, masks), METHODS[draw.method].phases
    check_report(training, phases[0])
    for step in range(EPOCHS):
        training.step(step)
        check_report(training, phases[step])
        if step == draw.resume_after:
            training = Training(draw, masks, training.save())
            check_report(training, phases[step])


@pytest.fixture(scope="module")
def mask_files(tmp_path_factory) -> dict[str, Path]:
    """For each network the masks of a finished run; a path that is not there for one that takes no masks."""
    folder = tmp_path_factory.mktemp("masks")
    for name, network in NETWORKS.items():
        if network.takes_masks:
            save_masks(folder / name, finished(network), {"exp": "random"})
    return {name: folder / name for name in NETWORKS}


def finished(network: Network) -> RandomPruning:
    origin, model = RandomPruning(float(SPARSITY)), network.build(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        origin.attach(model, total_epochs=1, seed=7, include=network.include, exclude=network.exclude)
    return origin


@pytest.mark.filterwarnings(
    "ignore:all weights of", "ignore:the prunable weights are", "ignore:STR.s ramp ended"
)
@pytest.mark.parametrize(
    "seeds",
    [
        range(PART),
        *(
            pytest.param(range(first, first + PART), marks=pytest.mark.slow)
            for first in range(PART, TRAININGS, PART)
        ),
    ],
    ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}",
)
def test_what_is_reported_is_in_the_model(seeds, mask_files):
    for draw in map(Draw.of, seeds):
        try:
            if draw.is_impossible:
                with pytest.raises(ValueError) as caught:
                    Training(draw, mask_files[draw.network])
                assert re.search(CURES, line := str(caught.value)) and "\n" not in line, line
            else:
                train(draw, mask_files[draw.network])
        except Exception as error:
            raise AssertionError(f"{draw}: {type(error).__name__}: {error}") from error
