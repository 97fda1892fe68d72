"""Attaching HAM: the rate, values that a loaded state brings, and refusals that leave nothing behind."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, AdamW, Optimizer

from ham import HAM, param_groups


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def backward(model: nn.Module) -> None:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    nn.functional.cross_entropy(model(x), torch.arange(12) % 3).backward()


def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def gradient(size: float = 0.01) -> Tensor:
    return size * torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def factor(theta: Tensor, grad: Tensor, rate: float, alpha: float, beta: float) -> Tensor:
    return (-rate * (alpha * theta.sign() * grad + beta)).clamp(-5, 5).exp()


class Rescaled(SGD):
    """Takes SGD's step at the rate lr * d and doubles d in each step, like an optimizer that sets its own."""

    def __init__(self, params: list[nn.Parameter], lr: float | None = 1.0) -> None:
        super().__init__(params, lr=0.0)
        self.param_groups[0].update(lr=lr, d=0.01)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for group in self.param_groups:
            group["d"] *= 2
            for p in group["params"]:
                p.sub_(group["d"] * (group["lr"] or 0.0) * p.grad)


@pytest.mark.parametrize(
    "kind",
    [float, lambda rate: torch.tensor(rate), lambda rate: torch.tensor([rate]), numpy.float64, Fraction],
)
def test_lr_gives_the_rate_of_the_step_that_was_just_taken(kind):
    p = weight()
    optimizer = Rescaled([p])
    HAM(optimizer, alpha=20.0, beta=0.1, lr=lambda group: kind(group["lr"] * group["d"]))
    for rate in (0.02, 0.04, 0.08):
        p.grad = gradient()
        half = p.detach() - rate * p.grad
        expected = half * factor(half, p.grad, rate, 20.0, 0.1)
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("rate", [0.1, numpy.float32(0.1), torch.tensor(0.1)])
@pytest.mark.parametrize("base_rate", [0.0, torch.tensor(0.0)])
def test_lr_gives_the_rate_where_that_of_the_group_is_0(rate, base_rate):
    p, q = weight(), weight()
    optimizer = SGD([{"params": [p]}, {"params": [q], "ham_alpha": 0.0, "ham_beta": 0.0}], lr=base_rate)
    HAM(optimizer, alpha=0.0, beta=1.0, lr=lambda group: rate, max_weight_norm=0.5)
    p.grad, q.grad = gradient(), gradient()
    before = p.detach().clone()
    optimizer.step()
    shrunk = before * math.exp(-0.1)
    for result, expected in ((p, shrunk), (q, before)):
        torch.testing.assert_close(result.detach(), expected * min(1.0, 0.5 / expected.norm().item()))


@pytest.mark.parametrize("create", [lambda ps: SGD(ps, lr=0.1), lambda ps: AdamW(ps, lr=torch.tensor(0.1))])
def test_the_step_that_creates_the_state_for_a_checkpoint_changes_no_weight_with_lr_either(create):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = create(model.parameters())
    HAM(optimizer, model=model, beta=1.0, lr=lambda group: 0.1, max_weight_norm=1e-3)
    get_optimizer_state_dict(model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_closure_that_computes_gradients_after_zeros_takes_a_step_at_the_rate_of_lr():
    p = weight()
    p.grad = torch.zeros_like(p)
    optimizer = SGD([p], lr=0.0)
    HAM(optimizer, alpha=0.0, beta=1.0, lr=lambda group: 0.1)
    before = p.detach().clone()

    def closure() -> float:
        p.grad = gradient()
        return 0.0

    optimizer.step(closure)
    torch.testing.assert_close(p.detach(), before * math.exp(-0.1))


def test_a_group_without_a_rate_is_refused_when_attached_added_or_loaded():
    cure = r"Rescaled has lr=None in a group: .*pass lr=\.\.\., a function of the group"
    with pytest.raises(ValueError, match=cure):
        HAM(Rescaled([weight()], lr=None))
    HAM(Rescaled([weight()], lr=None), lr=lambda group: group["d"])
    p = weight()
    optimizer = Rescaled([p])
    HAM(optimizer)
    before, p.grad = p.detach().clone(), gradient()
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match=cure):
        optimizer.step()
    assert torch.equal(p, before)
    with pytest.raises(ValueError, match=cure):
        optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (
            lambda group: numpy.float32("inf"),
            "must return a finite number >= 0, or a 0-dim tensor, got .*inf",
        ),
        (lambda group: group["scale"], r"HAM's lr= function reads group\['scale'\], .* its keys are lr, "),
        (
            lambda group: float("nan"),
            "must return a finite number >= 0, or a 0-dim tensor, got nan",
        ),
        (lambda group: None, "must return a finite number >= 0, or a 0-dim tensor, got None"),
        (
            lambda group: torch.ones(2),
            "must return a finite number >= 0, or a 0-dim tensor, got tensor",
        ),
    ],
)
def test_a_wrong_rate_is_refused_in_one_line(lr, message):
    p = weight()
    p.grad = gradient()
    optimizer = SGD([p], lr=0.1)
    HAM(optimizer, lr=lr)
    with pytest.raises(ValueError, match=message) as error:
        optimizer.step()
    assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match=r"lr must be a function of a parameter group, .* got 0\.1"):
        HAM(SGD([weight()], lr=0.1), lr=0.1)  # type: ignore[arg-type]


def test_many_exponents_at_the_bound_in_the_first_step_warn_once_and_name_the_cure():
    p = weight()
    optimizer = SGD([p], lr=1.0)
    ham = HAM(optimizer, alpha=200.0, track_clamped=True)
    p.grad = torch.zeros_like(p)
    p.grad[0, 0] = 1.0  # one of twelve
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()  # a warm-up from 0: not yet the first step
    optimizer.param_groups[0]["lr"] = 1.0
    with pytest.warns(UserWarning, match=r"8% of the exponents .* SGD .*lower alpha, or pass lr=") as record:
        optimizer.step()
    assert [warning.filename for warning in record] == [__file__]
    assert ham.clamped_share().item() == pytest.approx(1 / 24)  # over both steps, as ever
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        few = nn.Parameter(torch.ones(10, 10))
        few.grad = torch.zeros_like(few)
        few.grad[0, 0] = 1.0  # 1 % exactly
        other = SGD([few], lr=1.0)
        HAM(other, alpha=200.0)
        other.step()


def test_a_step_that_the_scaler_skips_is_not_the_first():
    p = weight()
    p.grad = gradient(100.0)
    optimizer = SGD([p], lr=1.0, fused=True)
    HAM(optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    optimizer.found_inf = torch.tensor(0.0)
    with pytest.warns(UserWarning, match="are clamped"):
        optimizer.step()


# --- refusals leave nothing behind


def hookless() -> Optimizer:
    class Hookless(Optimizer):
        def __init__(self, params: list[nn.Parameter]) -> None:
            self.param_groups, self.defaults, self.state = [{"params": params, "lr": 0.1}], {}, {}

    return Hookless([weight()])


MODEL = network()
REFUSED = {
    "no hooks": (hookless, {}, "Hookless has no hooks"),
    "no rate": (lambda: Rescaled([weight()], lr=None), {}, "has lr=None"),
    "names that fit nothing": (
        lambda: SGD(MODEL.parameters(), lr=0.1),
        {"model": MODEL, "select": ["0.weight", "7.*"]},
        "'7.*' matches no parameter",
    ),
    "no names": (
        lambda: SGD(MODEL.parameters(), lr=0.1),
        {"model": MODEL, "select": []},
        "list of names is empty",
    ),
    "names that are none": (
        lambda: SGD(MODEL.parameters(), lr=0.1),
        {"model": MODEL, "select": [1]},
        r"select and decay must be a name, a glob, a list or a function, got \[1\]",
    ),
    "select without a model": (
        lambda: SGD([weight()], lr=0.1),
        {"select": "ndim2"},
        "select= requires model=",
    ),
    "implementation": (
        lambda: SGD([weight()], lr=0.1),
        {"implementation": "cuda"},
        "implementation must be one of",
    ),
}


def contents(optimizer: Optimizer) -> dict:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    hooks = {name: dict(value) for name, value in vars(optimizer).items() if name.endswith("_hooks")}
    return {
        "groups": groups,
        "defaults": dict(optimizer.defaults),
        "hooks": hooks,
        "names": set(vars(optimizer)),
    }


@pytest.mark.parametrize(("make", "keywords", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_leaves_nothing_in_the_optimizer(make, keywords, message):
    optimizer = make()
    before = contents(optimizer)
    with pytest.raises((ValueError, TypeError), match=message) as error:
        HAM(optimizer, **keywords)
    assert "\n" not in str(error.value)
    assert contents(optimizer) == before


def test_an_error_in_the_middle_of_attaching_leaves_nothing_in_the_optimizer(monkeypatch):
    optimizer = SGD([{"params": [weight()], "ham_alpha": 5.0, "ham_beta": 0.0, "ham_chosen": True}], lr=0.1)
    before = contents(optimizer)

    def fail(hook: Callable) -> None:
        raise RuntimeError("no more hooks")

    monkeypatch.setattr(optimizer, "register_load_state_dict_post_hook", fail)
    with pytest.raises(RuntimeError, match="no more hooks"):
        HAM(optimizer)
    monkeypatch.undo()
    assert contents(optimizer) == before
    HAM(optimizer)


def test_a_list_selects_what_its_names_and_globs_select():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.0)
    HAM(optimizer, model=model, beta=100.0, select=["0.bias", "2.*"], lr=lambda group: 0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    backward(model)
    optimizer.param_groups[0]["lr"] = 1e-9
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if (p - before[name]).abs().max() > 1e-3}
    assert changed == {"0.bias", "2.weight", "2.bias"}
    selected, _ = param_groups(model, weight_decay=0.0, select=["0.bias", "2.*"])
    assert len(selected["params"]) == 3


def test_lookahead_of_timm_is_unwrapped():
    lookahead = pytest.importorskip("timm.optim").Lookahead
    p, q = weight(), weight()
    optimizer, base = lookahead(SGD([p], lr=0.1), k=3, alpha=0.5), SGD([q], lr=0.1)
    HAM(optimizer, alpha=20.0)
    HAM(base, alpha=20.0)
    for _ in range(2):  # the third step mixes with the slow weights
        p.grad, q.grad = gradient(), gradient()
        optimizer.step()
        base.step()
        assert torch.equal(p, q)


# --- values that a loaded state brings


@pytest.mark.parametrize("route", ["attach, load", "load, attach"])
@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
def test_values_passed_to_ham_that_give_way_to_loaded_ones_warn_once(route, older):
    saved = SGD([weight()], lr=0.1)
    HAM(saved, alpha=20.0, beta=0.1)
    state = saved.state_dict()
    if older:
        state["param_groups"][0]["ham_chosen"] = state["param_groups"][0].pop("ham_explicit")
    optimizer = SGD([weight()], lr=0.1)
    message = r"\(alpha=20.0 instead of 200\): set group\['ham_alpha'\] after loading"
    with pytest.warns(UserWarning, match=message) as record:
        if route == "attach, load":
            HAM(optimizer, alpha=200, beta=0.1)
            optimizer.load_state_dict(state)
            optimizer.load_state_dict(state)
        else:
            optimizer.load_state_dict(state)
            HAM(optimizer, alpha=200, beta=0.1)
    assert [warning.filename for warning in record] == [__file__]
    assert optimizer.param_groups[0]["ham_alpha"] == 20.0


# loading is safe: the bytes are written in the same line
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_values_that_give_way_to_those_of_a_copied_optimizer_are_named_as_such(copied):
    optimizer = SGD([weight()], lr=0.1)
    HAM(optimizer, alpha=3.0)
    with pytest.warns(UserWarning) as record:
        HAM(copied(optimizer), alpha=9.0)
    assert [str(warning.message) for warning in record] == [
        "HAM keeps the values that the optimizer's groups already have, from a loaded state or a copied "
        "optimizer (alpha=3.0 instead of 9.0): set group['ham_alpha'] after loading or copying to change "
        "them"
    ]


def test_values_that_were_not_passed_or_are_equal_give_way_in_silence():
    saved = SGD([weight()], lr=0.1)
    HAM(saved, alpha=20.0, beta=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for keywords in ({}, {"alpha": 20.0}, {"alpha": 20.0, "beta": 0.1}):
            optimizer = SGD([weight()], lr=0.1)
            HAM(optimizer, **keywords)
            optimizer.load_state_dict(saved.state_dict())
        grouped = SGD([{"params": [weight()], "ham_alpha": 0.0, "ham_beta": 0.0}], lr=0.1)
        HAM(grouped, alpha=20.0, beta=0.1)
        grouped.load_state_dict(grouped.state_dict())


# --- torch.distributed.checkpoint


def trained(with_ham: bool) -> tuple[nn.Module, Optimizer]:
    model = network()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    if with_ham:
        HAM(optimizer, model=model, alpha=20.0)
    for _ in range(2):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("saved_with", [False, True], ids=["saved without", "saved with"])
@pytest.mark.parametrize("loaded_with", ["neither", "attached after", "attached before"])
def test_a_distributed_checkpoint_loads_with_and_without_ham(flat, saved_with, loaded_with, tmp_path: Path):
    """Attached before the load, HAM's keys are missing in a checkpoint without: allow_partial_load=True."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = trained(saved_with)
    dcp.save({"optim": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=tmp_path)
    other = network()
    resumed = AdamW(other.parameters(), lr=0.5)
    if loaded_with == "attached before":
        HAM(resumed, model=other, alpha=20.0)
    state = {"optim": get_optimizer_state_dict(other, resumed, options=options)}
    missing = loaded_with == "attached before" and not saved_with
    if missing:
        with pytest.raises(BaseException, match=r"Missing key in checkpoint state_dict: .*ham_alpha"):
            dcp.load(state, checkpoint_id=tmp_path)
    dcp.load(state, checkpoint_id=tmp_path, planner=dcp.DefaultLoadPlanner(allow_partial_load=missing))
    set_optimizer_state_dict(other, resumed, state["optim"], options=options)
    if loaded_with == "attached after":
        HAM(resumed, model=other, alpha=20.0)
    assert resumed.param_groups[0]["lr"] == 1e-3
    if loaded_with != "neither":
        assert resumed.param_groups[0]["ham_alpha"] == 20.0
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], resumed.state[q]["exp_avg"])


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_the_step_by_which_torch_initializes_a_state_changes_no_weight(lr):
    """torch.distributed.checkpoint takes a step with lr 0 and gradients of 0, whatever HAM's own rate is."""
    model = network()
    optimizer = AdamW(model.parameters(), lr=lr)
    HAM(optimizer, model=model, lr=lambda group: 1.0, max_weight_norm=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.state
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


# --- defaults


def test_the_defaults_are_those_of_the_paper():
    optimizer = SGD([weight()], lr=0.1)
    ham = HAM(optimizer)
    values = {"ham_alpha": 200.0, "ham_beta": 1e-3, "ham_explicit": False}
    assert (
        optimizer.param_groups[0].items() >= values.items() and optimizer.defaults.items() >= values.items()
    )
    assert (ham.clamp, ham.mask_zero_grad, ham.max_weight_norm) == (5.0, False, None)
    assert (ham.track_clamped, ham.lr, ham.implementation) == (False, None, None)


@pytest.mark.parametrize(
    ("alpha", "beta", "track", "counted"), [(1.0, 0.0, True, 12), (0.0, 1.0, True, 12), (0.0, 0.0, True, 0)]
)
def test_exponents_are_counted_where_a_group_has_any(alpha, beta, track, counted):
    p = weight()
    optimizer = SGD([p], lr=0.1)
    ham = HAM(optimizer, alpha=alpha, beta=beta, track_clamped=track)
    for step in (1, 2):  # the first is counted for its warning too
        p.grad = gradient()
        optimizer.step()
        assert ham.state_dict() == {"clamped": 0, "seen": step * counted}


def test_a_group_that_maximizes_is_pushed_the_other_way():
    for maximize in (False, True):
        p = weight()
        optimizer = SGD([p], lr=0.1, maximize=maximize)
        HAM(optimizer, alpha=20.0, beta=0.1)
        p.grad = gradient()
        sign = -1 if maximize else 1
        half = p.detach() - sign * 0.1 * p.grad
        expected = half * factor(half, sign * p.grad, 0.1, 20.0, 0.1)
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)


def test_the_norm_limit_waits_for_a_rate_and_holds_in_groups_where_ham_does_not_act():
    p, q = weight(), weight()
    groups = [{"params": [p], "lr": 0.0}, {"params": [q], "lr": 0.1, "ham_alpha": 0.0, "ham_beta": 0.0}]
    optimizer = SGD(groups, lr=0.1)
    HAM(optimizer, max_weight_norm=0.5)
    before = p.detach().clone()
    p.grad, q.grad = gradient(), gradient()
    optimizer.step()
    assert torch.equal(p, before)
    assert q.norm().item() == pytest.approx(0.5)
