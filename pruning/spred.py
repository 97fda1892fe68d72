"""spred: an L1 penalty by weight decay on both factors of a product, solved by SGD (Ziyin & Wang, 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from .base import register
from .choice import Choice
from .factored import FactoredPruning
from .groups import set_learning_rate_
from .parameterization import Plain, Product

FactorsName = Literal["independent", "balanced"]


class Factors(Choice):
    """Initial factors: two independent draws of PyTorch's default, or balanced factors of the weight."""

    independent = "independent"
    balanced = "balanced"


if TYPE_CHECKING:  # a checker accepts strings; at run time a field's type must be the enum
    FactorsLike: TypeAlias = Factors | FactorsName
else:
    FactorsLike = Factors


@register("spred")
@dataclass
class Spred(FactoredPruning):
    """theta = m * w with weight decay on m and w, a penalty of decay |theta|_1; prune, then fine-tune.

    Args:
        sparsity: fraction to prune, over all layers together.
        exclude: globs of weights that are not pruned; they are factored and decayed like the others.
        granularity: "element", N:M or blocks; see `TargetSparsity`.
        decay: weight decay kappa of both factors (coupled, as in SGD). The authors tune it per task.
        factors: initial factors: "independent" or "balanced".
        finetune: fraction of the epochs, at the end, for fine-tuning after pruning, without decay.
        finetune_lr: learning rate of fine-tuning, for every parameter group; the authors use 1e-4.
    """

    decay: float = 1e-5
    factors: FactorsLike = Factors.independent
    finetune: float = 0.1
    finetune_lr: float = 1e-4

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        self.factors = Factors(self.factors)
        if not 0 <= self.finetune < 1:
            raise ValueError(f"finetune must be a fraction of the epochs in [0, 1), got {self.finetune:g}")
        if not self.finetune_lr > 0:
            raise ValueError(f"finetune_lr must be positive, got {self.finetune_lr:g}")
        if not self.decay >= 0:
            raise ValueError(f"decay must not be negative, got {self.decay:g}")

    def _parameterize(self, requested: Plain) -> Plain:
        super()._parameterize(requested)
        self._factors = Product(frobenius=0.0, decay=self.decay)
        return self._factors

    def _on_attach(self) -> None:
        epochs = max(round(self.finetune * self.total_epochs), int(self.finetune > 0))
        self._prune_from = self.total_epochs - epochs
        if self.factors is Factors.independent:
            generator = torch.Generator().manual_seed(self.seed)
            for name, weight in self.masks.weights.items():
                if weight.value.ndim < 2:
                    raise ValueError(
                        f"{name} has one dimension, but independent factors need two or more: exclude it, or "
                        'set factors="balanced"'
                    )
            for weight in self._factors.weights:
                initial = weight.value
                for factor in weight.parameters:
                    draw = torch.empty(factor.shape, dtype=factor.dtype, device="cpu")
                    nn.init.kaiming_uniform_(draw, a=5**0.5, generator=generator)
                    with torch.no_grad():
                        factor.copy_(draw)
                if weight.padding_idx is not None:  # its row gets no gradient: training would not restore it
                    at = torch.zeros_like(initial, dtype=torch.bool)
                    at[weight.padding_idx] = True
                    weight.assign_(initial, at)

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Prune at the start of fine-tuning; the decay then ends."""
        optimizer = self._begin_epoch(optimizer)
        if epoch >= self._prune_from and not self.masks.active:
            self._prune_to_target(optimizer)
        super().on_epoch_start(epoch, optimizer)

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Mask the gradients; during fine-tuning, set its learning rate."""
        if self.masks.active:
            set_learning_rate_(optimizer, self.finetune_lr)
        return super().after_backward(step, optimizer)

    @property
    def has_penalty(self) -> bool:
        """True until the weights are pruned."""
        return not self.masks.active and super().has_penalty

    def add_decay(self) -> None:
        """Add the penalty's gradient until the weights are pruned."""
        if not self.masks.active:
            super().add_decay()

    def stats(self) -> dict[str, Any]:
        """Adds the learning rate during fine-tuning."""
        return {**super().stats(), **({"lr": self.finetune_lr} if self.masks.active else {})}
