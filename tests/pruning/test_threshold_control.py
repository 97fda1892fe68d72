"""The feedback on thresholds against its formulas in numpy and against worked numbers."""

from __future__ import annotations

from math import exp, log, log1p

import numpy as np
import pytest
import torch
from torch import Tensor

from pruning.threshold_control import ThresholdControl, shift_to_, sparsity_of

TENTHS = torch.arange(1, 11, dtype=torch.float64) / 10


def logit(threshold: float) -> Tensor:
    return torch.full((1, 1), log(threshold / (1 - threshold)), dtype=torch.float64)


def thresholds(pairs: list[tuple[Tensor, Tensor]]) -> list[float]:
    return [float(s.sigmoid()) for _, s in pairs]


def test_a_weight_at_its_threshold_is_pruned():
    pairs = [(TENTHS.view(2, 5), torch.zeros(1, 1, dtype=torch.float64)), (-TENTHS[:6], logit(0.25))]
    assert float(sparsity_of(pairs)) == 7 / 16  # 0.1 to 0.5, and 0.1 and 0.2
    assert float(sparsity_of(pairs, factor=-1.0)) == 11 / 16  # logits 0 and ln 3: 0.5 and 0.75
    assert float(sparsity_of(pairs, shift=log(4))) == 13 / 16  # odds of 4 and 4 / 3: 0.8 and 0.571
    assert float(sparsity_of(pairs, factor=2.0, shift=log(4))) == 11 / 16  # 4 and 4 / 9: 0.8 and 0.308


class Reference:
    """What the class states, in floats: y(S) = ln(-ln(1 - S)) and a shift of gain * e + drift."""

    def __init__(self, weights: list[np.ndarray]) -> None:
        means = [float(np.abs(w).mean()) for w in weights]
        self.floor = log(1e-3 * min(mean for mean in means if mean > 0))
        self.weights, self.gain, self.error, self.drift = weights, 1.0, 0.0, 0.0

    def update(self, logits: list[float], target: float, last: bool) -> list[float]:
        pruned = sum(
            int((np.abs(w) <= 1 / (1 + exp(-s))).sum()) for w, s in zip(self.weights, logits, strict=True)
        )
        share = pruned / sum(w.size for w in self.weights)
        share = float(np.float32(min(max(share, 1e-6), 1 - 1e-6)))  # as torch divides integers
        target = min(max(target, 1e-6), 1 - 1e-6)
        error = log(-log1p(-target)) - log(-log1p(-share))
        shrinks_by_half = abs(error) <= abs(self.error) / 2
        factor = 0.5 if error * self.error < 0 and not shrinks_by_half else 1.25
        self.gain = min(max(self.gain * factor, 1 / 64), 1.0)
        self.error = error
        stopped = all(s <= self.floor if error < 0 else s >= 10 for s in logits)
        if abs(error) < 1 and not stopped:
            self.drift = min(max(self.drift + self.gain * error / 4, -0.5), 0.5)
        shift = min(max(self.gain * error + (0.0 if last else self.drift), -2.0), 2.0)
        return [min(max(s + shift, self.floor), 10.0) for s in logits]


def targets(kind: str) -> list[float]:
    draw = np.random.default_rng(3)
    return {
        "ramp": [0.9 * (1 - (1 - k / 30) ** 3) for k in range(31)] + [0.9] * 5,
        "alternating": [0.7, 0.2] * 12 + [0.45] * 12,
        "nearly equal": list(0.5 + 0.02 * draw.standard_normal(40)),
        "rising": [0.02 * k for k in range(1, 40)],
        "to nothing": [0.5] * 3 + [0.0] * 12 + [0.02] * 4 + [0.5] * 8,
        "to everything": [0.5] * 3 + [1 - 1e-9] * 14 + [0.5] * 12,
    }[kind]


@pytest.mark.parametrize("largest", [1.0, 3.0], ids=["all can be pruned", "some are above 1"])
@pytest.mark.parametrize(
    "kind", ["ramp", "alternating", "nearly equal", "rising", "to nothing", "to everything"]
)
def test_measurements_shift_all_logits_as_the_formulas_say(kind, largest):
    draw = np.random.default_rng(0)
    weights = [largest * draw.random((20, 10)), 0.3 * draw.random(100), np.zeros(7)]
    pairs = [
        (torch.from_numpy(w), torch.full((1, 1), s, dtype=torch.float64))
        for w, s in zip(weights, (-3.0, -2.0, -4.0), strict=True)
    ]
    control, reference = ThresholdControl(pairs[0][1]), Reference(weights)
    steps = targets(kind)
    for step, target in enumerate(steps):
        last = step == len(steps) - 1
        expected = reference.update([float(s) for _, s in pairs], target, last)
        control.update_(pairs, target, step, last=last)
        np.testing.assert_allclose([float(s) for _, s in pairs], expected, rtol=1e-5, atol=1e-5)
        state = control.state_dict()
        found = [float(state[name]) for name in ("gain", "error", "drift")]
        np.testing.assert_allclose(
            found, [reference.gain, reference.error, reference.drift], rtol=1e-5, atol=1e-5
        )
        assert state["measured_at"] == step
        assert float(state["floor"]) == pytest.approx(reference.floor)


def test_one_measurement_by_hand():
    pairs = [(TENTHS, logit(0.25))]  # two of ten are pruned
    control = ThresholdControl(pairs[0][1])
    control.update_(pairs, 0.5, 0)
    # y(0.5) - y(0.2) = ln(0.69315 / 0.22314) = 1.13343: too much for the drift; odds of 1/3 times 3.1063
    assert thresholds(pairs) == pytest.approx([1.03543 / 2.03543], rel=1e-4)
    control.update_(pairs, 0.6, 1)
    # five are pruned: ln(0.91629 / 0.69315) = 0.27911, and a quarter of it for the drift
    assert float(control.state_dict()["drift"]) == pytest.approx(0.27911 / 4, rel=1e-4)
    assert float(pairs[0][1]) == pytest.approx(log(1.03543) + 1.25 * 0.27911, rel=1e-4)


@pytest.mark.parametrize(
    ("smallest", "floor"), [(0.5, log(5e-4)), (50.0, log(1e-3)), (0.0, log(1e-3)), (1e-30, log(1e-33))]
)
def test_the_floor_is_a_thousandth_of_the_smallest_mean_and_at_most_of_1(smallest, floor):
    pairs = [(torch.full((4,), w, dtype=torch.float64), logit(0.1)) for w in (60.0, smallest)]
    control = ThresholdControl(pairs[0][1])
    control.update_(pairs, 0.5, 0)
    assert float(control.state_dict()["floor"]) == pytest.approx(floor)


def test_a_measurement_is_due_at_first_and_then_after_the_interval():
    pairs = [(TENTHS, logit(0.25))]
    control = ThresholdControl(pairs[0][1])
    assert control.is_due(0, 100)
    control.update_(pairs, 0.2, 5)
    assert [control.is_due(step, 3) for step in (6, 7, 8, 9)] == [False, False, True, True]


def test_a_restored_control_continues_as_the_saved_one():
    def pair() -> list[tuple[Tensor, Tensor]]:
        return [(TENTHS, logit(0.25))]

    one, other = pair(), pair()
    control, restored = ThresholdControl(one[0][1]), ThresholdControl(other[0][1])
    for step, target in enumerate((0.5, 0.6, 0.3)):
        control.update_(one, target, step)
    state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in control.state_dict().items()}
    assert state.keys() == {"gain", "error", "drift", "floor", "measured_at"}
    restored.load_state_dict(state)
    other[0][1].copy_(one[0][1])
    for step, target in enumerate((0.5, 0.6, 0.3), start=3):
        control.update_(one, target, step)
        restored.update_(other, target, step)
        assert torch.equal(one[0][1], other[0][1])


@pytest.mark.parametrize("start", [0.05, 0.75, 1e-11])
@pytest.mark.parametrize("target", [0.0, 0.25, 0.5, 1.0])
def test_one_shift_of_all_logits_reaches_a_sparsity_exactly(start, target):
    pairs = [(TENTHS[:9], logit(start)), (0.5 * TENTHS[:7] + 0.013, logit(start / 2))]
    before = [float(s) for _, s in pairs]
    shift_to_(pairs, target)
    assert float(sparsity_of(pairs)) == pytest.approx(target)
    shifts = [float(s) - b for (_, s), b in zip(pairs, before, strict=True)]
    assert shifts[0] == pytest.approx(shifts[1])


def test_logits_stay_where_no_shift_brings_the_sparsity_closer():
    pairs = [(TENTHS, logit(0.45))]
    before = pairs[0][1].clone()
    shift_to_(pairs, 0.4)
    assert torch.equal(pairs[0][1], before)


@pytest.mark.parametrize(("target", "expected"), [(0.26, 0.25), (0.74, 0.75), (0.4, 0.25), (0.6, 0.75)])
def test_of_two_sparsities_around_the_target_the_closer_one_is_taken(target, expected):
    weights = torch.tensor([0.1, 0.3, 0.3, 0.9], dtype=torch.float64)  # 0.5 does not exist
    pairs = [(weights, logit(0.95))]
    shift_to_(pairs, target)
    assert float(sparsity_of(pairs)) == expected
