"""Counts of clamped exponents, and the warning after the first step."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from ham.optim.clamping import ClampCounts, FirstStep

CPU = torch.device("cpu")


def counted(clamped: int, seen: int) -> ClampCounts:
    counts = ClampCounts()
    for count, value in zip(counts.on(CPU), (clamped, seen), strict=True):
        count.fill_(value)
    return counts


def test_the_share_is_of_all_exponents_since_the_last_call():
    counts = counted(3, 12)
    assert counts.share().item() == 0.25
    assert counts.state_dict() == {"clamped": 0, "seen": 0}
    assert counts.share().item() == 0.0
    assert ClampCounts().share().item() == 0.0
    assert counted(1, 1).share().item() == 1.0


def test_counts_add_up_and_leave_the_other_ones_alone():
    counts, more = counted(1, 10), counted(2, 30)
    counts.add(more)
    assert counts.state_dict() == {"clamped": 3, "seen": 40}
    assert more.state_dict() == {"clamped": 2, "seen": 30}
    empty = ClampCounts()
    empty.add(more)
    assert empty.state_dict() == {"clamped": 2, "seen": 30}


def test_both_counts_of_a_device_are_integers_of_their_own():
    counts = ClampCounts()
    clamped, seen = counts.on(CPU)
    assert clamped.dtype == seen.dtype == torch.int64 and clamped.shape == seen.shape == ()
    seen.add_(5)
    assert counts.on(CPU)[0].item() == 0 and counts.on(CPU)[1].item() == 5


def test_counts_come_back_from_their_state():
    counts = counted(7, 8)
    counts.load_state_dict({"clamped": 1, "seen": 9}, CPU)
    assert counts.state_dict() == {"clamped": 1, "seen": 9}


@pytest.mark.parametrize(
    ("flag", "third"), [(None, 0), (torch.tensor(0.0), 0), (torch.tensor([1.0]), 1), (torch.tensor(2.5), 1)]
)
def test_a_row_has_both_counts_and_whether_the_step_overflowed(flag, third):
    [row] = counted(3, 12).rows(flag)
    assert row.tolist() == [3, 12, third] and row.dtype == torch.int64


def first_step() -> tuple[FirstStep, torch.optim.Optimizer]:
    return FirstStep(), torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)


def examined(first: FirstStep, clamped: int, seen: int, flag: torch.Tensor | None = None) -> list[str]:
    first.copy(counted(clamped, seen), flag)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first.examine("SGD")
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("clamped", "percent"), [(0, None), (10, None), (11, "1%"), (250, "25%"), (1000, "100%")]
)
def test_more_than_one_percent_at_the_bound_is_a_warning(clamped, percent):
    first, optimizer = first_step()
    assert first.must_count(optimizer)
    assert examined(first, clamped, 1000) == [
        f"{percent} of the exponents of HAM's first step with SGD are clamped: lower alpha, or pass "
        "lr=..., a function of the group, where the optimizer's rate is not group['lr']"
        for _ in range(percent is not None)
    ]
    assert not first.must_count(optimizer)


@pytest.mark.parametrize(
    ("seen", "flag"), [(0, None), (1000, torch.tensor(1.0))], ids=["nothing", "overflow"]
)
def test_a_step_that_changed_nothing_is_not_the_first(seen, flag):
    first, optimizer = first_step()
    assert examined(first, 500, seen, flag) == []
    assert first.must_count(optimizer)
    assert len(examined(first, 500, 1000, torch.tensor(0.0))) == 1
    assert not first.must_count(optimizer)


def test_nothing_is_counted_while_a_copy_is_under_way_nor_on_other_devices():
    first, optimizer = first_step()
    first.copy(counted(0, 10), None)
    assert not first.must_count(optimizer)
    first.examine("SGD")
    first.examine("SGD")
    assert not first.must_count(optimizer)
    elsewhere = torch.optim.SGD([nn.Parameter(torch.ones(2, device="meta"))], lr=0.1)
    assert not FirstStep().must_count(elsewhere)
