"""PILoT: factors m * w whose regularization follows the training accuracy (Jacobs & Burkholz, 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from torch.optim import Optimizer

from .base import register
from .factored import FactoredPruning
from .parameterization import Plain, Product


@register("pilot")
@dataclass
class PILoT(FactoredPruning):
    """theta = m * w under a penalty strength * (|m|^2 + |w|^2) that rises while the training accuracy does.

    After each epoch k: if the training accuracy has risen, the mean |theta| is at least `l1_floor` and k is
    in the first half, the strength is multiplied by `delta`, else divided by it (Algorithm 1). At the end the
    smallest magnitudes are pruned, to exactly the target.

    Args:
        sparsity: fraction to prune at the end, over all layers together.
        exclude: globs of weights that are not pruned; they are factored and regularized like the others.
        granularity: "element", N:M or blocks; see `TargetSparsity`.
        strength: strength of the penalty at the start. Values for ImageNet are not published.
        delta: factor of the strength per epoch, at least 1.
        l1_floor: smallest mean |theta| over all prunable weights at which the strength still rises.
        scaling: m^2 - w^2 at the start; m * w is the initial weight.
        frobenius: decay of the product, as in `Product`.
        prune_at: fraction of the epochs after which to prune; 1: after the last step.
    """

    strength: float = 2e-5
    delta: float = 1.01
    l1_floor: float = 0.0
    scaling: float = 1.0
    frobenius: float = 5e-5
    prune_at: float = 1.0

    _own_state: ClassVar[tuple[str, ...]] = ("schedule",)
    _state_options: ClassVar[tuple[str, ...]] = ("strength",)

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        for name in ("strength", "l1_floor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name):g}")
        if self.delta < 1:
            raise ValueError(f"delta must be at least 1, got {self.delta:g}")
        if not 0 < self.prune_at <= 1:
            raise ValueError(f"prune_at must be a fraction of the epochs in (0, 1], got {self.prune_at:g}")
        self._product()  # its own checks

    def _product(self) -> Product:
        return Product(scaling=self.scaling, frobenius=self.frobenius, decay=2 * self.strength)

    def _parameterize(self, requested: Plain) -> Plain:
        super()._parameterize(requested)
        self._factors = self._product()
        return self._factors

    def _on_attach(self) -> None:
        self._accuracy, self._epoch = 0.0, 0

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Prune at `prune_at`; the penalty then ends.

        Raises:
            RuntimeError: `on_epoch_end` was not called for an epoch before this one.
        """
        if self._epoch < epoch:
            raise RuntimeError(
                "PILoT requires the training accuracy: call on_epoch_end(train_accuracy=...) after each "
                "epoch, with a fraction in [0, 1], and count epochs from 0"
            )
        optimizer = self._begin_epoch(optimizer)
        if epoch >= Fraction(repr(float(self.prune_at))) * self.total_epochs and not self.masks.active:
            self._prune_to_target(optimizer)
            self._factors.decay = 0.0
        super().on_epoch_start(epoch, optimizer)

    def on_epoch_end(self, *, train_accuracy: float) -> None:
        """Set the penalty's strength for the next epoch.

        Raises:
            ValueError: the accuracy is outside [0, 1].
            RuntimeError: it was called already for this epoch.
        """
        if not 0 <= train_accuracy <= 1:
            raise ValueError(f"train_accuracy must be a fraction in [0, 1], got {train_accuracy:g}")
        if 0 <= self._announced_epoch < self._epoch:
            raise RuntimeError(
                f"on_epoch_end was called already for epoch {self._announced_epoch}: call it once after "
                "each, and on_epoch_start before it"
            )
        self._epoch += 1
        rising = train_accuracy > self._accuracy and self._epoch <= self.total_epochs / 2
        if rising and self._mean_magnitude() >= self.l1_floor:
            self._factors.decay *= self.delta
        else:
            self._factors.decay /= self.delta
        self._accuracy = train_accuracy

    def _mean_magnitude(self) -> float:
        values = self.masks.values().values()
        return float(sum(v.abs().sum() for v in values)) / sum(v.numel() for v in values)

    def stats(self) -> dict[str, Any]:
        """Adds the penalty's strength."""
        return {**super().stats(), "strength": self._factors.decay / 2}

    def state_dict(self) -> dict[str, Any]:
        """Adds the state of the schedule."""
        schedule = {"decay": self._factors.decay, "accuracy": self._accuracy, "epoch": self._epoch}
        return {**super().state_dict(), "schedule": schedule}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore masks and schedule."""
        super().load_state_dict(state)
        schedule = state["schedule"]
        self._factors.decay = schedule["decay"]
        self._accuracy, self._epoch = schedule["accuracy"], schedule["epoch"]
