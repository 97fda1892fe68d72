"""What HAM and each sparse method add to a ResNet18 step on CIFAR-100 at batch size 128.

The parts are timed alone, since differences between complete steps are smaller than their noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timing import interleaved, medians, spreads
from torch import nn
from torch.nn.utils import parametrize
from training_steps import full_step, make

from ham.run.loop import forward_backward
from ham.run.state import Run

BATCH_SIZE = 128
BUDGETS = {"HAM": 0.01, "AC/DC": 0.02, "RigL": 0.03, "STR": 0.05, "m * w": 0.08}
"""Part -> the share of a step that it may add."""

REPARAMETRIZED = ("STR", "m * w")
STEPS = 2
"""In one timed call: STR measures its sparsity at every second step."""

UPDATE, BASE, STEP = "RigL's update", "base step", "complete step"


def overhead_rows(rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Time of each part and its share of a step."""
    make_run = partial(make, "resnet18", batch_size=4 if tiny else BATCH_SIZE, tiny=tiny)
    dense = make_run("dense", False)
    step = interleaved({STEP: full_step(dense)}, rounds)
    runs = {part: make_run("dense" if part == "HAM" else part, part == "HAM") for part in BUDGETS}
    updated = make_run("RigL", False)
    for run in (dense, updated, *runs.values()):
        forward_backward(run, run.task.loaders.train.batch)  # gradients
    calls = {part: partial(_repeat, added_work(run, part)) for part, run in runs.items()}
    calls |= {UPDATE: partial(_update, updated), BASE: dense.optimizer.step}
    times = interleaved(calls, 5 * rounds)
    added = {part: added_in_rounds(part, times, runs["RigL"].sparsifier.interval) for part in BUDGETS}
    ms, spread = medians(added, 1e-3), spreads(added, 1e-3)
    step_ms = medians(step, 1e-3)[STEP]
    return [
        {"part": part, "ms": ms[part], "spread_ms": spread[part]}
        | {"step_ms": step_ms, "share": ms[part] / step_ms}
        for part in BUDGETS
    ]


def added_in_rounds(part: str, times: Mapping[str, Sequence[float]], interval: int) -> list[float]:
    """Seconds that a part adds to a step, in each round.

    Args:
        part: of `BUDGETS`.
        times: name -> seconds of each round: of `STEPS` steps of a part, of one base step, of one update.
        interval: steps between RigL's updates.
    """
    rounds = zip(times[part], times[BASE], times[UPDATE], strict=True)
    return [
        own / STEPS - base * (part in REPARAMETRIZED) + update / interval * (part == "RigL")
        for own, base, update in rounds
    ]


def added_work(run: Run, part: str) -> Callable[[], object]:
    """What a part does in a step; a parameterization also takes the base step, which has more to do."""
    if part == "HAM":
        return run.ham._step
    numbers = itertools.count(1) if part == "STR" else itertools.repeat(1)  # no mask update at step 1
    weights = parametrized(run.model) if part in REPARAMETRIZED else []
    gradients = [1e-3 * torch.randn_like(getattr(*weight)) for weight in weights]
    trained = [p for module, name in weights for p in module.parametrizations[name].parameters()]

    def work() -> None:
        for parameter in trained:
            parameter.grad = None
        if weights:
            torch.autograd.backward([getattr(*weight) for weight in weights], gradients)
        run.sparsifier.after_backward(next(numbers), run.optimizer)
        run.sparsifier.add_decay()
        if weights:
            run.optimizer.step()
        run.sparsifier.after_step()

    return work


def parametrized(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, attribute) of the weights that a parametrization computes."""
    modules = [module for module in model.modules() if parametrize.is_parametrized(module)]
    return [(module, name) for module in modules for name in module.parametrizations]


def _repeat(work: Callable[[], object]) -> None:
    for _ in range(STEPS):
        work()


def _update(run: Run) -> None:
    if run.sparsifier.after_backward(run.sparsifier.interval, run.optimizer):
        raise RuntimeError("RigL did not update its masks")
