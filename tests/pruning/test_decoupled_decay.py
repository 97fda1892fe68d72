"""HAM on the factors of a product reads their gradients without the decay terms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ham import HAM
from pruning import ACDC, Dense, PILoT, Product, RigL, Sparsifier, SparsityWarning, Spred

LR, ALPHA, BETA = 0.1, 3.0, 0.05
METHODS: dict[str, tuple[Callable[[], Sparsifier], Callable[[], Product | None], float, float]] = {
    # sparsifier, parameterization, decay of the factors, decay of the product
    "decay": (Dense, lambda: Product(frobenius=0.0, decay=0.5), 0.5, 0.0),
    "frobenius": (Dense, lambda: Product(frobenius=0.5), 0.0, 0.5),
    "both": (lambda: ACDC(0.5), lambda: Product(frobenius=0.25, decay=0.5), 0.5, 0.25),
    "spred": (lambda: Spred(0.5, decay=0.5), lambda: None, 0.5, 0.0),
    "pilot": (lambda: PILoT(0.5, strength=0.25, frobenius=0.125), lambda: None, 0.5, 0.125),
}


def attached(method: str) -> tuple[nn.Linear, Sparsifier, torch.optim.Optimizer, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    make, parameterization, _, _ = METHODS[method]
    sparsifier = make()
    sparsifier.attach(model, total_epochs=4, steps_per_epoch=8, parameterization=parameterization())
    optimizer = torch.optim.SGD(sparsifier.param_groups(model.parameters()), lr=LR)
    factors = [p for weight in sparsifier.masks.weights.values() for p in weight.parameters]
    return model, sparsifier, optimizer, factors


def expected(method: str, factors: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """A step of SGD with the decay, then HAM's with the gradient that has none."""
    _, _, decay, frobenius = METHODS[method]
    stepped = []
    for own, other, gradient in zip(factors, factors[::-1], gradients, strict=True):
        base = own - LR * (gradient + decay * own + frobenius * own * other * other)
        stepped.append(base * torch.exp(-LR * (ALPHA * base.sign() * gradient + BETA)))
    return stepped


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ham_first", [True, False])
@pytest.mark.parametrize("with_closure", [False, True])
def test_the_hook_gives_ham_gradients_without_decay(method, ham_first, with_closure):
    model, sparsifier, optimizer, factors = attached(method)
    attach = [lambda: HAM(optimizer, alpha=ALPHA, beta=BETA), lambda: sparsifier.hook(optimizer)]
    for call in attach if ham_first else attach[::-1]:
        call()
    sparsifier.on_epoch_start(0, optimizer)
    for _ in range(3):
        before = [p.detach().clone() for p in factors]

        def backward() -> Tensor:
            optimizer.zero_grad()
            (loss := model(torch.ones(1, 3, dtype=torch.float64)).square().sum()).backward()
            return loss

        backward()
        gradients = [p.grad.clone() for p in factors]
        optimizer.step(backward) if with_closure else optimizer.step()
        for found, value in zip(factors, expected(method, before, gradients), strict=True):
            torch.testing.assert_close(found.detach(), value, rtol=1e-12, atol=1e-14)
        assert all(torch.equal(p.grad, gradient) for p, gradient in zip(factors, gradients, strict=True))


def test_without_ham_the_gradients_keep_the_decay():
    model, sparsifier, optimizer, factors = attached("decay")
    sparsifier.hook(optimizer)
    model(torch.zeros(1, 3, dtype=torch.float64)).sum().backward()
    before = [p.detach().clone() for p in factors]
    optimizer.step()
    assert not sparsifier.parameterization.decoupled_decay
    assert all(torch.equal(p.grad, 0.5 * value) for p, value in zip(factors, before, strict=True))


def test_gradients_that_another_sparsifier_drops_stay_dropped():
    """RigL skips the step at which it updates its masks: HAM then moves no weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    product, rigl = Dense(), RigL(0.5, interval=1, update_at_start=True)
    product.attach(model, total_epochs=1, parameterization=Product(decay=0.5), exclude=["1.*"])
    rigl.attach(model, total_epochs=1, steps_per_epoch=8, exclude=["0.*"])
    optimizer = torch.optim.SGD(product.param_groups(model.parameters()), lr=LR)
    HAM(optimizer, alpha=ALPHA, beta=BETA)
    product.hook(optimizer), rigl.hook(optimizer)
    before = model[0].weight.detach().clone()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ham", [True, False])
@pytest.mark.parametrize("decoupled", [True, False, "by a lambda", "without a hook"])
@pytest.mark.filterwarnings("always::pruning.checks.SparsityWarning")
def test_a_loop_that_adds_decay_itself_is_warned(method, ham, decoupled, recwarn):
    model, sparsifier, optimizer, factors = attached(method)
    if decoupled:
        sparsifier.parameterization.decoupled_decay = True
    if decoupled is True:
        optimizer.register_step_post_hook(sparsifier.parameterization.remove_decay)
    elif decoupled == "by a lambda":  # HAM runs before it
        optimizer.register_step_post_hook(lambda *_: sparsifier.parameterization.remove_decay())
    if ham:
        HAM(optimizer, alpha=ALPHA, beta=BETA)
    sparsifier.on_epoch_start(0, optimizer)
    before = [p.detach().clone() for p in factors]
    model(torch.ones(1, 3, dtype=torch.float64)).square().sum().backward()
    gradients = [p.grad.clone() for p in factors]
    sparsifier.after_backward(0, optimizer)
    sparsifier.add_decay()
    optimizer.step()
    sparsifier.after_step()
    messages = [str(w.message) for w in recwarn if issubclass(w.category, SparsityWarning)]
    assert [m.startswith("HAM reads the gradients of the factors m and w with") for m in messages] == (
        [True] if ham and decoupled is not True else []
    )
    if ham and decoupled is True:
        for found, value in zip(factors, expected(method, before, gradients), strict=True):
            torch.testing.assert_close(found.detach(), value, rtol=1e-12, atol=1e-14)
