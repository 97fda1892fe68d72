"""The optimizer's state of weights, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pruning.masks import MaskSet
from pruning.optimizer_state import elementwise_state, fill_second_moments_, reset_first_moments_


def with_state(key: str, rows: list[list[float]]) -> tuple[MaskSet, torch.optim.Optimizer, list[Tensor]]:
    """Weights with a state each, and the masks of them."""
    weights = {str(i): nn.Parameter(torch.ones(len(row))) for i, row in enumerate(rows)}
    optimizer = torch.optim.SGD(weights.values(), lr=0.1)
    states = [torch.tensor(row) for row in rows]
    for p, state in zip(weights.values(), states, strict=True):
        optimizer.state[p][key] = state
    return MaskSet(weights), optimizer, states


@pytest.mark.parametrize("key", ["exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum"])
@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        # the mean of one active entry, of two, and for none that over all: (4 + 2 + 6) / 3
        (([1, 0, 0], [0, 1, 1], [0, 0]), ([4, 4, 4], [4, 2, 6], [4, 4])),
        (([0, 0, 0], [1, 0, 1], [1, 1]), ([4.5, 4.5, 4.5], [1, 3.5, 6], [3, 8])),  # (1 + 6 + 3 + 8) / 4
        (([0, 0, 0], [0, 0, 0], [0, 0]), ([0, 0, 0], [0, 0, 0], [0, 0])),
        (([1, 1, 1], [1, 1, 1], [1, 1]), ([4, 9, 9], [1, 2, 6], [3, 8])),
    ],
)
def test_revived_weights_have_the_mean_second_moment_of_active_ones(key, kept, expected):
    masks, optimizer, states = with_state(key, [[4.0, 9.0, 9.0], [1.0, 2.0, 6.0], [3.0, 8.0]])
    masks.set({str(i): torch.tensor(row, dtype=torch.bool) for i, row in enumerate(kept)})
    fill_second_moments_(optimizer, masks)
    assert [state.tolist() for state in states] == [list(row) for row in expected]


def test_other_states_are_no_second_moments():
    masks, optimizer, states = with_state("exp_avg", [[4.0, 9.0]])
    masks.set({"0": torch.tensor([True, False])})
    fill_second_moments_(optimizer, masks)
    assert states[0].tolist() == [4.0, 9.0]


@pytest.mark.parametrize("key", ["momentum_buffer", "exp_avg", "grad_avg", "exp_avg_sq"])
def test_first_moments_are_reset_and_second_ones_are_not(key):
    _, optimizer, states = with_state(key, [[4.0, 9.0]])
    reset_first_moments_(optimizer)
    assert states[0].tolist() == ([4.0, 9.0] if key == "exp_avg_sq" else [0.0, 0.0])


def test_only_tensors_of_the_parameters_shape_are_its_state():
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    assert elementwise_state(optimizer, p) == {}
    own = torch.zeros(2, 3)
    optimizer.state[p].update(step=torch.tensor(1.0), exp_avg=own, other=torch.zeros(6), count=3)
    assert elementwise_state(optimizer, p) == {"exp_avg": own}
