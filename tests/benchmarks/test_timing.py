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
def test_every_round_has_all_calls_in_an_order_of_its_own(warmup):
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in "abcd"}
    times = interleaved(calls, 20, warmup=warmup)
    rounds = ["".join(made[k : k + 4]) for k in range(0, len(made), 4)]
    assert rounds[:warmup] == ["abcd"] * warmup
    assert {*map("".join, map(sorted, rounds))} == {"abcd"}
    assert len({*rounds[warmup:]}) > 8
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abcd", 20)


def test_no_call_always_follows_the_same_one():
    made: list[str] = []
    interleaved({name: lambda name=name: made.append(name) for name in "abcd"}, 40)
    before_a = [first for first, second in itertools.pairwise(made) if second == "a"]
    assert {*before_a} == {*"abcd"} and max(map(before_a.count, "bcd")) < 25


def test_warm_up_is_left_out():
    """Each call takes another time in each round, the first of which is the warm-up."""
    now, taken = [0.0], {"a": iter([100, 1, 3, 8]), "b": iter([200, 2, 4, 16])}

    def call(name: str) -> None:
        now[0] += next(taken[name])

    times = interleaved({"a": lambda: call("a"), "b": lambda: call("b")}, 3, clock=lambda: now[0])
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
