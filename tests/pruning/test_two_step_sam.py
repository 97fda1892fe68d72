"""Sparsifiers on SAM as an optimizer around another one: it trains like the block `perturbed`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from short_loops import X, Y, model_of, zeros_in
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from two_step_sam import TwoStepSAM, sam_step

from ham import HAM, perturbed
from pruning import ACDC, STR, Product, RandomPruning, RigL, Sparsifier

LENGTHS = {"total_epochs": 6, "steps_per_epoch": 2}
METHODS: dict[str, Callable[[], Sparsifier]] = {
    "random": lambda: RandomPruning(0.75),
    "product": lambda: RandomPruning(0.5),
    "rigl": lambda: RigL(0.75, interval=2, drop_fraction=0.5),
    "acdc": lambda: ACDC(0.75),
    "str": lambda: STR(0.5, calibrate="ramp", initial=-3.0),
}
APIS = ("two steps", "closure")


def train(method: str, base: type[Optimizer], with_ham: bool, api: str | None) -> SimpleNamespace:
    """With the class of SAM by one of its APIs, or without it by `perturbed`."""
    model, sparsifier = model_of().double(), METHODS[method]()
    parameterization = Product() if method == "product" else None
    sparsifier.attach(model, **LENGTHS, parameterization=parameterization)
    groups = sparsifier.param_groups(model.parameters())
    optimizer = TwoStepSAM(groups, base, rho=0.1, lr=0.05) if api else base(groups, lr=0.05)
    if with_ham:
        HAM(optimizer, model=model, alpha=5.0, beta=0.1)
    calls: list[int] = []
    after_step = sparsifier.after_step
    sparsifier.after_step = lambda: (calls.append(sparsifier.step), after_step())
    hook = sparsifier.hook(optimizer)

    def backward() -> None:
        cross_entropy(model(X.double()), Y).backward()

    states = []
    for step in range(12):
        if step % 2 == 0:
            sparsifier.on_epoch_start(step // 2, optimizer)
        if api:
            sam_step(optimizer, backward, api)
        else:
            backward()
            with perturbed(model.parameters(), rho=0.1):
                backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append([p.detach().clone() for p in model.parameters()])
    inner = getattr(optimizer, "base_optimizer", optimizer)
    assert hook.optimizer is inner and sparsifier.step == 12
    return SimpleNamespace(
        model=model,
        sparsifier=sparsifier,
        states=states,
        calls=calls,
        inner=inner,
        outer=optimizer,
        hook=hook,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("base", "with_ham"), [(SGD, True), (AdamW, False)])
@pytest.mark.filterwarnings("ignore:STR's ramp ended", "ignore:.*ended at sparsity")
def test_both_apis_of_sam_train_like_the_block(method, base, with_ham):
    reference = train(method, base, with_ham, None)
    for api in APIS:
        training = train(method, base, with_ham, api)
        assert training.calls == reference.calls  # once in each step that is taken
        for one, other in zip(training.states, reference.states, strict=True):
            for p, q in zip(one, other, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        if method != "str":
            assert zeros_in(training.model) == zeros_in(reference.model) > 0.45


@pytest.mark.parametrize("base", [SGD, AdamW])
def test_momentum_of_pruned_weights_is_zeroed_through_the_wrapper(base):
    """`on_epoch_start` and `set_masks` get the wrapper, whose own state has no momentum."""
    model = model_of()
    sparsifier = ACDC(0.75)
    options = {"momentum": 0.9} if base is SGD else {"weight_decay": 0.0}
    sam = TwoStepSAM(model.parameters(), base, lr=0.05, **options)
    sparsifier.attach(model, sam, **LENGTHS)
    key = "momentum_buffer" if base is SGD else "exp_avg"
    for epoch in range(5):
        sparsifier.on_epoch_start(epoch, sam)
        if sparsifier.masks.active:
            break
        sam_step(sam, lambda: cross_entropy(model(X), Y).backward(), "two steps")
    assert sparsifier.masks.active
    for name, mask in sparsifier.masks.masks.items():
        momentum = sam.base_optimizer.state[model.get_parameter(name)][key]
        assert (momentum[~mask] == 0).all() and (momentum[mask] != 0).any()


class Mixing(TwoStepSAM):
    """Runs hooks and moves weights after the base step, as Lookahead does."""

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        self.base_optimizer.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(0.01)


def test_masks_hold_after_a_wrapper_that_moves_weights_itself():
    model = model_of()
    sparsifier = RandomPruning(0.75)
    optimizer = Mixing(model.parameters(), SGD, lr=0.05)
    sparsifier.attach(model, optimizer, **LENGTHS)
    pruned = zeros_in(model)
    assert pruned > 0.7
    for steps in range(1, 4):
        cross_entropy(model(X), Y).backward()
        optimizer.step()
        assert sparsifier.step == steps and zeros_in(model) == pruned
    sparsifier._hook.remove()
    optimizer.step()
    assert zeros_in(model) == 0


def test_a_base_optimizer_of_other_parameters_is_not_followed():
    model = model_of()
    optimizer = SGD(model.parameters(), lr=0.05)
    optimizer.base_optimizer = AdamW([nn.Parameter(torch.ones(1))])
    sparsifier = RandomPruning(0.75)
    sparsifier.attach(model, optimizer, **LENGTHS)
    assert sparsifier._hook.optimizer is optimizer
