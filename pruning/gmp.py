"""GMP, gradual magnitude pruning: the sparsity rises while the network trains (Zhu & Gupta, 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from .acdc import Scope, ScopeLike
from .base import register
from .options import check_positive_integer
from .schedule import RAMPS, Ramp, RampName
from .scores import magnitude
from .target import TargetSparsity

if TYPE_CHECKING:  # a checker accepts strings and callables; at run time a field's type must be the enum
    RampLike: TypeAlias = Ramp | RampName | Callable[[float], float]
else:
    RampLike = Ramp


@register("gmp")
@dataclass
class GMP(TargetSparsity):
    """Train dense, prune the smallest magnitudes step by step to the target, then fine-tune the rest.

    The masks are updated at step t_0 = begin * steps, at every `interval`-th step after it and at step
    end * steps, from where on the sparsity is the target. A pruned weight stays pruned. The update happens
    before the optimizer step of the same iteration.

    Args:
        sparsity: fraction of the prunable weights to prune, s_f.
        exclude: globs of weights to keep dense.
        granularity: "element", blocks, or N:M, where every group keeps at least N of M on the way.
        scope: "layerwise" prunes each layer to s_t as in the paper, "global" ranks all layers together.
        begin: fraction of all steps that is trained dense.
        end: fraction of all steps after which the masks are fixed. According to the paper the learning rate
            should then still be large enough to recover; it gives no fractions.
        interval: steps between updates; the paper reports 100 to 1000 as equivalent.
        schedule: "cubic" as in the paper, s_t = s_f - s_f (1 - (t - t_0) / (n dt))^3, "cosine" or "linear";
            or a callable, fraction of all steps -> sparsity, with the value `sparsity` at `end`.
    """

    scope: ScopeLike = Scope.layerwise
    begin: float = 0.0
    end: float = 0.75
    interval: int = 100
    schedule: RampLike = Ramp.cubic

    _state_options: ClassVar[tuple[str, ...]] = ("scope",)

    def __post_init__(self) -> None:
        """Convert strings to enums. Raises ValueError on values out of range."""
        super().__post_init__()
        self.scope = Scope(self.scope)
        if not callable(self.schedule):
            self.schedule = Ramp(self.schedule)
        if not 0 <= self.begin <= self.end <= 1:
            raise ValueError(
                "begin and end must be fractions of the steps, 0 <= begin <= end <= 1, got "
                f"{self.begin:g} and {self.end:g}"
            )
        check_positive_integer("interval", self.interval, " step")
        if callable(self.schedule) and abs(self.schedule(self.end) - self.sparsity) > 1e-9:
            raise ValueError(
                f"the schedule ends at {self.schedule(self.end):g}, not at sparsity={self.sparsity:g}: "
                f"set sparsity to its value at end={self.end:g}"
            )

    def _on_attach(self) -> None:
        if self.layer_sparsities and not self.sparsity and callable(self.schedule):
            raise ValueError(
                "with sparsity=0 a callable schedule gives no ramp for sparsities: use schedule=cubic, "
                "cosine or linear"
            )
        last = self.total_steps - 1
        self._begin, self._end = (min(round(at * self.total_steps), last) for at in (self.begin, self.end))

    def is_update_step(self, step: int) -> bool:
        """Return True if the masks are updated at this step, counted from 0."""
        inside = self._begin <= step <= self._end
        return inside and ((step - self._begin) % self.interval == 0 or step == self._end)

    def target_sparsity_at(self, step: int) -> float:
        """The schedule's sparsity at `step`; `sparsity`, exactly, from the last update on."""
        if step >= self._end:
            return self.sparsity
        if callable(self.schedule):
            return self.schedule(step / self.total_steps)
        return RAMPS[Ramp(self.schedule)](self.sparsity, self._begin, self._end)(step)

    def progress_at(self, step: int) -> float:
        """How far the schedule is on the way from 0 to its end, in [0, 1]; with sparsity=0 too."""
        if self.sparsity:
            return min(self.target_sparsity_at(step) / self.sparsity, 1.0)
        if step >= self._end or callable(self.schedule):
            return 1.0
        half = RAMPS[Ramp(self.schedule)](0.5, self._begin, self._end)  # a sparsity must be below 1
        return half(step) / 0.5

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Prune at an update step, then mask the gradients."""
        self._begin_step(step, optimizer)
        self._check_step(step)
        if self.is_update_step(step):
            self.set_masks(self._next_masks(step), optimizer)
        return super().after_backward(step, optimizer)

    def _next_masks(self, step: int) -> dict[str, Tensor]:
        scores = magnitude(self.masks.values())
        masks = self.masks.masks  # once: each access follows all weights
        if masks:
            scores = {n: score.masked_fill_(~masks[n], -1.0) for n, score in scores.items()}
        on = {name: kept for name, kept, _ in self.masks.counts()}
        sparsity, progress = self.target_sparsity_at(step), self.progress_at(step)
        if self.scope is Scope.layerwise:
            kept = self.kept_per_layer(sparsity, progress)
            return self.select(scores, {name: min(kept[name], on[name]) for name in on})
        chosen = self.select(scores, min(self.kept_target(sparsity, progress), sum(on.values())))
        if masks and self.layer_sparsities:  # counts of single layers are rounded: none may rise
            return {name: mask & masks[name] for name, mask in chosen.items()}
        return chosen
