"""App. E: the four sign cases of one neuron, the conserved balance, Theorem E.2's region and Eq. 13."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ham.theory import (
    Neuron,
    balance,
    in_learning_region,
    learned_cases,
    multidimensional_gap,
    neuron_flow,
)

INPUTS = np.random.default_rng(3).standard_normal(12)
NEURON = Neuron.from_inputs(INPUTS)
TIMES = np.concatenate([[0], np.geomspace(0.01, 60, 60)])


def cases(*learned):
    return {case: case in learned for case in [(1, 1), (-1, 1), (1, -1), (-1, -1)]}


@pytest.mark.parametrize("a", [-0.7, 0.0, 1.3])
@pytest.mark.parametrize("w", [-0.4, 0.0, 0.9])
def test_loss_and_gradient_are_those_of_a_relu_network(a, w):
    z = torch.tensor(INPUTS)
    student = torch.tensor([a, w], dtype=torch.float64, requires_grad=True)
    loss = ((torch.relu(z) - student[0] * torch.relu(student[1] * z)) ** 2).mean() / 2
    loss.backward()
    assert NEURON.loss(a, w) == pytest.approx(loss.item(), rel=1e-12)
    assert NEURON.gradient(a, w) == pytest.approx(student.grad.tolist(), rel=1e-12, abs=1e-14)


def test_gd_learns_one_of_four_cases():
    """Lemma E.1: only with w > 0 and a of the teacher's sign."""
    assert learned_cases(NEURON, "gd") == cases((1, 1))


@pytest.mark.parametrize("size", [0.1, 0.5, 1.5])
@pytest.mark.parametrize("strengths", [(4.0, 1.0), (1.0, 0.5)])
def test_ham_with_larger_outer_alpha_learns_two_of_four_cases(size, strengths):
    """Theorem E.2, for any size of the balanced start."""
    assert learned_cases(NEURON, "ham", strengths, size=size) == cases((1, 1), (-1, 1))


@pytest.mark.parametrize("strengths", [(2.0, 2.0), (1.0, 4.0)])
def test_ham_without_larger_outer_alpha_learns_the_case_of_gd(strengths):
    """The condition alpha_1 > alpha_2 is necessary."""
    assert learned_cases(NEURON, "ham", strengths) == cases((1, 1))


def test_product_with_larger_outer_gamma_learns_two_of_four_cases():
    """Gadhikar et al. (2025), Figure 4."""
    assert learned_cases(NEURON, "product", (1.0, 0.25)) == cases((1, 1), (-1, 1))


def test_the_mirrored_teacher_mirrors_the_cases():
    neuron = Neuron.from_inputs(INPUTS, target=-0.8)
    assert learned_cases(neuron, "gd") == cases((-1, 1))
    assert learned_cases(neuron, "ham", (4.0, 1.0)) == cases((-1, 1), (1, 1))


def test_nothing_is_learned_without_a_positive_input():
    """Probability 2^-d: C = 0 in Theorem E.2's proof."""
    neuron = Neuron.from_inputs(-np.abs(INPUTS))
    path = neuron_flow(neuron, -0.5, 0.5, TIMES, "ham", (4.0, 1.0))
    np.testing.assert_array_equal(path[-1], path[0])


@pytest.mark.parametrize("start", [(0.6, 0.6), (-0.6, 0.6), (0.3, -0.9), (-0.2, 1.4)])
@pytest.mark.parametrize("strengths", [(0.0, 0.0), (4.0, 1.0), (2.0, 2.0)])
def test_flow_conserves_the_balance(start, strengths):
    """Lemma E.1, a^2 - w^2 at alpha = 0, and its counterpart for Eq. 12."""
    path = neuron_flow(NEURON, *start, TIMES, "ham", strengths)
    values = balance(path[:, 0], path[:, 1], strengths)
    np.testing.assert_allclose(values, values[0], atol=1e-8)
    if strengths == (0.0, 0.0):
        np.testing.assert_allclose(values, (path[:, 0] ** 2 - path[:, 1] ** 2) / 2, atol=1e-12)


@given(size=st.floats(1e-3, 1e3), low=st.floats(0, 50), excess=st.floats(0.01, 50))
def test_balanced_start_with_larger_outer_alpha_has_a_negative_balance(size, low, excess):
    """Hence the flow reaches a = 0 with w > 0: Theorem E.2 without its saddle."""
    assert balance(-size, size, (low + excess, low)) < 0
    assert balance(-size, size, (low, low)) == 0


@pytest.mark.parametrize("size", [0.2, 0.5, 1.5])
def test_learning_region_is_a_above_minus_w(size):
    """Theorem E.2's proof: from -a = w > 0 the flow enters a > -w, w > 0 and never the printed set."""
    slope_a, slope_w = NEURON.gradient(-size, size)
    assert slope_a < 0  # the paper says > 0
    assert slope_a == pytest.approx(-slope_w)
    da, dw = -(4 * size + 1) * slope_a, -(size + 1) * slope_w
    assert da + dw > 0
    path = neuron_flow(NEURON, -size, size, TIMES, "ham", (4.0, 1.0))
    assert in_learning_region(path[1:, 0], path[1:, 1]).all()
    assert not (path[1:, 0] < -path[1:, 1]).any()
    assert in_learning_region(size, size)  # included in the proof, excluded in the printed set
    assert not size < -size


def test_the_sides_of_eq_13_by_hand():
    """|w|_2 = 5 and |w|_1 = 7 for n = 2."""
    found = multidimensional_gap(np.array([3.0, -4.0]), 2.0)
    assert found == pytest.approx((11, 15 / np.sqrt(2), 8))


def test_the_border_is_no_part_of_the_learning_region():
    points = [(-1.0, 1.0), (-0.999, 1.0), (1.0, 0.0), (1.0, -0.5), (1.0, 0.001)]
    assert [bool(in_learning_region(a, w)) for a, w in points] == [False, True, False, False, True]


def test_without_strengths_and_target_the_neuron_is_that_of_gradient_descent():
    assert Neuron.from_inputs(INPUTS) == Neuron.from_inputs(INPUTS, 1.0)
    assert Neuron(0.5, 0.25).target == 1 and Neuron.from_inputs(np.array([2.0, -3.0, 0.0])) == Neuron(
        4 / 3, 3
    )
    for kind in ("gd", "ham"):
        plain = neuron_flow(NEURON, 0.6, 0.6, TIMES[:20], kind)
        np.testing.assert_array_equal(plain, neuron_flow(NEURON, 0.6, 0.6, TIMES[:20], kind, (0.0, 0.0)))
    assert balance(2.0, 1.0) == balance(2.0, 1.0, (0.0, 0.0)) == 1.5


def test_cases_are_learned_from_one_half_in_200_units_of_time_below_a_loss_of_a_millionth(monkeypatch):
    asked, ends = [], iter([(1.0, 1.0), (1.0, 0.9985), (1.0, 0.99), (1.0, -1.0)])

    def flow(neuron, a0, w0, times, kind, strengths):
        asked.append((a0, w0, times.tolist(), kind, strengths))
        return np.array([[a0, w0], next(ends)])

    monkeypatch.setattr("ham.theory.neuron.neuron_flow", flow)
    found = learned_cases(Neuron(0.5, 0.5), "gd")
    assert [own[:2] for own in asked] == [(0.5, 0.5), (-0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)]
    assert {(tuple(own[2]), own[3], own[4]) for own in asked} == {((0.0, 200.0), "gd", (0.0, 0.0))}
    assert list(found.values()) == [True, True, False, False], "losses 0, 5.6e-7, 2.5e-5, 0.5"
    assert list(found) == [(1, 1), (-1, 1), (1, -1), (-1, -1)]


@given(w=st.lists(st.floats(-3, 3), min_size=1, max_size=6), alpha=st.floats(0, 1e4))
def test_the_outer_side_of_eq_13_is_the_largest(w, alpha):
    outer, middle, inner = multidimensional_gap(np.array(w), alpha)
    assert outer >= inner - 1e-9 * outer
    assert outer >= middle - 1e-9 * outer


def test_the_middle_of_eq_13_fails_for_small_alpha():
    """It is above the inner side only if alpha |w|_1 >= sqrt(n)."""
    w = np.full(16, 0.25)  # |w|_1 = 4 = sqrt(n)
    for alpha, holds in [(0.0, False), (0.9, False), (1.1, True), (100.0, True)]:
        _, middle, inner = multidimensional_gap(w, alpha)
        assert bool(middle >= inner) is holds
