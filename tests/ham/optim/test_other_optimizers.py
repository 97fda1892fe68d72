"""HAM on the optimizers of torch, timm, schedulefree and pytorch_optimizer: right, or refused in one line."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ham import HAM

ALPHA, BETA = 20.0, 0.5
Maker = Callable[[list[nn.Parameter]], Optimizer]


def of_torch() -> Iterator[tuple[str, Maker]]:
    names = (
        "SGD",
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "Adagrad",
        "Adadelta",
        "Adamax",
        "RMSprop",
        "Rprop",
        "ASGD",
    )
    for name in (*names, "Adafactor"):
        for flags in ({}, {"foreach": True}, {"foreach": False}):
            yield (
                f"{name} {flags}",
                lambda p, name=name, flags=flags: getattr(torch.optim, name)(p, lr=1e-2, **flags),
            )


def of_timm() -> Iterator[tuple[str, Maker]]:
    timm = pytest.importorskip("timm.optim")
    for name in timm.list_optimizers():
        if not name.startswith(("fused", "bnb")) and name != "adahessian" and "kron" not in name:
            yield name, lambda p, name=name: timm.create_optimizer_v2(p, opt=name, lr=1e-2, weight_decay=1e-2)


def of_schedulefree() -> Iterator[tuple[str, Maker]]:
    package = pytest.importorskip("schedulefree")
    for name in ("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"):
        yield name, lambda p, name=name: getattr(package, name)(p, lr=1e-2)


def of_pytorch_optimizer() -> Iterator[tuple[str, Maker]]:
    package = pytest.importorskip("pytorch_optimizer")

    def make(params: list[nn.Parameter], cls: type[Optimizer]) -> Optimizer:
        try:
            return cls(params, lr=1e-2)
        except TypeError:
            return cls(params)

    for name in package.get_supported_optimizers():
        cls = package.load_optimizer(name)
        yield cls.__name__, lambda p, cls=cls: make(p, cls)


def train(make: Maker, steps: int, attach: Callable[[Optimizer, nn.Module], Callable[[], None]]) -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.Linear(16, 3))
    model = nn.Sequential(*layers)
    optimizer = make(list(model.parameters()))
    getattr(optimizer, "train", lambda: None)()
    check = attach(optimizer, model)
    for _ in range(steps):
        x, y = torch.randn(32, 6), torch.arange(32) % 3
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        check()


def after_base_step(optimizer: Optimizer, params: list[nn.Parameter]) -> list[Tensor]:
    """A list to which each step appends the weights as HAM finds them."""
    weights: list[Tensor] = []

    def append(*_: object) -> None:
        weights.extend(p.detach().clone() for p in params)

    append.restores_gradients = True
    optimizer.register_step_post_hook(append)
    return weights


def checked_ham(optimizer: Optimizer, model: nn.Module) -> Callable[[], None]:
    """Attach HAM and hooks around it; the result checks its last step against the formula in float64.

    Of a wrapper such as Lookahead, HAM follows the optimizer inside; what the wrapper does later is its own.
    """
    taken: dict[str, list[Tensor]] = {}
    inner = HAM(optimizer, model=model, alpha=ALPHA, beta=BETA, select="everything").optimizer

    def take(name: str) -> Callable[..., None]:
        return lambda *_: taken.update({name: [value(name, p) for p in model.parameters()]})

    base_step = take("base")
    base_step.restores_gradients = True

    def value(name: str, p: nn.Parameter) -> Tensor:
        return (p.grad if name == "grad" else p).detach().double().clone()

    pre = inner.register_step_pre_hook(take("grad"))
    inner._optimizer_step_pre_hooks.move_to_end(pre.id, last=False)
    inner.register_step_post_hook(base_step)
    inner.register_step_post_hook(take("stepped"))

    def check() -> None:
        rates = {p: float(group["lr"]) for group in inner.param_groups for p in group["params"]}
        for p, grad, theta, stepped in zip(model.parameters(), *taken.values(), strict=True):
            alpha = -ALPHA if inner.param_groups[0].get("maximize") else ALPHA
            exponent = (-rates[p] * (alpha * theta.sign() * grad + BETA)).clamp(-5, 5)
            torch.testing.assert_close(stepped, theta * exponent.exp(), rtol=1e-5, atol=1e-30)

    return check


def outcome_of(make: Maker, steps: int) -> str:
    """ "right", HAM's refusal or "fails without HAM"; raises AssertionError for anything else."""
    try:
        train(make, steps, checked_ham)
    except AssertionError:
        raise
    except Exception as error:
        if "HAM" in str(error):
            assert isinstance(error, ValueError) and "\n" not in str(error)
            return str(error)
        with pytest.raises(type(error)):
            train(make, steps, lambda *_: lambda: None)
        return "fails without HAM"
    return "right"


@pytest.mark.parametrize(
    ("optimizers", "steps", "least_right", "refused"),
    [
        (of_torch, 3, 36, set()),
        (of_timm, 3, 50, set()),
        (of_schedulefree, 8, 1, {"AdamWScheduleFree", "RAdamScheduleFree"}),
        (of_pytorch_optimizer, 3, 70, {"ScheduleFreeAdamW", "NovoGrad", "LARS", "Ranger"}),
    ],
)
def test_each_optimizer_is_followed_exactly_or_refused_in_one_line(optimizers, steps, least_right, refused):
    outcomes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in optimizers():
            try:
                outcomes[name] = outcome_of(make, steps)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
    assert sum(outcome == "right" for outcome in outcomes.values()) >= least_right, outcomes
    for name in refused:
        assert "changes p.grad in its step" in outcomes[name], outcomes


# Rates that are not group["lr"]


def row_of(name: str) -> list[str]:
    """The cells of an optimizer's row in the table of docs/ham.md."""
    page = (Path(__file__).parents[3] / "docs" / "ham.md").read_text()
    [row] = re.findall(rf"^\| `{name}(?:`|\(lr_decay).*$", page, re.MULTILINE)
    return row.strip("| ").split(" | ")


def mean_step_size(gradients: list[list[Tensor]], lr: float) -> float:
    """Of Rprop (Riedmiller and Braun): times 1.2 where the sign stays, times 0.5 where it changes, once."""
    sizes = []
    for of_one in zip(*gradients, strict=True):
        size, previous = torch.full_like(of_one[0], lr), torch.zeros_like(of_one[0])
        for gradient in of_one:
            agrees = (gradient * previous).sign()
            size = (size * (1 + 0.2 * (agrees > 0) - 0.5 * (agrees < 0))).clamp(1e-6, 50)
            previous = torch.where(agrees < 0, 0.0, gradient)
        sizes.append(size.mean())
    return torch.stack(sizes).mean().item()


RATES: dict[str, tuple[dict[str, float], Callable[..., float]]] = {
    "ASGD": ({"lambd": 0.5}, lambda lr, steps, **_: lr / (1 + 0.5 * lr * steps) ** 0.75),
    "Adagrad": ({"lr_decay": 0.3}, lambda lr, steps, **_: lr / (1 + (steps - 1) * 0.3)),
    "Rprop": ({}, lambda lr, gradients, **_: mean_step_size(gradients, lr)),
    "Adafactor": (
        {},
        lambda lr, weights, **_: lr * (sum(w.square().mean().item() for w in weights) / len(weights)) ** 0.5,
    ),
}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}])
@pytest.mark.parametrize("lr", [0.1, 0.02])
def test_the_rate_that_the_page_gives_for_an_optimizer_is_its_own(name, flags, lr):
    """ASGD's is that of its next step. HAM with alpha=0 multiplies by exp(-rate * beta)."""
    options, reference = RATES[name]
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(4, n, generator=generator, dtype=torch.float64)) for n in (3, 5)]
    optimizer = getattr(torch.optim, name)(params, lr=lr, **options, **flags)
    before = after_base_step(optimizer, params)
    [code] = re.findall(r"`lr=(lambda group: [^`]*)`", row_of(name)[2])
    HAM(optimizer, alpha=0.0, beta=1.0, lr=eval(code, {"torch": torch, "optimizer": optimizer}))
    gradients = []
    for steps in range(1, 8):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        gradients.append([p.grad.clone() for p in params])
        before.clear()
        optimizer.step()
        rate = reference(lr=lr, steps=steps, gradients=gradients, weights=before)
        assert steps == 1 or abs(rate - lr) > 1e-3 * lr
        for p, theta in zip(params, before, strict=True):
            torch.testing.assert_close(p.detach(), theta * math.exp(-rate), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [*RATES, "Muon"])
def test_without_lr_the_rate_is_that_of_the_group(name):
    assert 'uses `group["lr"]`' in row_of(name)[1]
    p = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    optimizer = getattr(torch.optim, name)([p], lr=0.1)
    before = after_base_step(optimizer, [p])
    HAM(optimizer, alpha=20.0, beta=1.0)
    for _ in range(3):
        p.grad = torch.eye(3, dtype=torch.float64) * 0.1
        optimizer.step()
        exponent = -0.1 * (20 * before[-1].sign() * p.grad + 1)
        torch.testing.assert_close(p.detach(), before[-1] * exponent.exp(), rtol=1e-6, atol=1e-30)
