"""Soft thresholds as a parametrization: sign(w) relu(|w| - sigmoid(s)) (Kusupati et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .parameterization import Plain
from .prunable import parametrize_


class _Shrink(torch.autograd.Function):
    """sign(w) relu(|w| - sigmoid(s)), with gradients in 2 passes over memory instead of autograd's 12.

    `forward` takes the context itself: with a setup_context torch binds the arguments to the signature at
    each call, which takes longer than a small layer's operations. Therefore torch.func does not support it.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, logit: Tensor) -> Tensor:
        bound = logit.sigmoid().view(())
        theta = w - torch.clamp(w, -bound, bound)  # its zeros are +0.0
        ctx.save_for_backward(theta, logit)
        return theta

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        theta, logit = ctx.saved_tensors
        grad_w = torch.where(theta != 0, upstream, 0.0)
        grad_threshold = (theta.sign() * grad_w).sum().neg()
        threshold = logit.sigmoid()  # again, so that a second derivative sees that it depends on the logit
        return grad_w, torch.ops.aten.sigmoid_backward(grad_threshold.expand_as(logit), threshold)


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
        """The weight unchanged: thresholds start near zero."""
        return theta


@dataclass
class SoftThresholds(Plain):
    """A soft threshold on every prunable weight that is not excluded."""

    initial: float
    exclude: list[str] = field(default_factory=list)

    def attach(
        self,
        model: nn.Module,
        *,
        total_epochs: int,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
    ) -> None:
        """Parametrize the weights. Raises ValueError where some are shared."""
        excluded = [*self.exclude, *exclude]
        parametrizations = parametrize_(model, lambda: SoftThreshold(self.initial), excluded, include)
        self.logits: list[nn.Parameter] = [p.threshold for p in parametrizations]
