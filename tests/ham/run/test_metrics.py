"""Sums over an epoch: loss, accuracy, and the first step that was not finite."""

from __future__ import annotations

import pytest
import torch

from ham import distributed
from ham.distributed import World
from ham.run.metrics import EpochMetrics

CPU = torch.device("cpu")


@pytest.fixture
def metrics() -> EpochMetrics:
    """Three steps of losses 1, 2 and 6, and 3 of 5 samples right."""
    made = EpochMetrics(CPU)
    for step, loss in enumerate((1.0, 2.0, 6.0)):
        made.update_loss(step, torch.tensor(loss, requires_grad=True))
    made.update_accuracy(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1]))
    made.update_accuracy(torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]), torch.tensor([1, 0, 0]))
    return made


def test_an_epoch_without_steps_has_means_of_0() -> None:
    empty = EpochMetrics(CPU)
    assert empty.running_loss() == 0.0 and empty.means() == (0.0, 0.0) and empty.diverged_at() == -1
    one = EpochMetrics(CPU)
    one.update_loss(0, torch.tensor(3.0))
    one.update_accuracy(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert one.running_loss() == 3.0 and one.means() == (3.0, 1.0)


def test_means_are_over_steps_and_samples(metrics: EpochMetrics) -> None:
    assert metrics.running_loss() == 3.0 and metrics.means() == (3.0, 3 / 5)
    assert metrics.loss_sum.dtype == torch.float64 and not metrics.loss_sum.requires_grad


def test_a_new_epoch_begins_at_0(metrics: EpochMetrics) -> None:
    metrics.reset()
    assert metrics.means() == (0.0, 0.0)
    assert metrics._row().tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_step_that_is_not_finite_is_kept(bad: float) -> None:
    for first in (0, 4):
        metrics = EpochMetrics(CPU)
        for step in range(first):
            metrics.update_loss(step, torch.tensor(1.0))
        assert metrics.diverged_at() == -1
        for step, loss in ((first, bad), (first + 1, 1.0), (first + 2, bad)):
            metrics.update_loss(step, torch.tensor(loss))
        assert metrics.diverged_at() == first
        metrics.reset()
        assert metrics.diverged_at() == first, "until the run ends"


def test_sums_are_over_all_ranks(metrics: EpochMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.tensor([3.0, 1.0, 1.0, 3.0], dtype=torch.float64)

    def all_gather(own: torch.Tensor) -> torch.Tensor:
        return torch.stack([own, torch.tensor(7) if own.ndim == 0 else other])

    monkeypatch.setattr(distributed, "all_gather", all_gather)
    assert metrics.means() == ((9 + 3) / (3 + 1), (3 + 1) / (5 + 3))
    assert metrics.state_dict()["rows"].tolist() == [[9.0, 3.0, 3.0, 5.0], [3.0, 1.0, 1.0, 3.0]]
    assert metrics.diverged_at() == 7 and metrics.running_loss() == 3.0


def test_a_checkpoint_gives_each_rank_its_sums_back(
    metrics: EpochMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = metrics.state_dict()
    assert state["rows"].tolist() == [[9.0, 3.0, 3.0, 5.0]]
    restored = EpochMetrics(CPU)
    restored.load_state_dict(state)
    assert restored.means() == metrics.means() and (restored.steps, restored.count) == (3, 5)
    rows = torch.tensor([[9.0, 3.0, 3.0, 5.0], [3.0, 1.0, 1.0, 3.0]], dtype=torch.float64)
    for me, expected in ((World(1, 2), rows[1]), (World(0, 3), rows.sum(0)), (World(2, 3), torch.zeros(4))):
        monkeypatch.setattr(distributed, "world", lambda me=me: me)
        restored.load_state_dict({"rows": rows})
        assert restored._row().tolist() == expected.tolist()
