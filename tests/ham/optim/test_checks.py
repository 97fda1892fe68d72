"""The checks of optimizers, groups and rates by themselves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from ham import HAM
from ham.c_code import CompilerError
from ham.optim import checks
from ham.optim.checks import (
    as_number,
    check_gradient_preserved,
    check_group,
    check_hyperparameters,
    check_implementation,
    check_optimizer,
    initializes_state,
    is_zero,
    rate_of,
    unwrapped,
)

FINE = {"alpha": 200.0, "beta": 1e-3, "clamp": 5.0, "max_weight_norm": None, "implementation": None}


def optimizer(lr: float | Tensor = 0.1, **options: object) -> SGD:
    return SGD([nn.Parameter(torch.ones(2, 2))], lr=lr, **options)


@pytest.mark.parametrize(
    "values",
    [
        {"alpha": -200.0},
        {"alpha": 0.0},
        {"beta": 0.0},
        {"beta": 2.0},
        {"clamp": 0.5},
        {"clamp": math.inf},
        {"max_weight_norm": 0.5},
        {"implementation": "reference"},
    ],
    ids=str,
)
def test_hyperparameters_at_the_ends_of_their_ranges_are_accepted(values):
    check_hyperparameters(**{**FINE, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": math.inf}, "alpha must be finite, got inf"),
        ({"beta": math.nan}, "beta must be finite and not negative, got nan"),
        ({"beta": -1e-9}, "beta must be finite and not negative, got -1e-09"),
        ({"clamp": 0.0}, "clamp must be positive, got 0.0; the paper uses 5"),
        ({"max_weight_norm": 0.0}, "max_weight_norm must be positive or None, got 0.0"),
        ({"max_weight_norm": math.nan}, "max_weight_norm must be positive or None, got nan"),
        (
            {"implementation": "cuda"},
            "implementation must be one of reference, foreach, fused, compiled, triton or None, got 'cuda'",
        ),
    ],
    ids=str,
)
def test_other_hyperparameters_are_refused(values, message):
    with pytest.raises(ValueError) as error:
        check_hyperparameters(**{**FINE, **values})
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["alpha", "beta", "clamp", "max_weight_norm"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("200", "'200'"),
        ([1.0], "[1.0]"),
        (1j, "1j"),
        (torch.ones(2), "a tensor of shape (2,) and torch.float32"),
        (torch.ones((), dtype=torch.complex64), "a tensor of shape () and torch.complex64"),
    ],
    ids=repr,
)
def test_hyperparameters_are_numbers(name, value, shown):
    base = optimizer()
    with pytest.raises(TypeError) as error:
        HAM(base, **{name: value})
    assert str(error.value) == f"{name} must be a number, got {shown}"
    assert "ham_alpha" not in base.param_groups[0] and not base._optimizer_step_post_hooks


@pytest.mark.parametrize("name", ["alpha", "beta", "clamp", "max_weight_norm"])
@pytest.mark.parametrize("kind", [torch.tensor, numpy.float32, Fraction, lambda value: torch.tensor([value])])
def test_hyperparameters_may_be_numbers_of_any_kind(name, kind):
    results = []
    for value in (0.25, kind(0.25)):
        base = optimizer()
        [p] = base.param_groups[0]["params"]
        p.grad = torch.linspace(-60, 60, 4).reshape(2, 2)
        HAM(base, **{"alpha": 1.0, name: value})
        base.step()
        results.append(p.detach())
    assert torch.equal(*results)


def test_wrappers_are_opened_until_the_innermost_optimizer():
    class Wrapper:
        def __init__(self, name: str, inner: object) -> None:
            setattr(self, name, inner)

    inner = optimizer()
    with pytest.raises(TypeError, match=r"^HAM attaches to a torch.optim.Optimizer, got Wrapper$"):
        unwrapped(Wrapper("optimizer", Wrapper("optimizer", inner)))
    assert unwrapped(Wrapper("_base_optimizer", inner)) is inner
    outer = optimizer()
    outer.optimizer, inner._base_optimizer = inner, Adam([nn.Parameter(torch.ones(1))])
    assert unwrapped(outer) is inner._base_optimizer
    inner._base_optimizer = outer  # a circle ends
    assert unwrapped(outer) in (outer, inner)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (Fraction(1, 4), 0.25),
        (numpy.float32(0.5), 0.5),
        (torch.tensor(2.0), 2.0),
        (None, None),
        ("a", "a"),
    ],
)
def test_numbers_of_any_kind_become_floats_and_other_things_stay(value, expected):
    found = as_number(value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("group", "refused"),
    [
        ({"ham_alpha": -5.0, "ham_beta": 0.0}, None),
        ({"ham_alpha": None, "ham_beta": None}, None),
        ({"ham_alpha": torch.tensor(-5.0), "ham_beta": torch.tensor([[0.5]])}, None),
        ({"ham_alpha": torch.tensor(math.nan, device="meta")}, None),  # a device's tensor is not read
        ({"ham_beta": torch.ones(1, device="meta")}, None),
        ({"ham_alpha": torch.tensor(math.nan)}, "ham_alpha of a group must be finite, got nan"),
        ({"ham_beta": torch.tensor(-1.0)}, "ham_beta of a group must be finite and not negative, got -1.0"),
        ({"ham_beta": torch.tensor(-1)}, "ham_beta of a group must be finite and not negative, got -1"),
        ({"ham_alpha": "200"}, "ham_alpha of a group must be a number or a tensor with one, got '200'"),
        ({"ham_beta": [1]}, "ham_beta of a group must be a number or a tensor with one, got [1]"),
        ({"ham_beta": 1j}, "ham_beta of a group must be a number or a tensor with one, got 1j"),
        (
            {"ham_alpha": torch.ones(2, 30)},
            "ham_alpha of a group must be a number or a tensor with one, got a tensor of shape (2, 30) and "
            "torch.float32",
        ),
        (
            {"ham_beta": torch.ones((), dtype=torch.complex64)},
            "ham_beta of a group must be a number or a tensor with one, got a tensor of shape () and "
            "torch.complex64",
        ),
        ({"ham_alpha": math.inf}, "ham_alpha of a group must be finite, got inf"),
        ({"ham_beta": math.nan}, "ham_beta of a group must be finite and not negative, got nan"),
        ({"ham_beta": -0.5}, "ham_beta of a group must be finite and not negative, got -0.5"),
        (
            {"differentiable": True},
            "HAM's step is not differentiable: set differentiable=False in the optimizer",
        ),
    ],
    ids=str,
)
def test_values_of_a_group(group, refused):
    base = optimizer()
    check = {**base.param_groups[0], **group}
    if refused is None:
        check_group(check, base, None)
        return
    with pytest.raises(ValueError) as error:
        check_group(check, base, None)
    assert str(error.value) == refused


def test_a_group_without_a_rate_needs_a_function():
    base = optimizer()
    group = {**base.param_groups[0], "lr": None}
    check_group(group, base, lambda group: 0.1)
    with pytest.raises(
        ValueError, match=r"^SGD has lr=None in a group: give it a rate, or pass lr=\.\.\., a f"
    ):
        check_group(group, base, None)


def test_an_optimizer_without_rates_needs_a_function():
    base = optimizer()
    del base.param_groups[0]["lr"]
    check_optimizer(base, lambda group: 0.1)
    with pytest.raises(
        ValueError, match=r"^SGD keeps no learning rate in its groups: pass lr=\.\.\., a function"
    ):
        check_optimizer(base, None)


NESTEROV = {"momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"foreach": True, "momentum": 0.9}, False),
        ({"foreach": True, **NESTEROV}, True),
        ({"foreach": True, "weight_decay": 0.1, **NESTEROV}, False),
        ({"foreach": False, **NESTEROV}, False),
        ({"foreach": None, **NESTEROV}, False),  # on a CPU torch then takes one tensor at a time
        ({"fused": True, **NESTEROV}, False),
    ],
    ids=str,
)
def test_only_the_multi_tensor_nesterov_without_decay_overwrites_gradients(options, refused):
    """Seen in torch's own step, and refused."""
    base = optimizer(**options)
    [p] = base.param_groups[0]["params"]
    for _ in range(2):
        p.grad = torch.ones(2, 2)
        base.step()
    assert (not torch.equal(p.grad, torch.ones(2, 2))) == refused
    if not refused:
        check_gradient_preserved(base.param_groups[0])
        return
    with pytest.raises(ValueError) as error:
        check_gradient_preserved(base.param_groups[0])
    assert str(error.value) == (
        "SGD(nesterov=True, weight_decay=0, foreach=True) overwrites the gradient that HAM reads: set "
        "foreach=False or fused=True"
    )


@pytest.mark.parametrize(
    ("lr", "expected"),
    [
        (None, 0.1),
        (lambda group: 2 * group["lr"], 0.2),
        (lambda group: 3, 3),
        (lambda group: 0.25, 0.25),
        (lambda group: Fraction(1, 4), 0.25),
        (lambda group: numpy.float64(0.5), numpy.float64(0.5)),
        (lambda group: numpy.float32(0.5), 0.5),
        (lambda group: torch.tensor([[0.25]], requires_grad=True), 0.25),
    ],
)
def test_the_rate_of_a_step(lr: Callable | None, expected: float):
    rate = rate_of(optimizer().param_groups[0], lr)
    assert rate == expected
    if isinstance(rate, Tensor):
        assert rate.shape == () and not rate.requires_grad
    else:
        assert type(rate) is type(expected)


@pytest.mark.parametrize(
    "rate", [math.nan, -math.inf, numpy.float32("inf"), -1.0, -1, None, "0.1", torch.ones(2)], ids=repr
)
def test_a_rate_is_one_finite_number(rate: object):
    with pytest.raises(ValueError) as error:
        rate_of({"params": [], "lr": 0.1}, lambda group: rate)
    expected = "a finite number >= 0, or a 0-dim tensor"
    assert str(error.value) == f"HAM's lr= function must return {expected}, got {rate!r}"


def test_a_key_that_a_group_lacks_is_named_beside_those_that_it_has():
    with pytest.raises(ValueError) as error:
        rate_of({"params": [], "lr": 0.1, "d": 1.0}, lambda group: group["scale"])
    assert str(error.value) == (
        "HAM's lr= function reads group['scale'], which this optimizer does not set: its keys are lr, d"
    )
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("rate", "zero"),
    [(0.0, True), (0, True), (torch.tensor(0.0), True), (None, False), (1e-9, False), (1, False)],
)
def test_a_rate_of_zero(rate, zero):
    assert is_zero(rate) is zero


@pytest.mark.parametrize(
    ("rates", "gradients", "expected"),
    [
        ((0.0, 0.0), (0.0, 0.0), True),
        ((0.0, 0.0), (0.0, None), True),
        ((0.0, 0.1), (0.0, 0.0), False),
        ((0.0, 0.0), (0.0, -1.0), False),
        ((0.0, 0.0), (1e-30, 0.0), False),
    ],
)
def test_the_step_that_creates_a_state_has_rates_and_gradients_of_zero(rates, gradients, expected):
    params = [nn.Parameter(torch.ones(3)) for _ in rates]
    base = SGD([{"params": [p], "lr": rate} for p, rate in zip(params, rates, strict=True)])
    for p, value in zip(params, gradients, strict=True):
        p.grad = None if value is None else torch.tensor([0.0, value, 0.0])
    assert initializes_state(base) is expected


def test_gradients_that_cancel_are_gradients():
    base = optimizer(lr=0.0)
    base.param_groups[0]["params"][0].grad = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    assert not initializes_state(base)


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    check_implementation(optimizer(), "fused")
    with pytest.raises(ValueError) as error:
        check_implementation(optimizer(), "triton")
    assert str(error.value) == (
        "implementation='triton' is for CUDA weights: use 'fused', 'compiled', 'foreach' or None"
    )
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check_implementation(optimizer(), "triton")


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_optimizers_of_other_steps_are_refused_by_name(cls):
    with pytest.raises(ValueError) as error:
        check_optimizer(cls([nn.Parameter(torch.ones(2))]), None)
    assert str(error.value) == (
        f"HAM needs an optimizer with first-order dense steps, not {cls.__name__}: use SGD or AdamW"
    )


def test_a_fitting_optimizer_is_accepted_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_optimizer(optimizer(), None)
        check_optimizer(optimizer(), lambda group: 0.1)


def test_a_compiled_step_needs_a_compiler(monkeypatch):
    def fail(dtype: torch.dtype) -> None:
        tried.append(dtype)
        raise CompilerError("there is no C compiler")

    tried: list[torch.dtype] = []
    monkeypatch.setattr(checks.cpu_step, "load", fail)
    for other in ("fused", "foreach", None):
        check_implementation(optimizer(), other)
    assert not tried
    with pytest.raises(ValueError) as error:
        check_implementation(optimizer(), "compiled")
    assert str(error.value) == (
        "implementation='compiled' does not work on this CPU: there is no C compiler; or use 'fused' or None"
    )
    assert tried == [torch.float32]
    coarse = SGD([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))], lr=0.1)
    check_implementation(coarse, "compiled")  # HAM does not act on it
    check_implementation(SGD([nn.Parameter(torch.ones(2, device="meta"))], lr=0.1), "compiled")


@pytest.mark.parametrize("name", ["mask_zero_grad", "track_clamped"])
@pytest.mark.parametrize("value", ["no", "False", 1, None, [True], torch.tensor(True)])
def test_flags_are_true_or_false(name, value):
    """The optimizer stays as it was."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    with pytest.raises(TypeError, match=f"^{name} must be True or False, got "):
        HAM(optimizer, model=model, **{name: value})
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == before
    assert not optimizer._optimizer_step_post_hooks and not hasattr(optimizer, "_ham")
