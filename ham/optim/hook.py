"""HAM as a post-step hook on any first-order torch optimizer (Algorithm 1)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import check_gradient_preserved, check_hyperparameters, check_optimizer, unwrapped
from .groups import ParamFilter, as_filter, not_norm, owned_parameters
from .hyperbolic import DTYPES, LOW_PRECISION, clip_weight_norm_, hyperbolic_step_, local

_KEYS = ("ham_alpha", "ham_beta", "ham_explicit")
_OLD_KEY = "ham_chosen"  # of "ham_explicit" in checkpoints of version 0.4 and earlier


class HAM:
    """Makes `optimizer` hyperbolic-aware: HYP* follows each `optimizer.step()` (section 3.1, Algorithm 1).

        optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9)
        HAM(optimizer, model=model, alpha=200, beta=1e-3)

    The optimizer stays the same object of the same type, so schedulers, GradScaler, DDP, closures and
    `torch.compile` keep working, and HAM keeps no state per weight. Its two hyperparameters are stored in
    the parameter groups as `ham_alpha` and `ham_beta`: `state_dict` contains them, they may differ per group
    and may be scheduled; a group with both 0 is skipped. `deepcopy` and pickling of an optimizer drop its
    hooks: attach HAM to the copy again.

    Where HAM acts, in this order: a group that carries `ham_alpha` and `ham_beta` (from `param_groups`) uses
    these for all its parameters; with `model`, parameters are selected by module type; with neither,
    one-dimensional parameters are left out. A third key, `ham_explicit`, marks the groups of the first kind.

    Args:
        optimizer: any first-order `torch.optim.Optimizer`, or a wrapper that holds one in `.optimizer`.
        model: the module that owns the parameters; its norm layers are left out, by type.
        alpha: hyperbolic awareness; 200 in the paper's vision runs. Negative is nHAM (Tables 17-19).
        beta: multiplicative decay; 1e-3 on ImageNet, 16e-3 on CIFAR-100.
        clamp: bound on the exponent (App. G.2).
        mask_zero_grad: do not change weights whose gradient is exactly zero (the paper's graph runs).
        select: which parameters of `model` HAM acts on; see `param_groups`.
        max_weight_norm: rescale any parameter whose norm exceeds this after the step (the authors' wrapper:
            1000); None: no limit.
        track_clamped: count the exponents at the bound on the device; read the share with `clamped_share()`.
        implementation: see `hyperbolic_step_`.

    Raises:
        ValueError: an optimizer or a hyperparameter that HAM cannot work with, or a second HAM on the same
            optimizer.
        TypeError: `optimizer` is not a torch optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None = None,
        alpha: float = 200.0,
        beta: float = 1e-3,
        clamp: float = 5.0,
        mask_zero_grad: bool = False,
        select: str | ParamFilter = not_norm,
        max_weight_norm: float | None = None,
        track_clamped: bool = False,
        implementation: str | None = None,
    ) -> None:
        optimizer = unwrapped(optimizer)
        check_hyperparameters(alpha, beta, clamp, max_weight_norm)
        check_optimizer(optimizer)
        self.optimizer = optimizer
        self.clamp, self.mask_zero_grad, self.implementation = clamp, mask_zero_grad, implementation
        self.max_weight_norm, self.track_clamped = max_weight_norm, track_clamped
        self._counts: dict[torch.device, tuple[Tensor, Tensor]] = {}  # (at the bound, all) exponents
        self._acts_on = self._select_parameters(model, select)
        self._check_dtypes(alpha, beta)
        for group in optimizer.param_groups:
            _rename_old_key(group)
        self._keys_before = [_keys_of(group) for group in optimizer.param_groups]
        optimizer.defaults.update(ham_alpha=alpha, ham_beta=beta, ham_explicit=False)
        for group in optimizer.param_groups:
            _fill_missing(group, (alpha, beta, _has_own_values(group)))
        self._keys_before_load: list[dict[str, Any]] = []
        self._handles = [
            optimizer.register_step_post_hook(self._step),
            optimizer.register_load_state_dict_pre_hook(self._before_load),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]
        optimizer._ham = self  # type: ignore[attr-defined]

    def remove(self) -> None:
        """Detach HAM and restore the optimizer and its groups."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        nothing: dict[str, Any] = {}  # before HAM was attached, in a group added since
        for group, before in zip_longest(self.optimizer.param_groups, self._keys_before, fillvalue=nothing):
            _drop_keys(group)
            group.update(before)
        _drop_keys(self.optimizer.defaults)
        if getattr(self.optimizer, "_ham", None) is self:
            del self.optimizer._ham

    def clamped_share(self) -> Tensor:
        """Share of the exponents at the bound since the last call: a 0-dim tensor, no host sync.

        A share that grows towards 1 is a diverging alpha: weights are multiplied by e^5 or e^-5 in a single
        step.

        Raises:
            RuntimeError: HAM was created without `track_clamped=True`.
        """
        if not self.track_clamped:
            raise RuntimeError("no exponents were counted: create HAM with track_clamped=True")
        counts = list(self._counts.values())
        if not counts:
            return torch.zeros(())
        device = counts[0][0].device
        clamped, seen = (
            torch.stack([c.to(device) for c in column]).sum() for column in zip(*counts, strict=True)
        )
        for count in (c for pair in counts for c in pair):
            count.zero_()
        return clamped / seen.clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """The counts behind `clamped_share()`; HAM has no other state of its own."""
        pairs = list(self._counts.values())
        clamped, seen = (
            (sum(int(count) for count in column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
        )
        return {"clamped": clamped, "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, on the device of the weights."""
        device = self.optimizer.param_groups[0]["params"][0].device
        for count, value in zip(self._counters(device), (state["clamped"], state["seen"]), strict=True):
            count.fill_(value)

    def _select_parameters(self, model: nn.Module | None, select: str | ParamFilter) -> dict[int, bool]:
        """Parameter id -> does HAM act, for the parameters of `model`; for others the shape decides."""
        groups = [group for group in self.optimizer.param_groups if not _has_own_values(group)]
        params = [p for group in groups for p in group["params"]]
        if not groups:
            return {}
        if model is None:
            if any(p.ndim < 2 for p in params):
                warnings.warn(
                    "HAM leaves one-dimensional parameters alone; pass model=... to leave out only norms",
                    stacklevel=3,
                )
            return {}
        is_selected = as_filter(select, model)
        selected = {
            id(p): bool(is_selected(name, module, p))
            for name, module, p in owned_parameters(model, frozen=True)
        }
        if not any(id(p) in selected for p in params):
            raise ValueError(
                "the optimizer holds no parameter of this model: pass the model whose parameters it trains"
            )
        return selected

    def _selected(self, group: dict) -> list[Tensor]:
        """The parameters of `group` that HAM acts on."""
        if _has_own_values(group):
            return group["params"]
        return [p for p in group["params"] if self._acts_on.get(id(p), p.ndim >= 2)]

    def _check_dtypes(self, alpha: float, beta: float) -> None:
        for group in self.optimizer.param_groups:
            values = _keys_of(group)
            _fill_missing(values, (alpha, beta, False))
            if values["ham_alpha"] == values["ham_beta"] == 0:
                continue
            for p in self._selected(group):
                if p.dtype not in DTYPES:
                    raise ValueError(
                        f"{LOW_PRECISION.format(p.dtype)}, or set ham_alpha=ham_beta=0 in that group"
                    )

    @torch.no_grad()
    def _step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # set by GradScaler around a fused step
        for group in optimizer.param_groups:
            check_gradient_preserved(group)
            _rename_old_key(group)
            _fill_missing(
                group, [optimizer.defaults[key] for key in _KEYS]
            )  # a group added after HAM was attached
            if group["ham_alpha"] != 0 or group["ham_beta"] != 0:
                self._hyperbolic_step(
                    group, [p for p in self._selected(group) if p.grad is not None], found_inf
                )
            if self.max_weight_norm is not None:
                params = [p for p in group["params"] if p.grad is not None]
                clip_weight_norm_(params, self.max_weight_norm, found_inf=found_inf)

    def _hyperbolic_step(self, group: dict, params: list[Tensor], found_inf: Tensor | None) -> None:
        alpha = -group["ham_alpha"] if group.get("maximize") else group["ham_alpha"]
        by_device: dict[torch.device, list[Tensor]] = {}
        for p in params:
            by_device.setdefault(p.device, []).append(p)
        for device, ps in by_device.items():
            clamped, seen = self._counters(device) if self.track_clamped else (None, None)
            hyperbolic_step_(
                ps,
                [p.grad for p in ps],
                lr=group["lr"],
                alpha=alpha,
                beta=group["ham_beta"],
                clamp=self.clamp,
                mask_zero_grad=self.mask_zero_grad,
                found_inf=found_inf,
                clamped=clamped,
                implementation=self.implementation,
            )
            if seen is not None:
                seen.add_(sum(local(p).numel() for p in ps))

    def _counters(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._counts:
            zero = torch.zeros((), dtype=torch.int64, device=device)
            self._counts[device] = (zero, zero.clone())
        return self._counts[device]

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self._keys_before_load = [_keys_of(group) for group in optimizer.param_groups]

    def _after_load(self, optimizer: Optimizer) -> None:
        """Restore the keys that a state_dict saved before HAM was attached lacks."""
        for group, before in zip(optimizer.param_groups, self._keys_before_load, strict=True):
            _rename_old_key(group)
            _fill_missing(group, [before[key] for key in _KEYS])
            check_gradient_preserved(group)


def _has_own_values(group: dict) -> bool:
    """Does the group itself set HAM's values, for all its parameters?"""
    has_both = "ham_alpha" in group and "ham_beta" in group
    return group.get(_OLD_KEY, group.get("ham_explicit", has_both))


def _rename_old_key(group: dict[str, Any]) -> None:
    if _OLD_KEY in group:
        group["ham_explicit"] = group.pop(_OLD_KEY)


def _keys_of(group: dict) -> dict:
    return {key: group[key] for key in _KEYS if key in group}


def _drop_keys(place: dict) -> None:
    for key in _KEYS:
        place.pop(key, None)


def _fill_missing(group: dict, values: Sequence[float | bool]) -> None:
    for key, value in zip(_KEYS, values, strict=True):
        if group.get(key) is None:
            group[key] = value
