"""Calls alternate, warm-up rounds are left out, and medians and spreads are those of the rest."""

from __future__ import annotations

import itertools

import pytest
import torch
from overheads import parametrized
from timing import interleaved, medians, repeats_for, seconds, spreads
from torch import nn
from torch.nn.utils import parametrize


def clock_of(*durations: float):
    """A clock by which the calls take these times, one after the other."""
    starts = itertools.accumulate(durations, initial=0.0)
    return itertools.chain.from_iterable(itertools.pairwise(starts)).__next__


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_calls_alternate(warmup):
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(calls, 2, warmup=warmup)
    assert order == list("abc") * (warmup + 2)
    assert [len(values) for values in times.values()] == [2, 2, 2]


def test_warm_up_is_left_out():
    clock = clock_of(100, 200, 1, 2, 3, 4, 8, 16)  # a and b in turn
    times = interleaved({"a": int, "b": int}, 3, clock=clock)
    assert times == {"a": [1, 3, 8], "b": [2, 4, 16]}
    assert medians(times) == {"a": 3, "b": 4}
    assert medians(times, 1e-3) == {"a": 3000, "b": 4000}
    assert spreads(times, 1e-3) == {"a": [1000, 8000], "b": [2000, 16000]}


@pytest.mark.parametrize(("taken", "repeats"), [(1e-3, 50), (0.011, 4), (0.05, 1), (3.0, 1)])
def test_short_calls_are_timed_together_on_a_gpu(taken, repeats, monkeypatch):
    assert repeats_for(taken) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert repeats_for(taken) == repeats


def test_a_repeated_call_has_its_mean_time():
    calls: list[int] = []
    assert seconds(lambda: calls.append(1), clock_of(6), 3) == 2 and len(calls) == 3


def test_computed_weights_are_found():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    parametrize.register_parametrization(model[1], "weight", nn.Identity())
    ((module, name),) = parametrized(model)
    assert module is model[1] and name == "weight"
    assert torch.equal(getattr(module, name), model[1].weight)
