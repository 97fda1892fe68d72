"""A two-layer model and a loop that leaves no call out, for tests of what other loops do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pruning import STR, PILoT, Product, RandomPruning, Sparsifier, Spred
from pruning.export import plain_state_dict

LENGTHS = {"total_epochs": 4, "steps_per_epoch": 2}
X, Y = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
PARAMETRIZING: dict[str, Callable[[], tuple[Sparsifier, Product | None]]] = {
    "product": lambda: (RandomPruning(0.5), Product()),
    "sign_in": lambda: (RandomPruning(0.5), Product(reset_every=1)),
    "str": lambda: (STR(0.5, calibrate="ramp", initial=-3.0), None),
    "pilot": lambda: (PILoT(0.5), None),
    "spred": lambda: (Spred(0.5), None),
}


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def sgd(model: nn.Module, sparsifier: Sparsifier | None = None) -> torch.optim.SGD:
    params = list(model.parameters())
    return torch.optim.SGD(sparsifier.param_groups(params) if sparsifier else params, lr=0.05, momentum=0.9)


def attached(model: nn.Module, sparsifier: Sparsifier | None = None, **options: object) -> Sparsifier:
    sparsifier = sparsifier or RandomPruning(0.75)
    sparsifier.attach(model, **{**LENGTHS, **options})
    return sparsifier


def train(model: nn.Module, sparsifier: Sparsifier, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    """A loop that announces epochs and leaves nothing out."""
    for step in range(steps):
        if step % 2 == 0:
            sparsifier.on_epoch_start(step // 2, optimizer)
        one_step(model, sparsifier, optimizer, step)
        if step % 2 == 1:
            sparsifier.on_epoch_end(train_accuracy=0.1 * step)


def one_step(
    model: nn.Module, sparsifier: Sparsifier, optimizer: torch.optim.Optimizer, step: int = 0
) -> None:
    x = X.to(next(model.parameters()).dtype)
    cross_entropy(model(x), Y).backward()
    if sparsifier.after_backward(step, optimizer):
        sparsifier.add_decay()
        optimizer.step()
        sparsifier.after_step()
    optimizer.zero_grad()


def zeros_in(model: nn.Module, *names: str) -> float:
    """The fraction of zeros in the named weights of the exported model, by default the linear layers'."""
    state = plain_state_dict(model)
    flat = torch.cat([state[name].flatten() for name in names or ("0.weight", "2.weight")])
    return 1 - int(flat.count_nonzero()) / flat.numel()


def is_one_line(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value)
