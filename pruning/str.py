"""STR: one learned soft threshold per layer (Kusupati et al., 2020), and its calibration to a sparsity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from .base import TargetSparsity, register
from .choice import Choice
from .deprecation import warn_renamed
from .parameterization import Plain
from .soft_threshold import SoftThresholds

_FINAL_LOGIT = -3.6  # of the thresholds in a search's first trial: sigmoid is .027
_GAIN = 30.0  # of the ramp's feedback, per unit of sparsity
_MARGIN = 0.9  # fraction of the largest stable decay that calibration uses

CalibrateName = Literal["none", "search", "ramp"]


class Calibrate(Choice):
    """How STR reaches its target: the given decay unchanged, several runs, or feedback within one run."""

    none = "none"
    search = "search"
    ramp = "ramp"


if TYPE_CHECKING:  # a checker accepts strings; at run time a field's type must be the enum
    CalibrateLike: TypeAlias = Calibrate | CalibrateName
else:
    CalibrateLike = Calibrate


def stable_decay(lr: float, momentum: float) -> float:
    """The largest weight decay at which a threshold's logit decreases steadily, (1 - sqrt(momentum))^2 / lr.

    With a larger one and momentum the logit oscillates through zero, which prunes every weight.
    """
    return (1 - sqrt(momentum)) ** 2 / lr


@register("str")
@dataclass
class STR(TargetSparsity):
    """Soft thresholds that weight decay raises and the loss holds back (Kusupati et al., 2020).

    The published recipe (decay 2.25e-5 and logits from -3200 for 90 %) moves the logits by the sum of the
    learning rates times decay / (1 - momentum); other batch sizes and schedules give other sparsities, or
    none. `calibrate` compensates for this.

    Args:
        sparsity: target; `achieved_sparsity` measures the sparsity that is reached.
        exclude: globs of weights to keep dense.
        granularity: "element" only; a threshold prunes single weights.
        initial: logit of every threshold at the start.
        threshold_decay: weight decay of the logits, in a parameter group of their own.
        calibrate: "none": `threshold_decay` is used unchanged. "search": the same in each of several runs,
            between which a driver changes it by `next_decay`. "ramp": feedback sets the decay at each
            measurement so that the sparsity follows a cubic ramp to the target.
        ramp_every: steps between measurements for the ramp, which need no host sync.
        ramp_until: fraction of all steps after which the ramp stays at the target.
    """

    initial: float = -3200.0
    threshold_decay: float = 2.251757813e-5
    calibrate: CalibrateLike = Calibrate.none
    ramp_every: int = 2
    ramp_until: float = 0.75

    elementwise: ClassVar[bool] = True
    reparametrizes: ClassVar[bool] = True
    adds_decay: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        self.calibrate = Calibrate(self.calibrate)
        if not self.threshold_decay >= 0:
            raise ValueError(f"threshold_decay must not be negative, got {self.threshold_decay:g}")
        if self.ramp_every < 1:
            raise ValueError(f"ramp_every must be at least 1 step, got {self.ramp_every}")
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
        bound = stable_decay(lr, momentum)
        if self.calibrate is not Calibrate.ramp and self.threshold_decay >= bound:
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
        if self.calibrate is Calibrate.ramp:
            self._end = self.ramp_until * self.total_steps
            first = self._thresholds.logits[0]
            self._decay = torch.zeros((), dtype=first.dtype, device=first.device)

    def weight_decays(self) -> dict[Tensor, float]:
        """That of the thresholds: zero with calibrate=ramp, whose decay `add_decay` adds."""
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
        """Update the ramp's decay where a measurement is due; the first call checks that decay is stable."""
        self._begin_step(step, optimizer)
        lr, momentum = self._lr_and_momentum(optimizer)
        if not self._checked:
            self.check_stability(lr, momentum)
            self._checked = True
        if self.calibrate is Calibrate.ramp and step % self.ramp_every == 0:
            correction = (_GAIN * (self.target_sparsity_at(step) - self.current_sparsity())).clamp(-1, 1)
            self._decay.copy_(correction * (_MARGIN * stable_decay(lr, momentum)))
        return True

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
    def add_decay(self) -> None:
        """Add the ramp's decay of the logits, of either sign."""
        if self.calibrate is Calibrate.ramp:
            self._thresholds.save_gradients(self._thresholds.logits)
            for logit in self._thresholds.logits:
                if logit.grad is not None:
                    logit.grad.addcmul_(logit, self._decay)

    @torch.no_grad()
    def current_sparsity(self, factor: float = 1.0) -> Tensor:
        """The sparsity with every logit times `factor`: a 0-dim tensor, no host sync."""
        pairs = self._weights_and_logits()
        pruned = [(w.abs() <= (factor * s).sigmoid().view(())).count_nonzero() for w, s in pairs]
        return torch.stack(pruned).sum() / sum(w.numel() for w, _ in pairs)

    def measured(self, factor: float = 1.0) -> Tensor:
        """Deprecated: `current_sparsity`."""
        warn_renamed("STR.measured", "STR.current_sparsity")
        return self.current_sparsity(factor)

    def _weights_and_logits(self) -> list[tuple[Tensor, Tensor]]:
        originals = [weight.parameters[0] for weight in self.masks.weights.values()]
        return list(zip(originals, self._thresholds.logits, strict=True))

    def first_decay(self, lr_sum: float, momentum: float) -> float:
        """The decay of a search's first trial, which without a loss brings every logit to -3.6 in the run.

        Args:
            lr_sum: of the learning rates of all steps.
            momentum: of the thresholds' group.
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

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, entries that are not zero, total) of each thresholded weight."""
        for name, mask in self.kept().items():
            yield name, int(mask.count_nonzero()), mask.numel()

    def state_dict(self) -> dict[str, Any]:
        """Adds the ramp's current decay."""
        ramp = {"decay": self._decay} if self.calibrate is Calibrate.ramp else {}
        return {**super().state_dict(), **ramp}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the ramp's decay."""
        super().load_state_dict(state)
        if self.calibrate is Calibrate.ramp:
            self._decay.copy_(state["decay"])
