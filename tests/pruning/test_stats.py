from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import MaskSet, Product, prunable_weights
from pruning.stats import (
    SMALL,
    SignFlips,
    inverse_metric_at_zero,
    l1_norm,
    sign_flips,
    signs,
    small_fractions,
)


def row(*values: float) -> dict[str, Tensor]:
    return {"a": torch.tensor(values)}


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ([1.0, -2.0, 3.0, -4.0], [2.0, -1.0, 0.1, -9.0], 0),
        ([1.0, -2.0, 3.0, -4.0], [-2.0, -1.0, 0.1, -9.0], 0.25),
        ([1.0, -2.0, 3.0, -4.0], [-1e-30, 1e-30, -1.0, 9.0], 1),
        # pruned or zero at either end: two are left, one of them flips
        ([0.0, -2.0, 3.0, -4.0], [1.0, 0.0, -1.0, -4.0], 0.5),
        ([-0.0, -2.0, 3.0, -4.0], [-1.0, -0.0, -1.0, -4.0], 0.5),
        ([0.0, 0.0, 3.0, -4.0], [1.0, -1.0, 0.0, 0.0], 0),
        ([0.0] * 4, [0.0] * 4, 0),
    ],
)
def test_sign_flips_by_hand(before, after, share):
    before, after = row(*before), row(*after)
    assert sign_flips(before, after) == share
    # signs alone say as much as the weights
    assert sign_flips(signs(before), signs(after)) == share
    assert sign_flips(signs(before), after) == share


def test_sign_flips_count_weights_and_not_layers():
    before = {"a": torch.ones(2), "b": torch.ones(3, 2)}
    after = {"a": -torch.ones(2), "b": torch.ones(3, 2)}
    assert sign_flips(before, after) == 2 / 8


triples = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=30)


@given(triples)
@settings(max_examples=60)
def test_sign_flips_are_the_share_that_a_loop_counts(pairs):
    flags = [math.copysign(1, a) != math.copysign(1, b) for a, b in pairs if a != 0 and b != 0]
    before, after = ({"a": torch.tensor(c, dtype=torch.float64)} for c in zip(*pairs, strict=True))
    expected = sum(flags) / max(len(flags), 1)
    assert sign_flips(before, after) == pytest.approx(expected)
    assert sign_flips(after, before) == sign_flips(before, after)
    assert sign_flips(before, before) == 0


def test_signs_are_small_integers():
    found = signs({"a": torch.tensor([[-3.0, 0.0], [-0.0, 1e-30]])})["a"]
    assert found.dtype == torch.int8
    assert found.tolist() == [[-1, 0], [0, 1]]


def model(parameterization: Product | None = None) -> nn.Module:
    layers = nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1), nn.Linear(1, 2))
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[0.5, -1.5, 0.25]]))
        layers[2].weight.copy_(torch.tensor([[-2.0], [0.75]]))
    if parameterization is not None:
        parameterization.attach(layers, total_epochs=1)
    return layers


@pytest.mark.parametrize("parameterization", [None, Product()], ids=["plain", "product"])
def test_l1_norm_is_of_the_weights_without_biases_and_norms(parameterization):
    masks = MaskSet(prunable_weights(model(parameterization)))
    assert l1_norm(masks) == pytest.approx({"l1_sum": 5.0, "l1_mean": 1.0})
    masks.set({"0.weight": torch.tensor([[True, False, True]]), "2.weight": torch.tensor([[False], [True]])})
    masks.apply_to_weights_()
    # the mean is over all weights, pruned ones too
    assert l1_norm(masks) == pytest.approx({"l1_sum": 1.5, "l1_mean": 0.3})


@pytest.mark.parametrize("parameterization", [None, Product()], ids=["plain", "product"])
def test_small_fractions_count_weights_strictly_below_each_threshold(parameterization):
    layers = model()
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[5e-5, -5e-4, 5e-3]]))
        layers[2].weight.copy_(torch.tensor([[-2.0], [0.75]]))
    if parameterization is not None:
        parameterization.attach(layers, total_epochs=1)
    masks = MaskSet(prunable_weights(layers))
    expected = {"below_0.0001": 1 / 5, "below_0.001": 2 / 5, "below_0.01": 3 / 5}
    assert small_fractions(masks) == pytest.approx(expected)
    masks.set({"0.weight": torch.ones(1, 3, dtype=torch.bool), "2.weight": torch.tensor([[False], [True]])})
    masks.apply_to_weights_()  # a pruned weight is a zero, below every threshold
    assert small_fractions(masks) == pytest.approx({key: value + 1 / 5 for key, value in expected.items()})


def test_a_weight_at_a_threshold_is_not_below_it():
    layer = nn.Linear(len(SMALL), 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([SMALL]))
    assert list(small_fractions(MaskSet(prunable_weights(layer))).values()) == [0, 1 / 3, 2 / 3]


def test_l1_norm_adds_in_double_precision():
    entries = 1 << 15
    layer = nn.Linear(entries, 1)
    nn.init.constant_(layer.weight, 0.1)
    exact = entries * float(torch.tensor(0.1).double())
    assert l1_norm(MaskSet(prunable_weights(layer)))["l1_sum"] == pytest.approx(exact, rel=1e-12)


def test_inverse_metric_of_a_plain_weight_is_one():
    weight = prunable_weights(model())["0.weight"]
    assert inverse_metric_at_zero(weight) == 1.0
    assert inverse_metric_at_zero(weight, mask=torch.tensor([[True, False, True]])) == 1.0


@pytest.mark.parametrize("scaling", [0.5, 1.0, 3.0])
def test_inverse_metric_of_a_balanced_product_is_its_scaling(scaling):
    weight = prunable_weights(model(Product(scaling=scaling)))["0.weight"]
    assert inverse_metric_at_zero(weight) == pytest.approx(scaling, rel=1e-6)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, (3.0 + 5.0 + 0.0) / 3),  # |2^2 - 1^2|, |2^2 - 3^2|, |1 - 1|
        ([[True, True, True]], (3.0 + 5.0 + 0.0) / 3),
        ([[False, False, False]], (3.0 + 5.0 + 0.0) / 3),
        ([[False, True, True]], 2.5),
        ([[True, True, False]], 4.0),
    ],
    ids=["none", "all on", "all off", "first off", "last off"],
)
def test_inverse_metric_of_a_product_by_hand(mask, expected):
    weight = prunable_weights(model(Product()))["0.weight"]
    with torch.no_grad():
        weight.parameters[0].copy_(torch.tensor([[2.0, 2.0, 1.0]]))
        weight.parameters[1].copy_(torch.tensor([[1.0, -3.0, -1.0]]))
    mask = None if mask is None else torch.tensor(mask)
    assert inverse_metric_at_zero(weight, mask=mask) == pytest.approx(expected)


def test_interval_counter_resumes():
    def counter(values: list[float]) -> tuple[nn.Linear, SignFlips]:
        layer = nn.Linear(4, 1)
        write(layer, values)
        return layer, SignFlips(MaskSet(prunable_weights(layer)), every=2)

    layer, flips = counter([1.0, -1.0, 1.0, 0.0])
    write(layer, [-1.0, -1.0, 1.0, 1.0])
    assert flips.on_epoch_end(1) == {}
    other, resumed = counter([9.0, 9.0, 9.0, 9.0])
    resumed.load_state_dict(flips.state_dict())
    for weight, count in ((layer, flips), (other, resumed)):
        write(weight, [-1.0, -2.0, -3.0, 1.0])
        assert count.on_epoch_end(2) == {"sign_flips": pytest.approx(2 / 3)}
        assert count.on_epoch_end(3) == {}
        write(weight, [-1.0, 2.0, 0.0, 1.0])  # against epoch 2, not against the start
        assert count.on_epoch_end(4) == {"sign_flips": pytest.approx(1 / 3)}


@torch.no_grad()
def write(layer: nn.Linear, values: list[float]) -> None:
    layer.weight.copy_(torch.tensor([values]))
