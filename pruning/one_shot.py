"""One-shot magnitude pruning: train dense, prune once, fine-tune (Han et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.optim import Optimizer

from .acdc import Scope, ScopeLike
from .base import register
from .groups import set_learning_rate_
from .scores import magnitude
from .target import TargetSparsity


@register("one_shot")
@dataclass
class OneShotMagnitude(TargetSparsity):
    """Train dense, prune the smallest magnitudes once, then fine-tune the others with fixed masks.

    Args:
        sparsity: fraction of the prunable weights to prune.
        exclude: globs of weights to keep dense.
        granularity: "element", N:M or blocks; see `TargetSparsity`.
        scope: "global" keeps the largest magnitudes of all layers together, "layerwise" the same fraction
            of each layer.
        prune_at: fraction of all steps that is trained dense. Pruning happens in the first iteration after
            these steps, before its optimizer step.
        finetune_lr: learning rate after pruning, for every parameter group; None: the schedule continues.
    """

    scope: ScopeLike = Scope["global"]
    prune_at: float = 0.5
    finetune_lr: float | None = None

    _state_options: ClassVar[tuple[str, ...]] = ("scope",)

    def __post_init__(self) -> None:
        """Convert strings to enums. Raises ValueError on values out of range."""
        super().__post_init__()
        self.scope = Scope(self.scope)
        if not 0 <= self.prune_at < 1:
            raise ValueError(f"prune_at must be a fraction of the steps in [0, 1), got {self.prune_at:g}")
        if self.finetune_lr is not None and not self.finetune_lr > 0:
            raise ValueError(f"finetune_lr must be positive, got {self.finetune_lr:g}")

    def _on_attach(self) -> None:
        self._prune_step = min(round(self.prune_at * self.total_steps), self.total_steps - 1)

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Prune once; mask the gradients; during fine-tuning, set its learning rate."""
        self._begin_step(step, optimizer)
        self._check_step(step)
        if step >= self._prune_step and not self.masks.active:
            counts = self.kept_target() if self.scope == "global" else self.kept_per_layer()
            self.set_masks(self.select(magnitude(self.masks.values()), counts), optimizer)
        if self.masks.active and self.finetune_lr is not None:
            set_learning_rate_(optimizer, self.finetune_lr)
        return super().after_backward(step, optimizer)

    def stats(self) -> dict[str, Any]:
        """Adds the learning rate during fine-tuning, where it is set."""
        is_set = self.masks.active and self.finetune_lr is not None
        return {**super().stats(), **({"lr": self.finetune_lr} if is_set else {})}
