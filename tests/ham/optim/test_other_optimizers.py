"""HAM on the optimizers of torch, timm, schedulefree and pytorch_optimizer: right, or refused in one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

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


def checked_ham(optimizer: Optimizer, model: nn.Module) -> Callable[[], None]:
    """Attach HAM and hooks around it; the result checks its last step against the formula in float64.

    Of a wrapper such as Lookahead, HAM follows the optimizer inside; what the wrapper does later is its own.
    """
    taken: dict[str, list[Tensor]] = {}
    inner = HAM(optimizer, model=model, alpha=ALPHA, beta=BETA, select="everything").optimizer

    def take(name: str) -> Callable[..., None]:
        return lambda *_: taken.update({name: [value(name, p) for p in model.parameters()]})

    def value(name: str, p: nn.Parameter) -> Tensor:
        return (p.grad if name == "grad" else p).detach().double().clone()

    pre, base = inner.register_step_pre_hook(take("grad")), inner.register_step_post_hook(take("base"))
    inner._optimizer_step_pre_hooks.move_to_end(pre.id, last=False)
    inner._optimizer_step_post_hooks.move_to_end(base.id, last=False)
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
