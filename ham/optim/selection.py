"""The parameters of an optimizer that HAM acts on."""

from __future__ import annotations

import warnings

from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import outer_stacklevel
from .groups import ParamFilter, owned_parameters
from .hyperbolic import DTYPES, LOW_PRECISION
from .keys import fill_missing, has_own_values, keys_of


class SelectedParameters:
    """Where HAM acts: by the group's own values, else by `model` and a filter, else by the shape.

    Raises:
        ValueError: `model` owns none of the optimizer's parameters.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module | None, is_selected: ParamFilter) -> None:
        self._optimizer = optimizer
        self._by_id: dict[int, bool] = {}  # parameter id -> does HAM act; for others the shape decides
        groups = [group for group in optimizer.param_groups if not has_own_values(group)]
        if not groups:
            return
        params = [p for group in groups for p in group["params"]]
        if model is not None:
            self._by_id = _by_id(params, model, is_selected)
            return
        if any(p.ndim < 2 for p in params):
            warnings.warn(
                "HAM leaves one-dimensional parameters alone; pass model=... to leave out only norms",
                stacklevel=outer_stacklevel(),
            )

    def of(self, group: dict) -> list[Tensor]:
        """The parameters of `group` that HAM acts on."""
        if has_own_values(group):
            return group["params"]
        return [p for p in group["params"] if self._by_id.get(id(p), p.ndim >= 2)]

    def check_dtypes(self, alpha: float, beta: float) -> None:
        """Raise ValueError where HAM would act on weights of low precision, with these default values."""
        for group in self._optimizer.param_groups:
            values = keys_of(group)
            fill_missing(values, (alpha, beta, False))
            if values["ham_alpha"] == values["ham_beta"] == 0:
                continue
            for p in self.of(group):
                if p.dtype not in DTYPES:
                    raise ValueError(
                        f"{LOW_PRECISION.format(p.dtype)}, or set ham_alpha=ham_beta=0 in that group"
                    )


def _by_id(params: list[Tensor], model: nn.Module, is_selected: ParamFilter) -> dict[int, bool]:
    selected = {
        id(p): bool(is_selected(name, module, p)) for name, module, p in owned_parameters(model, frozen=True)
    }
    if not any(id(p) in selected for p in params):
        raise ValueError(
            "the optimizer holds no parameter of this model: pass the model whose parameters it trains"
        )
    return selected
