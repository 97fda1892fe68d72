"""STR: one learned soft threshold per layer (Kusupati et al., 2020), and how to reach a sparsity with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import exp, log, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .base import Masked, register
from .choice import Choice
from .parameterization import Plain
from .weights import parametrize_

_GOAL = -3.6  # of a threshold's logit at the end of a search's first trial: sigmoid is .027
_GAIN = 30.0  # of the ramp's feedback, per unit of sparsity
_MARGIN = 0.9  # share of the largest stable decay that calibration uses


class Calibrate(Choice):
    """How STR comes to its target: the given decay as it is, several runs, or feedback within one run."""

    none = "none"
    search = "search"
    ramp = "ramp"


class _Shrink(torch.autograd.Function):
    """sign(w) relu(|w| - sigmoid(s)); its gradients in two passes, where clamp's own take a dozen."""

    @staticmethod
    def forward(w: Tensor, logit: Tensor) -> Tensor:
        level = logit.sigmoid().view(())
        return w - torch.clamp(w, -level, level)  # its zeros are +0.0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        theta, logit = ctx.saved_tensors
        to_w = torch.where(theta != 0, upstream, 0.0)
        level = logit.sigmoid()
        along = (theta.sign() * to_w).sum()
        return to_w, -along * level * (1 - level)


class SoftThreshold(nn.Module):
    """A parametrization: sign(w) relu(|w| - sigmoid(s)), with s one trained logit of shape [1, 1].

    d/dw is 1 where |w| > sigmoid(s), d/ds is -sigmoid'(s) sum(sign(w) upstream) over the same entries.
    """

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((1, 1), float(logit)))

    def forward(self, w: Tensor) -> Tensor:
        """The thresholded weight."""
        return _Shrink.apply(w, self.threshold)

    def right_inverse(self, theta: Tensor) -> Tensor:
        """The weight as it is: thresholds start near zero."""
        return theta


@dataclass
class SoftThresholds(Plain):
    """A soft threshold on every prunable weight that is not excluded."""

    initial: float
    exclude: list[str] = field(default_factory=list)

    def attach(self, model: nn.Module, *, total_epochs: int) -> None:
        """Parametrize the weights. Raises ValueError where some are shared."""
        made = parametrize_(model, lambda: SoftThreshold(self.initial), self.exclude)
        self.logits = [parametrization.threshold for parametrization in made]


def stable_decay(lr: float, momentum: float) -> float:
    """The largest weight decay under which a threshold's logit falls steadily, (1 - sqrt(momentum))^2 / lr.

    Beyond it SGD with momentum makes the logit swing through zero, and everything is pruned.
    """
    return (1 - sqrt(momentum)) ** 2 / lr


@register("str")
@dataclass
class STR(Masked):
    """Soft thresholds that weight decay raises and the loss holds back (Kusupati et al., 2020).

    The published recipe (decay 2.25e-5 and logits from -3200 for 90 %) moves the logits by the sum of the
    learning rates times decay / (1 - momentum); at other batch sizes and schedules it gives other sparsities,
    or none. `calibrate` says what to do about it.

    Args:
        sparsity: target; what is reached is measured, see `achieved_sparsity`.
        exclude: globs of weights to keep dense.
        initial: logit of every threshold at the start.
        threshold_decay: weight decay of the logits, in a parameter group of their own.
        calibrate: "none": `threshold_decay` decides. "search": the same, but a driver makes several runs and
            moves it by `next_decay`. "ramp": the decay follows the measured sparsity, which is led along a
            cubic ramp to the target.
        ramp_every: steps between measurements of the ramp; nothing waits for the host.
        ramp_until: share of all steps after which the target is held.
    """

    initial: float = -3200.0
    threshold_decay: float = 2.251757813e-5
    calibrate: Calibrate = Calibrate.none
    ramp_every: int = 2
    ramp_until: float = 0.75

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

    def check(self, *, lr: float, momentum: float | None) -> None:
        """Raise ValueError where SGD makes the thresholds unstable, see `check_stability`."""
        if momentum is not None:
            self.check_stability(lr, momentum)

    def check_stability(self, lr: float, momentum: float) -> None:
        """Raise ValueError where the logits would swing instead of fall, at the peak learning rate `lr`."""
        bound = stable_decay(lr, momentum)
        if self.calibrate is not Calibrate.ramp and self.threshold_decay >= bound:
            raise ValueError(
                f"threshold_decay={self.threshold_decay:g} makes STR's thresholds unstable at learning rate "
                f"{lr:g} and momentum {momentum:g}: keep it below {bound:.3g}, or use calibrate=ramp"
            )

    def _parameterize(self, wanted: Any) -> Any:
        super()._parameterize(wanted)
        return SoftThresholds(self.initial, self.exclude)

    def _prepare(self) -> None:
        self._checked = False
        if self.calibrate is Calibrate.ramp:
            self._end = self.ramp_until * self.total_steps
            first = self.parameterization.logits[0]
            self._decay = torch.zeros((), dtype=first.dtype, device=first.device)

    def weight_decays(self) -> dict[Tensor, float]:
        """The thresholds' own: none under the ramp, which adds its decay itself."""
        decay = 0.0 if self.calibrate is Calibrate.ramp else self.threshold_decay
        return dict.fromkeys(self.parameterization.logits, decay)

    def wanted(self, step: int) -> float:
        """The ramp's sparsity at `step`: sparsity * (1 - (1 - step / end)^3), then the target."""
        return self.sparsity * (1 - (1 - min(step / self._end, 1)) ** 3)

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Let the ramp measure and correct; the first call checks that the decay is stable."""
        lr, momentum = self._rate(optimizer)
        if not self._checked:
            self.check_stability(lr, momentum)
            self._checked = True
        if self.calibrate is Calibrate.ramp and step % self.ramp_every == 0:
            correction = (_GAIN * (self.wanted(step) - self.measured())).clamp(-1, 1)
            self._decay.copy_(correction * (_MARGIN * stable_decay(lr, momentum)))
        return True

    def _rate(self, optimizer: Optimizer) -> tuple[float, float]:
        """Peak learning rate and momentum (Adam's first beta) of the group that holds the thresholds."""
        ours = id(self.parameterization.logits[0])
        group = next((g for g in optimizer.param_groups if any(id(p) == ours for p in g["params"])), None)
        if group is None:
            raise ValueError("the optimizer lacks STR's thresholds: make it after sparsifier.attach(model)")
        momentum = group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0]
        peak = max(group.get("initial_lr", group["lr"]), group.get("max_lr", 0.0))  # OneCycleLR has a max_lr
        return float(peak), float(momentum)

    @torch.no_grad()
    def add_decay(self) -> None:
        """The ramp's decay of the logits, of either sign."""
        if self.calibrate is Calibrate.ramp:
            logits = [logit for logit in self.parameterization.logits if logit.grad is not None]
            self.parameterization.keep_gradients(logits)
            for logit in logits:
                logit.grad.addcmul_(logit, self._decay)

    @torch.no_grad()
    def measured(self, factor: float = 1.0) -> Tensor:
        """The sparsity with every logit times `factor`, a tensor on the device."""
        off = sum((w.abs() <= (factor * s).sigmoid().view(())).count_nonzero() for w, s in self._pairs())
        return off / sum(w.numel() for w, _ in self._pairs())

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        originals = [weight.parameters[0] for weight in self.masks.weights.values()]
        return list(zip(originals, self.parameterization.logits, strict=True))

    def first_decay(self, lr_sum: float, momentum: float) -> float:
        """Where a search begins: the decay that alone brings every logit to -3.6 over the run.

        Args:
            lr_sum: of the learning rates of all steps.
            momentum: of the thresholds' group.
        """
        return max(log(self.initial / _GOAL), 0.0) * (1 - momentum) / lr_sum

    def next_decay(self, lr_sum: float, momentum: float) -> float:
        """The decay that would have reached the target, if the final weights had stayed the same.

        The factor c with measured(c) = sparsity tells how much further the logits had to fall, and
        decay - ln(c) (1 - momentum) / lr_sum brings them there.
        """
        low, high = -12.0, 12.0
        for _ in range(50):
            middle = (low + high) / 2
            if float(self.measured(exp(middle))) > self.sparsity:
                low = middle
            else:
                high = middle
        return max(self.threshold_decay - low * (1 - momentum) / lr_sum, 0.0)

    def kept(self) -> dict[str, Tensor]:
        """True where the thresholded weight is not zero."""
        return {name: value != 0 for name, value in self.masks.values().items()}

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        """|w| - sigmoid(s): how far each weight is above its threshold."""
        pairs = zip(self.masks.weights, self._pairs(), strict=True)
        return {name: w.abs() - s.sigmoid().view(()) for name, (w, s) in pairs}

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, entries that are not zero, total) of each thresholded weight."""
        for name, kept in self.kept().items():
            yield name, int(kept.count_nonzero()), kept.numel()

    def state_dict(self) -> dict[str, Any]:
        """Adds the decay that the ramp has come to."""
        ramp = {"decay": self._decay} if self.calibrate is Calibrate.ramp else {}
        return {**super().state_dict(), **ramp}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the ramp's decay."""
        super().load_state_dict(state)
        if self.calibrate is Calibrate.ramp:
            self._decay.copy_(state["decay"])
