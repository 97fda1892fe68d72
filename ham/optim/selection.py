"""The parameters of an optimizer that HAM acts on."""

from __future__ import annotations

import warnings
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import outer_stacklevel
from .groups import ParamFilter, owned_parameters
from .hyperbolic import DTYPES, LOW_PRECISION
from .keys import fill_missing, has_own_values, is_marked_explicit, keys_of


class SelectedParameters:
    """HAM's parameters: selected by the group's own values, else by `model` and a filter, else by shape.

    Layers added to `model` later are included, as long as the model exists: only a weak reference to it is
    kept. Parameters that are not in the model are not changed, with a warning.

    Raises:
        ValueError: `model` owns none of the optimizer's parameters.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module | None, is_selected: ParamFilter) -> None:
        self._optimizer, self._is_selected = optimizer, is_selected
        self._model = ref(model) if model is not None else None  # it may be deleted before the optimizer
        self._known: dict[int, tuple[ref, bool]] = {}  # id -> the parameter, and True if HAM acts on it
        self._warned = False
        self._warn_of_explicit_groups()
        params = [p for group in optimizer.param_groups if not has_own_values(group) for p in group["params"]]
        if not params:
            return
        if model is not None:
            self._read_model()
            if not any(self._is_known(p) for p in params):
                raise ValueError(
                    "the optimizer holds no parameter of this model: pass the model that it trains"
                )
            return
        if any(p.ndim < 2 for p in params):
            _warn("HAM does not change one-dimensional parameters; pass model= to exclude only norm layers")
        if len({p.numel() == 1 for p in params if p.ndim >= 2}) == 2:
            _warn("HAM also acts on single numbers, such as STR's thresholds; pass model= to exclude them")

    def of(self, group: dict) -> list[Tensor]:
        """The parameters of `group` that HAM acts on."""
        if has_own_values(group):
            return group["params"]
        if self._model is None:
            return [p for p in group["params"] if p.ndim >= 2]
        selected, is_compiling = [], torch.compiler.is_compiling()
        for p in group["params"]:  # in each step
            entry = self._known.get(id(p))
            if entry is None or not (is_compiling or entry[0]() is p):
                entry = self._look_up(p)
            if entry[1]:
                selected.append(p)
        return selected

    def _look_up(self, p: Tensor) -> tuple[ref, bool]:
        """Whether HAM acts on a parameter that is new, or has the id of a deleted one."""
        self._read_model()
        if not self._is_known(p):
            self._known[id(p)] = ref(p), False
            self._warn_of_unknown_parameter(p)
        return self._known[id(p)]

    def _is_known(self, p: Tensor) -> bool:
        entry = self._known.get(id(p))
        return entry is not None and entry[0]() is p

    def _read_model(self) -> None:
        model = self._model()
        for name, module, p in owned_parameters(model, frozen=True) if model is not None else ():
            if not self._is_known(p):
                self._known[id(p)] = ref(p), bool(self._is_selected(name, module, p))

    def _warn_of_unknown_parameter(self, p: Tensor) -> None:
        if not self._warned:
            self._warned = True
            _warn(
                f"HAM does not change parameters that are not in model=, for example one of shape "
                f"{tuple(p.shape)}: pass a module that has all, or set ham_alpha and ham_beta in its group"
            )

    def _warn_of_explicit_groups(self) -> None:
        """Warn if groups with `ham_explicit` include parameters that `model` would exclude."""
        groups = [group for group in self._optimizer.param_groups if is_marked_explicit(group)]
        if self._model is None or not groups:
            return
        self._read_model()
        for group in groups:
            acts = not group.get("ham_alpha") == group.get("ham_beta") == 0
            excluded = [p for p in group["params"] if self._is_known(p) and not self._known[id(p)][1]]
            if acts and excluded:
                return _warn(
                    "these parameter groups (ham_explicit=True) override model= and include parameters that "
                    f"model= would exclude, e.g. shape {tuple(excluded[0].shape)}; omit model=, or set "
                    "ham_explicit=False"
                )

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


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=outer_stacklevel())
