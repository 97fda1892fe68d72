"""Numbers for figures, at epoch ends: sign flips, L1 norms, small weights, the inverse metric at zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .masks import MaskSet
from .shards import count_nonzero, local, sum_over_parts
from .weights import ProductWeight, Weight


class SignFlips:
    """Counts sign flips over intervals of epochs, counted from the start of the training.

    Args:
        masks: masks of the weights to compare, before the first step.
        every: number of epochs of an interval, ten in the paper's figure.
    """

    def __init__(self, masks: MaskSet, *, every: int = 10) -> None:
        self.masks, self.every = masks, every
        self.begin()

    def begin(self) -> None:
        """Start an interval now; call it again after `Sparsifier.initialize`."""
        self._before = signs(self.masks.values())

    def on_epoch_end(self, epochs: int) -> dict[str, float]:
        """Return {"sign_flips": fraction} if an interval ends after `epochs` epochs, else an empty dict."""
        if epochs % self.every:
            return {}
        fraction = sign_flips(self._before, self.masks.values())
        self.begin()
        return {"sign_flips": fraction}

    def state_dict(self) -> dict[str, Tensor]:
        """The signs at the start of the interval."""
        return dict(self._before)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises ValueError if a shape differs from the weight's."""
        for name, value in self._before.items():
            if state[name].shape != value.shape:
                raise ValueError(
                    f"the saved signs of {name} have the shape {list(state[name].shape)}, but its weight has "
                    f"{list(value.shape)}: load a state of the same model"
                )
        self._before = {name: state[name].to(value.device) for name, value in self._before.items()}


def sign_flips(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Fraction of the weights active at both ends whose sign differs (Figure 2a); a zero is not active.

    Args:
        before: name -> weights, or their signs, at the start of an interval; 0 where pruned.
        after: name -> weights, or their signs, at the end of the interval.

    Returns:
        A fraction in [0, 1]; 0 where no weight is active at both ends.
    """
    products = [before[name].sign() * after[name].sign() for name in before]
    flipped = sum(count_nonzero([product < 0 for product in products]))
    active = sum(count_nonzero(products))
    return flipped / max(active, 1)


def signs(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The signs of tensors as int8: -1, 0 or 1."""
    return {name: value.sign().to(torch.int8) for name, value in values.items()}


def l1_norm(masks: MaskSet) -> dict[str, float]:
    """|theta|_1 over all prunable weights: "l1_sum" (Figure 10) and "l1_mean", per weight (Figure 9)."""
    values = masks.values().values()
    norms = sum_over_parts((local(v).abs().sum(dtype=torch.float64) for v in values), values)
    total = float(sum(norms))
    return {"l1_sum": total, "l1_mean": total / sum(v.numel() for v in values)}


SMALL = (1e-4, 1e-3, 1e-2)
"""Thresholds of `small_fractions`."""


def small_fractions(masks: MaskSet) -> dict[str, float]:
    """The fractions of all prunable weights with |theta| < t: "below_0.0001", ... for each t of `SMALL`.

    Pruned weights are zeros and count. These are the sparsities after a cut at each threshold.
    """
    values = masks.values().values()
    small = (_counts_below(local(v).abs(), SMALL) for v in values)
    counts = torch.stack([row.cpu() for row in sum_over_parts(small, values)]).sum(dim=0).tolist()
    total = sum(v.numel() for v in values)
    return {f"below_{t:g}": count / total for t, count in zip(SMALL, counts, strict=True)}


def _counts_below(sizes: Tensor, thresholds: Iterable[float]) -> Tensor:
    return torch.stack([(sizes < t).count_nonzero() for t in thresholds])


def inverse_metric_at_zero(weight: Weight, *, mask: Tensor | None = None) -> float:
    """Mean over the active entries of the inverse metric at theta = 0 (Appendix F, Figure 5).

    |m^2 - w^2| for a product; 1 for a plain weight, with HAM or without: 1 + alpha |0|.

    Args:
        weight: a plain weight or a product.
        mask: bool, True where the weight is on; None, or nowhere True: all entries count. The metric of a
            pruned entry is always 1.
    """
    if not isinstance(weight, ProductWeight):
        return 1.0
    m, w = (p.detach().double() for p in weight.parameters)
    metric = (m.square() - w.square()).abs()
    active = metric if mask is None or not bool(mask.any()) else metric[mask]
    return float(active.mean())
