"""STR: one learned soft threshold per layer (Kusupati et al., 2020), and its calibration to a sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import register
from .checks import warn_at_caller
from .choice import Choice
from .deprecation import warn_renamed
from .options import check_positive_integer
from .parameterization import Plain
from .soft_threshold import SoftThresholds
from .target import TargetSparsity
from .threshold_control import Pairs, ThresholdControl, shift_to_, sparsity_of

_FINAL_LOGIT = -3.6  # of the thresholds in a search's first trial: sigmoid is .027
_NEAR = 0.01  # of the sparsity: a smaller difference is corrected at the end, a larger one is a warning
_EXACT = 0.001  # of the sparsity: a larger difference after the correction is a warning,
_FEW_WEIGHTS = 3  # unless it is at most this many weights
_TOO_MANY_LARGE = (
    "thresholds are below 1, but too many weights are above 1; exclude layers with such large weights"
)
_LAST_MEASUREMENTS = 3  # after the last step

CalibrateName = Literal["none", "search", "ramp"]


class Calibrate(Choice):
    """How STR reaches its target: with the given decay, by several runs, or by feedback within one run."""

    none = "none"
    search = "search"
    ramp = "ramp"


if TYPE_CHECKING:  # a checker accepts strings; at run time a field's type must be the enum
    CalibrateLike: TypeAlias = Calibrate | CalibrateName
else:
    CalibrateLike = Calibrate


def stable_decay(lr: float, momentum: float) -> float:
    """The largest weight decay at which a threshold's logit decreases steadily, (1 - sqrt(momentum))^2 / lr.

    Up to it, SGD's recursion of the logit without a loss, v <- momentum v + decay s, s <- s - lr v, has real
    roots. With a larger one and momentum the logit oscillates through zero, which prunes every weight. At a
    learning rate of 0 every decay is stable: inf.
    """
    return (1 - sqrt(momentum)) ** 2 / lr if lr else inf


@register("str")
@dataclass
class STR(TargetSparsity):
    """Soft thresholds that weight decay raises and the loss holds back (Kusupati et al., 2020).

    The published recipe (decay 2.25e-5 and logits from -3200 for 90 %) moves the logits by the sum of the
    learning rates times decay / (1 - momentum); other batch sizes and schedules give other sparsities, or
    none. `calibrate` compensates for this.

    Args:
        sparsity: target sparsity; `achieved_sparsity` measures the sparsity that is reached.
        exclude: globs of weights to keep dense.
        granularity: "element" only; a threshold prunes single weights.
        initial: initial logit of every threshold.
        threshold_decay: weight decay of the logits, in a parameter group of their own.
        calibrate: "none": `threshold_decay` is used unchanged. "search": the same in each of several runs,
            between which the calling program changes it by `next_decay`. "ramp": feedback shifts all
            logits at each measurement so that the sparsity follows a cubic ramp to the target, with any
            optimizer (see `ThresholdControl`); `threshold_decay` has no effect. `on_end` corrects the last
            point, or warns.
        ramp_every: steps between measurements for the ramp, which need no host sync.
        ramp_until: fraction of all steps after which the ramp stays at the target.
    """

    initial: float = -3200.0
    threshold_decay: float = 2.251757813e-5
    calibrate: CalibrateLike = Calibrate.none
    ramp_every: int = 2
    ramp_until: float = 0.75

    elementwise: ClassVar[bool] = True
    _state_options: ClassVar[tuple[str, ...]] = ("calibrate",)
    reparametrizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        self.calibrate = Calibrate(self.calibrate)
        if not self.threshold_decay >= 0:
            raise ValueError(f"threshold_decay must not be negative, got {self.threshold_decay:g}")
        check_positive_integer("ramp_every", self.ramp_every, " step")
        if not 0 < self.ramp_until <= 1:
            raise ValueError(f"ramp_until must be in (0, 1], got {self.ramp_until:g}")
        if self.calibrate is not Calibrate.none and self.initial >= 0:
            raise ValueError(f"initial must be negative, such as -8, got {self.initial:g}")

    @property
    def needs_calibration_runs(self) -> bool:
        """True with calibrate=search."""
        return self.calibrate is Calibrate.search

    def check_rates(self, *, lr: float, momentum: float | None) -> None:
        """Raise ValueError where SGD makes the thresholds unstable, see `check_stability`."""
        if momentum is not None:
            self.check_stability(lr, momentum)

    def check_stability(self, lr: float, momentum: float) -> None:
        """Raise ValueError where the logits would oscillate at the peak learning rate `lr`."""
        if self.calibrate is Calibrate.ramp:
            return
        bound = stable_decay(lr, momentum)
        if self.threshold_decay >= bound:
            raise ValueError(
                f"threshold_decay={self.threshold_decay:g} makes STR's thresholds unstable at learning rate "
                f"{lr:g} and momentum {momentum:g}: keep it below {bound:.3g}, or use calibrate=ramp"
            )

    def _parameterize(self, requested: Plain) -> SoftThresholds:
        super()._parameterize(requested)
        self._thresholds = SoftThresholds(self.initial, self.exclude)
        return self._thresholds

    def _on_attach(self) -> None:
        self._checked = False
        self._step = -1  # the last one that `after_backward` was called with
        if self.calibrate is Calibrate.ramp:
            self._end = self.ramp_until * self.total_steps
            self._control = ThresholdControl(self._thresholds.logits[0])

    def weight_decays(self) -> dict[Tensor, float]:
        """Weight decay of the thresholds: zero with calibrate=ramp, which shifts them itself."""
        decay = 0.0 if self.calibrate is Calibrate.ramp else self.threshold_decay
        return dict.fromkeys(self._thresholds.logits, decay)

    def target_sparsity_at(self, step: int) -> float:
        """The ramp's sparsity at `step`: sparsity * (1 - (1 - step / end)^3), then the target."""
        return self.sparsity * (1 - (1 - min(step / self._end, 1)) ** 3)

    def wanted(self, step: int) -> float:
        """Deprecated: `target_sparsity_at`."""
        warn_renamed("STR.wanted", "STR.target_sparsity_at")
        return self.target_sparsity_at(step)

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Note the step for the ramp; check the optimizer's groups and the decay.

        It checks once, at the first learning rate above 0.
        """
        self._begin_step(step, optimizer)
        if self.calibrate is Calibrate.ramp:
            self._check_step(step)
        if not self._checked:
            lr, momentum = self._lr_and_momentum(optimizer)
            self.check_stability(lr, momentum)
            self._checked = lr > 0
        self._step = step
        return True

    def after_step(self) -> None:
        """With calibrate=ramp, measure the sparsity and shift the thresholds if a measurement is due.

        A measurement is due `ramp_every` steps after the previous one or at the first call after that. After
        the last step there are three in a row, since nothing corrects these thresholds later.
        """
        super().after_step()
        if self.calibrate is not Calibrate.ramp:
            return
        if self._step < 0:
            raise ValueError("STR's ramp requires the step: call after_backward(step, optimizer) first")
        done = self._step + 1
        last = done == self.total_steps
        due = last or self._control.is_due(self._step, self.ramp_every)
        for _ in range(_LAST_MEASUREMENTS if last else due):
            target = self.target_sparsity_at(done)
            self._control.update_(self._weights_and_logits(), target, self._step, last=last)

    def on_end(self) -> None:
        """With calibrate=ramp, shift the thresholds to the exact target where the sparsity is within 1 point.

        Otherwise warn. Also warn if no shift reaches the target, for example because many absolute values
        are equal: a difference of a few weights is accepted, one of more than 0.1 points is not.
        """
        super().on_end()
        if self.calibrate is not Calibrate.ramp:
            return
        achieved = float(self.current_sparsity())
        if abs(achieved - self.sparsity) <= _NEAR:
            shift_to_(self._weights_and_logits(), self.sparsity)
            shifted = float(self.current_sparsity())
            total = sum(weight.numel() for weight in self.masks.weights.values())
            if abs(shifted - self.sparsity) > max(_EXACT, _FEW_WEIGHTS / total):
                self._warn_of_end(shifted, self._cure_of_shift(shifted))
        else:
            self._warn_of_end(achieved, self._cure(achieved))

    def _warn_of_missed_target(self) -> None:
        """The ramp has warnings of its own, and a search compares its trials."""
        if self.calibrate is Calibrate.none:
            super()._warn_of_missed_target()

    def _cure_of_missed_target(self) -> str:
        ramp = "use calibrate='ramp' with initial=-8"
        if self.steps_per_epoch is not None and self.step >= self.total_steps:
            return f"{ramp}, because the sparsity that thresholds reach depends on the training"
        return f"{super()._cure_of_missed_target()}; or {ramp}"

    def _warn_of_end(self, achieved: float, cure: str) -> None:
        warn_at_caller(
            f"STR's ramp ended at sparsity {achieved:.4f}, but its target is {self.sparsity:g}: {cure}"
        )

    def _cure_of_shift(self, shifted: float) -> str:
        if self._are_too_many_large(shifted):
            return _TOO_MANY_LARGE
        return "many weights have the same absolute value; exclude their layers, or train longer"

    def _are_too_many_large(self, achieved: float) -> bool:
        """Return True if weights above 1, which no threshold prunes, keep the sparsity below the target."""
        largest = float(sparsity_of(self._weights_and_logits(), shift=100.0))
        return achieved < self.sparsity and largest < self.sparsity

    def _cure(self, achieved: float) -> str:
        done = self._step + 1
        if done < self._end:
            steps = f"{done} of the {self.total_steps} steps passed to attach()"
            return f"training ended after {steps}; pass the actual total_epochs and steps_per_epoch"
        if self._are_too_many_large(achieved):
            return _TOO_MANY_LARGE
        return "call after_step() after each optimizer step, lower ramp_every, or train longer"

    def _lr_and_momentum(self, optimizer: Optimizer) -> tuple[float, float]:
        """Peak learning rate and momentum (Adam's first beta) of the group that holds the thresholds."""
        first = id(self._thresholds.logits[0])
        group = next((g for g in optimizer.param_groups if any(id(p) == first for p in g["params"])), None)
        if group is None:
            raise ValueError("the optimizer lacks STR's thresholds: create it after sparsifier.attach(model)")
        momentum = group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0]
        peak = max(group.get("initial_lr", group["lr"]), group.get("max_lr", 0.0))  # OneCycleLR has a max_lr
        return float(peak), float(momentum)

    @torch.no_grad()
    def current_sparsity(self, factor: float = 1.0) -> Tensor:
        """The sparsity with every logit times `factor`: a 0-dim tensor, no host sync."""
        return sparsity_of(self._weights_and_logits(), factor=factor)

    def measured(self, factor: float = 1.0) -> Tensor:
        """Deprecated: `current_sparsity`."""
        warn_renamed("STR.measured", "STR.current_sparsity")
        return self.current_sparsity(factor)

    def _weights_and_logits(self) -> Pairs:
        originals = [weight.parameters[0] for weight in self.masks.weights.values()]
        return list(zip(originals, self._thresholds.logits, strict=True))

    def first_decay(self, lr_sum: float, momentum: float) -> float:
        """The decay of a search's first trial, which without a loss brings every logit to -3.6 in the run.

        Args:
            lr_sum: sum of the learning rates of all steps.
            momentum: momentum of the thresholds' group.
        """
        return max(log(self.initial / _FINAL_LOGIT), 0.0) * (1 - momentum) / lr_sum

    def next_decay(self, lr_sum: float, momentum: float) -> float:
        """The decay that would have reached the target, if the final weights had stayed the same.

        With the factor c for which current_sparsity(c) = sparsity, it is
        decay - ln(c) (1 - momentum) / lr_sum.
        """
        low, high = -12.0, 12.0
        for _ in range(50):
            middle = (low + high) / 2
            if float(self.current_sparsity(exp(middle))) > self.sparsity:
                low = middle
            else:
                high = middle
        return max(self.threshold_decay - low * (1 - momentum) / lr_sum, 0.0)

    def kept(self) -> dict[str, Tensor]:
        """Name -> mask, True where the thresholded weight is not zero."""
        return {name: value != 0 for name, value in self.masks.values().items()}

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        """|w| - sigmoid(s): how far each weight is above its threshold."""
        pairs = zip(self.masks.weights, self._weights_and_logits(), strict=True)
        return {name: w.abs() - s.sigmoid().view(()) for name, (w, s) in pairs}

    def state_dict(self) -> dict[str, Any]:
        """Adds the state of the ramp's control, and the step."""
        if self.calibrate is not Calibrate.ramp:
            return super().state_dict()
        return {**super().state_dict(), "ramp": {**self._control.state_dict(), "step": self._step}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the ramp's control; after a state without it, of an earlier version, it starts again."""
        super().load_state_dict(state)
        if self.calibrate is Calibrate.ramp and "ramp" in state:
            self._control.load_state_dict(state["ramp"])
            self._step = state["ramp"]["step"]
