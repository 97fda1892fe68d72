"""Times of calls that alternate in random order, so that noise of the machine affects all equally."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(
    call: Callable[[], object], clock: Callable[[], float] = time.perf_counter, repeats: int = 1
) -> float:
    """Time of a call, including the work of the device: the mean over `repeats` calls without a pause."""
    synchronize()
    start = clock()
    for _ in range(repeats):
        call()
    synchronize()
    return (clock() - start) / repeats


def repeats_for(taken: float) -> int:
    """How many calls of `taken` seconds are timed together, so that launches overlap.

    With a GPU as many as take 50 ms, at most 50; otherwise 1.
    """
    return max(1, min(50, int(0.05 / max(taken, 1e-6)))) if torch.cuda.is_available() else 1


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Mean seconds of each call in each round; every round has all calls, in an order of its own.

    A call can slow the next one down, by what it leaves in the caches: in a fixed order always the same one.

    Args:
        calls: name -> what to measure.
        rounds: timed ones.
        warmup: rounds before them, which allocate and tune; on a GPU one more.
        clock: `time.process_time` for CPU seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, generator = list(calls), random.Random(0)
    repeats = dict.fromkeys(calls, 1)
    for _ in range(warmup + torch.cuda.is_available()):
        for name, call in calls.items():
            repeats[name] = repeats_for(seconds(call, clock))
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            times[name].append(seconds(calls[name], clock, repeats[name]))
    return times


def medians(times: Mapping[str, Sequence[float]], unit: float = 1.0) -> dict[str, float]:
    """Name -> median in `unit` seconds."""
    return {name: statistics.median(values) / unit for name, values in times.items()}


def spreads(times: Mapping[str, Sequence[float]], unit: float = 1.0) -> dict[str, list[float]]:
    """Name -> the smallest and the largest value in `unit` seconds."""
    return {name: [min(values) / unit, max(values) / unit] for name, values in times.items()}


def ratio_spread(times: Mapping[str, Sequence[float]], over: str, under: str) -> list[float]:
    """The smallest and the largest of the rounds' quotients `over` / `under`."""
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    return [min(ratios), max(ratios)]
