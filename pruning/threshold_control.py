"""Feedback that moves soft thresholds to a sparsity with any optimizer of their logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log, log1p
from typing import Any, TypeAlias

import torch
from torch import Tensor

Pairs: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""(weight of any shape, logit of one element) of every layer, each pair on one device."""

_RESOLUTION = 1e-6  # sparsities below it, and above 1 minus it, count as equal
_MAX_SHIFT = 2.0  # of the logits per measurement: a threshold changes by a factor of e^2 at most
_MIN_GAIN = 1 / 64
_INTEGRAL = 0.25  # of the proportional shift that the drift's compensation takes over
_SMALL = 1.0  # error up to which this happens: larger ones are the ramp's start
_MAX_DRIFT = 0.5  # of the logits per measurement
_FLOOR = 1e-3  # of the smallest layer's mean |w|: thresholds below it prune next to nothing
_CEILING = 10.0  # logit: a threshold of 0.99995
_STATE = ("gain", "error", "drift", "floor")
_FARTHEST = 30.0  # shift of the logits that the final correction considers


def sparsity_of(pairs: Pairs, *, factor: float = 1.0, shift: float | Tensor = 0.0) -> Tensor:
    """The fraction of weights with |w| <= sigmoid(factor * logit + shift): a 0-dim tensor, no host sync."""
    return _fraction_of(pairs, [(factor * logit + shift).sigmoid().view(()) for _, logit in pairs])


def _fraction_of(pairs: Pairs, thresholds: Iterable[Tensor]) -> Tensor:
    device = pairs[0][1].device
    pruned = [
        (w.abs() <= t.to(w.device)).count_nonzero() for (w, _), t in zip(pairs, thresholds, strict=True)
    ]
    return torch.stack([count.to(device) for count in pruned]).sum() / sum(w.numel() for w, _ in pairs)


def _stack_logits(pairs: Pairs) -> Tensor:
    """All logits as one vector on the first one's device: few operations serve all layers.

    Its sigmoid can differ in the last bit from that of a single logit, which the ramp corrects later.
    """
    device = pairs[0][1].device
    return torch.stack([logit.detach().view(()).to(device) for _, logit in pairs])


class ThresholdControl:
    """Feedback from the sparsity S to one shift that is common to all logits.

    With y(S) = ln(-ln(1 - S)) and the error e = y(target) - y(S), a measurement shifts every logit by
    gain * e + drift, at most by 2. If |w| has an exponential distribution and thresholds are small,
    ln(threshold) = y(S) + constant, and a gain of 1 reaches the target at once. Where weights lie closer
    together, e changes its sign and shrinks by less than half; then the gain halves. Otherwise it recovers,
    by 1.25 per measurement up to 1.

    The logits themselves are the integrator, so whatever an optimizer, HAM or momentum adds to them between
    measurements is corrected by the next ones. What acts at every step, such as weights that grow, is
    compensated by the drift, which sums gain * e / 4 where |e| < 1. The logits stay where thresholds have
    an effect, between 1e-3 of the smallest layer's mean |w| and 0.99995. While all are at such a bound the
    drift does not change, so that the control does not wind up.
    """

    def __init__(self, like: Tensor) -> None:
        """Start with gain 1, in dtype and on the device of the tensor `like`."""
        self._gain = torch.ones((), dtype=like.dtype, device=like.device)
        self._error, self._drift, self._floor = (torch.zeros_like(self._gain) for _ in range(3))
        self._measured_at: int | None = None

    def is_due(self, step: int, every: int) -> bool:
        """Return True if the last measurement was `every` steps ago or earlier."""
        return self._measured_at is None or step - self._measured_at >= every

    @torch.no_grad()
    def update_(self, pairs: Pairs, target: float, step: int, *, last: bool = False) -> None:
        """Measure the sparsity and shift the logits towards `target`; no host sync.

        Args:
            pairs: weights and logits, in the same order at each call.
            target: target sparsity, in [0, 1).
            step: number of the training step.
            last: True if no step follows, so that no drift is compensated.
        """
        if self._measured_at is None:
            self._floor.copy_(_floor(pairs))
        self._measured_at = step
        logits = _stack_logits(pairs)
        measured = _fraction_of(pairs, logits.sigmoid()).clamp(_RESOLUTION, 1 - _RESOLUTION)
        aim = min(max(target, _RESOLUTION), 1 - _RESOLUTION)
        error = log(-log1p(-aim)) - (-(-measured).log1p()).log()
        overshot = (error * self._error < 0) & (error.abs() > self._error.abs() / 2)
        self._gain.mul_(torch.where(overshot, 0.5, 1.25)).clamp_(_MIN_GAIN, 1.0)
        self._error.copy_(error)
        drift_change = torch.where(
            (error.abs() < _SMALL) & ~self._at_a_bound(logits, error), _INTEGRAL * self._gain * error, 0.0
        )
        self._drift.add_(drift_change).clamp_(-_MAX_DRIFT, _MAX_DRIFT)
        shift = self._gain * error if last else self._gain * error + self._drift
        shift = shift.clamp(-_MAX_SHIFT, _MAX_SHIFT)
        shifted = (logits + shift).clamp_(self._floor).clamp_(max=_CEILING)
        targets = [logit.view(()) for _, logit in pairs]
        torch._foreach_copy_(targets, list(shifted.unbind()))

    def _at_a_bound(self, logits: Tensor, error: Tensor) -> Tensor:
        """True if a bound stops all logits from moving in the direction of `error`."""
        return torch.where(error < 0, logits <= self._floor, logits >= _CEILING).all()

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        tensors = {name: getattr(self, f"_{name}") for name in _STATE}
        return {**tensors, "measured_at": self._measured_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in _STATE:
            getattr(self, f"_{name}").copy_(state[name])
        self._measured_at = state["measured_at"]


def _floor(pairs: Pairs) -> Tensor:
    """ln(1e-3 * mean |w|) of the layer with the smallest mean; layers of zeros do not count."""
    means = torch.stack([w.abs().mean().to(pairs[0][1].device) for w, _ in pairs])
    smallest = torch.where(means > 0, means, torch.inf).amin()
    return (_FLOOR * smallest).clamp(torch.finfo(means.dtype).tiny, _FLOOR).log()


@torch.no_grad()
def shift_to_(pairs: Pairs, target: float) -> None:
    """Add to every logit the number that brings the sparsity closest to `target`, by bisection.

    The sparsity is then exact to a few weights, unless many |w| are equal, or too many are above 1, which no
    threshold exceeds; measure it with `sparsity_of` where it must be exact.
    """
    low, high = -_FARTHEST, _FARTHEST
    for _ in range(60):
        middle = (low + high) / 2
        if float(sparsity_of(pairs, shift=middle)) > target:
            high = middle
        else:
            low = middle
    best = min((0.0, low, high), key=lambda shift: abs(float(sparsity_of(pairs, shift=shift)) - target))
    for _, logit in pairs:
        logit.add_(best)
