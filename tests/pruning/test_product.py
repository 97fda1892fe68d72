from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import Dense, Product, RandomPruning
from pruning.export import plain_state_dict
from pruning.product import PointwiseProduct, rebalance
from pruning.weights import ProductWeight

MAX32, TINY32 = torch.finfo(torch.float32).max, 2.0**-149
MAX64, TINY64 = torch.finfo(torch.float64).max, 2.0**-1074


@pytest.mark.parametrize(
    ("theta", "scaling", "m", "w"),
    [
        (0.3, 1.0, 1.040718593, 0.288262362),
        (-0.3, 1.0, 1.040718593, -0.288262362),
        (0.0, 1.0, 1.0, 0.0),
        # 3^2 + 4 * 2^2 = 5^2, 5^2 + 4 * 6^2 = 13^2, 8^2 + 4 * 3^2 = 10^2
        (2.0, 3.0, 2.0, 1.0),
        (-6.0, 5.0, 3.0, -2.0),
        (3.0, 8.0, 3.0, 1.0),
        (0.0, 4.0, 2.0, 0.0),
    ],
)
def test_factors_by_hand(theta, scaling, m, w):
    found = rebalance(torch.tensor([theta], dtype=torch.float64), scaling)
    assert [factor.item() for factor in found] == pytest.approx([m, w], abs=6e-10)


def test_the_default_scaling_is_sign_ins():
    theta = torch.randn(50)
    for one, default in zip(rebalance(theta, 1.0), rebalance(theta), strict=True):
        assert torch.equal(one, default)


def holds_exactly(theta: float, scaling: float, dtype: torch.dtype, tiny: float) -> None:
    """m w = theta and m^2 - w^2 = scaling to rounding, in exact arithmetic on the factors found."""
    m, w = (factor.item() for factor in rebalance(torch.tensor(theta, dtype=dtype), scaling))
    eps = Fraction(torch.finfo(dtype).eps)
    assert m > 0
    assert (w > 0) - (w < 0) == (theta > 0) - (theta < 0) or abs(theta) <= m * tiny
    m, w, theta, tiny = Fraction(m), Fraction(w), Fraction(theta), Fraction(tiny)
    assert abs(m * w - theta) <= 2 * eps * abs(theta) + m * tiny
    assert abs(m * m - w * w - Fraction(scaling)) <= 4 * eps * (m * m + w * w)


SCALINGS = st.floats(2.0**-10, 2.0**10, width=32)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), SCALINGS)
@example(MAX32, 1.0)
@example(-MAX32, 1.0)
@example(0.6 * MAX32, 1.0)
@example(TINY32, 1.0)
@example(-TINY32, 2.0**-10)
@example(1e-38, 1.0)
@example(1.0, 1.0)
def test_every_finite_float32_is_balanced(theta, scaling):
    holds_exactly(torch.tensor(theta).item(), scaling, torch.float32, TINY32)


@given(st.floats(allow_nan=False, allow_infinity=False), SCALINGS)
@example(MAX64, 1.0)
@example(-MAX64, 2.0**10)
@example(TINY64, 1.0)
def test_every_finite_float64_is_balanced(theta, scaling):
    holds_exactly(theta, scaling, torch.float64, TINY64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_factors_have_the_weights_type_and_shape(dtype):
    theta = torch.randn(2, 3, 4).to(dtype)
    for factor in rebalance(theta):
        assert (factor.dtype, factor.shape) == (dtype, theta.shape)


@pytest.mark.parametrize(
    "theta",
    [
        torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
        torch.randn(5, 3).t(),
        torch.randn(5, 3),
    ],
    ids=["channels_last", "channels_last_3d", "transposed", "contiguous"],
)
def test_factors_lie_in_memory_like_the_weight(theta):
    m, w = rebalance(theta)
    assert m.stride() == w.stride() == theta.stride()
    assert torch.allclose(m * w, theta)


@pytest.mark.parametrize("scaling", [0.0, -1.0, float("nan")])
def test_a_scaling_that_is_not_positive_raises(scaling):
    with pytest.raises(ValueError, match=f"scaling must be positive, got {scaling:g}"):
        rebalance(torch.ones(2), scaling)


def test_the_parametrization_computes_the_product_and_starts_in_balance():
    product, theta = PointwiseProduct(3.0), torch.tensor([2.0, -2.0])
    m, w = product.right_inverse(theta)
    assert (m.tolist(), w.tolist()) == ([2.0, 2.0], [1.0, -1.0])
    assert product(m, w).tolist() == [2.0, -2.0]


# The factors' dynamics.


def factors(m: list[float], w: list[float]) -> ProductWeight:
    return ProductWeight.of(*(torch.tensor(f, dtype=torch.float64, requires_grad=True) for f in (m, w)))


def descend(weight: ProductWeight, loss_of, lr: float, steps: int) -> list[Tensor]:
    """Gradient descent on both factors; the gradient of the loss by theta at each step."""
    seen = []
    for _ in range(steps):
        m, w = weight.parameters
        seen.append(torch.func.grad(loss_of)(weight.value))
        gradients = torch.autograd.grad(loss_of(m * w), (m, w))
        with torch.no_grad():
            for factor, gradient in zip((m, w), gradients, strict=True):
                factor.sub_(lr * gradient)
    return seen


TARGET = torch.tensor([0.5, -2.0, 1.0, 0.3, 0.0], dtype=torch.float64)
START = [1.0, 0.5, 2.0, -1.0, 0.1], [0.0, 1.5, -0.5, 0.3, 1.2]


def fit(theta: Tensor) -> Tensor:
    return (theta - TARGET).pow(4).sum() + theta.prod()


@pytest.mark.parametrize("lr", [1e-3, 1e-5])
def test_the_first_order_step_of_the_product(lr):
    weight = factors(*START)
    m, w = (torch.tensor(f, dtype=torch.float64) for f in START)
    (g,) = descend(weight, fit, lr, 1)
    expected = -(m**2 + w**2) * g
    assert ((weight.value - m * w) / lr).tolist() == pytest.approx(
        expected.tolist(), rel=100 * lr, abs=100 * lr
    )


def test_at_zero_a_balanced_product_steps_like_a_plain_weight():
    weight = factors([1.0, 1.0], [0.0, 0.0])
    (g,) = descend(weight, lambda theta: (theta * torch.tensor([2.0, -3.0])).sum(), 0.1, 1)
    assert weight.value.tolist() == pytest.approx((-0.1 * g).tolist(), rel=1e-12)


def test_the_scaling_is_conserved_by_gradient_descent():
    """A step multiplies m^2 - w^2 by 1 - lr^2 g^2 exactly, so that over a fixed time it drifts like lr."""
    drifts = []
    for lr in (1e-2, 1e-3):
        weight = factors(*START)
        m, w = (torch.tensor(f, dtype=torch.float64) for f in START)
        gradients = descend(weight, fit, lr, round(1 / lr))
        scaling = weight.parameters[0].detach() ** 2 - weight.parameters[1].detach() ** 2
        expected = (m**2 - w**2) * torch.stack([1 - (lr * g) ** 2 for g in gradients]).prod(0)
        assert scaling.tolist() == pytest.approx(expected.tolist(), rel=1e-10)
        drifts.append((scaling - (m**2 - w**2)).abs().max().item())
        assert not torch.allclose(weight.value, m * w, atol=0.01)
    assert drifts[1] < 0.2 * drifts[0] and drifts[1] < 0.1


# The gradient by the product, from those by the factors.


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    ).double()


@pytest.mark.parametrize("sparsifier", [Dense(), RandomPruning(sparsity=0.6)], ids=["dense", "pruned"])
def test_the_dense_gradient_is_the_plain_models(sparsifier):
    torch.manual_seed(0)
    plain = convolutional()
    model = copy.deepcopy(plain)
    sparsifier.attach(model, total_epochs=1, parameterization=Product())
    with torch.no_grad():
        for weight in sparsifier.parameterization.weights:
            m, w = weight.parameters
            m.copy_(torch.randn(m.shape))
            w.copy_(torch.randn(w.shape))
            m.flatten()[0::7] = 0.0
            w.flatten()[1::7] = 0.0
    sparsifier.after_step()
    plain.load_state_dict(plain_state_dict(model))
    inputs, targets = torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    for each in (plain, model):
        nn.functional.cross_entropy(each(inputs), targets).backward()
    assert len(sparsifier.masks.weights) == 3
    for name, weight in sparsifier.masks.weights.items():
        m, w = weight.parameters
        assert (w == 0).any() and (m == 0).any()
        expected = plain.get_parameter(name).grad
        assert expected.count_nonzero() > 0.5 * expected.numel()
        assert torch.allclose(weight.gradient, expected, rtol=1e-12, atol=1e-15), name
        assert weight.gradient.stride() == expected.stride()


def test_without_a_backward_pass_there_is_no_gradient():
    weight = factors([1.0], [2.0])
    assert weight.gradient is None
    weight.parameters[0].grad = torch.ones(1, dtype=torch.float64)
    assert weight.gradient is None


def test_a_product_where_both_factors_vanish_has_a_finite_gradient():
    weight = factors([0.0], [0.0])
    for factor in weight.parameters:
        factor.grad = torch.zeros(1, dtype=torch.float64)
    assert weight.gradient.tolist() == [0.0]


def test_assigning_and_pruning_a_product():
    weight = ProductWeight.of(torch.zeros(3), torch.zeros(3), scaling=3.0)
    weight.assign_(torch.tensor([2.0, -2.0, 0.0]))
    assert [f.tolist() for f in weight.parameters] == [
        pytest.approx([2, 2, 3**0.5]),
        pytest.approx([1, -1, 0]),
    ]
    weight.prune_(torch.tensor([True, False, False]))
    assert [f.tolist() for f in weight.parameters] == [
        pytest.approx([3**0.5, 2, 3**0.5]),
        pytest.approx([0, -1, 0]),
    ]
    assert not weight.value[[0, 2]].view(torch.int32).any()


@pytest.mark.parametrize(("m", "w"), [(1.0, -0.0), (-1.0, 0.0), (-0.0, 0.5), (1e-30, -1e-30)])
def test_a_product_that_vanishes_is_positive_zero(m, w):
    value = ProductWeight.of(torch.tensor([m]), torch.tensor([w])).value
    assert value.view(torch.int32).tolist() == [0]


def test_the_layers_of_transformers_gpt2_stay_prunable_as_products():
    """A parametrized layer has a class of its own; GPT-2's Conv1D is found by the name of its class."""

    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4))

    Conv1D.__module__ = "transformers.pytorch_utils"
    model, sparsifier = nn.Sequential(Conv1D()), RandomPruning(sparsity=0.5)
    sparsifier.attach(model, total_epochs=1, parameterization=Product())
    assert list(sparsifier.kept()) == ["0.weight"]
    assert sparsifier.masks.weights["0.weight"].input_dim == 0
    assert sparsifier.achieved_sparsity() == 0.5
