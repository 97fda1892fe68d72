"""Times of calls that alternate, so that noise of the machine affects all equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, including the work of the device."""
    synchronize()
    start = clock()
    call()
    synchronize()
    return clock() - start


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call in each round; every round has all calls.

    Args:
        calls: name -> what to measure.
        rounds: timed ones.
        warmup: rounds before them, which allocate and tune.
        clock: `time.process_time` for CPU seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            taken = seconds(call, clock)
            if number >= warmup:
                times[name].append(taken)
    return times


def medians(times: Mapping[str, Sequence[float]], unit: float = 1.0) -> dict[str, float]:
    """Name -> median in `unit` seconds."""
    return {name: statistics.median(values) / unit for name, values in times.items()}


def spreads(times: Mapping[str, Sequence[float]], unit: float = 1.0) -> dict[str, list[float]]:
    """Name -> the smallest and the largest value in `unit` seconds."""
    return {name: [min(values) / unit, max(values) / unit] for name, values in times.items()}
