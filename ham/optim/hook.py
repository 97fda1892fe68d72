"""HAM as a post-step hook on any first-order torch optimizer (Algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import (
    LearningRate,
    as_number,
    check_flags,
    check_group,
    check_hyperparameters,
    check_implementation,
    check_optimizer,
    initializes_state,
    is_zero,
    layers_of,
    may_act,
    may_differ_from_0,
    rate_of,
)
from .clamping import ClampCounts, FirstStep
from .groups import Selection, as_filter, not_norm
from .hyperbolic import clip_weight_norm_, hyperbolic_step_, local
from .keys import SavedKeys, complete, has_own_values
from .loading import StateLoading
from .selection import SelectedParameters
from .watch import GradientWatch

_ALPHA, _BETA = 200.0, 1e-3


class HAM:
    """Makes `optimizer` hyperbolic-aware: HYP* follows each `optimizer.step()` (section 3.1, Algorithm 1).

        optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9)
        HAM(optimizer, model=model, alpha=200, beta=1e-3)

    The optimizer stays the same object of the same type, so schedulers, GradScaler, DDP, closures and
    `torch.compile` keep working, and HAM keeps no state per weight. Its two hyperparameters are stored in
    the parameter groups as `ham_alpha` and `ham_beta`: `state_dict` contains them, they may differ per group
    and may be scheduled; a group with both 0 is skipped. `deepcopy` and pickling of an optimizer drop its
    hooks: attach HAM to the copy again.

    HAM selects parameters in this order: a group with `ham_alpha` and `ham_beta` (from `param_groups`) uses
    these for all its parameters; with `model`, its parameters are selected by module type, and others are
    excluded, with a warning; with neither, one-dimensional parameters are excluded. A third key,
    `ham_explicit`, marks the groups of the first kind.

    HAM reads `p.grad` after the base step. If that step has changed `p.grad`, HAM raises an error before it
    changes a weight (`GradientWatch`). HAM changes nothing where the rate is 0, nor in the step by which
    torch.distributed.checkpoint creates an optimizer's state. It warns if more than 1 % of the first step's
    exponents are clamped (`FirstStep`).

    Only two kinds of step wait for the device: the first one on a CUDA device, which tests the Triton kernel,
    and, with `lr`, steps of an optimizer that has no state yet and group["lr"] = 0 in all groups.

    Args:
        optimizer: a first-order `torch.optim.Optimizer`, or a wrapper that holds one in `.optimizer` or, as
            SAM does, in `.base_optimizer`.
        model: the module that owns the parameters; norm layers are excluded by module type.
        alpha: hyperbolic awareness; None is 200, as in the paper's vision runs. Negative is nHAM (Tables
            17-19).
        beta: multiplicative decay; None is 1e-3, as on ImageNet; 16e-3 on CIFAR-100.
        clamp: bound on the exponent (App. G.2).
        mask_zero_grad: True to leave weights whose gradient is exactly zero unchanged (the paper's graph
            runs).
        select: the parameters of `model` that HAM acts on; see `param_groups`.
        lr: the rate of the base step that was just taken, a function of the parameter group that returns a
            float or a 0-dim tensor, for optimizers whose rate is not group["lr"]:
            `lambda group: group["lr"] * group["d"]` for Prodigy and DAdapt. None: group["lr"].
        max_weight_norm: largest norm of a parameter; a larger one is rescaled to it after the step (the
            authors' wrapper: 1000); None: no limit.
        track_clamped: True to count the clamped exponents on the device; `clamped_share()` returns their
            fraction.
        implementation: implementation of the step, see `hyperbolic_step_`.

    Raises:
        ValueError: an optimizer or a hyperparameter that HAM cannot work with, or a second HAM on the same
            optimizer. The optimizer is then unchanged.
        TypeError: `optimizer` is not a torch optimizer, `select` not a selection, `lr` not a function or a
            hyperparameter not a number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        clamp: float = 5.0,
        mask_zero_grad: bool = False,
        select: Selection = not_norm,
        lr: LearningRate | None = None,
        max_weight_norm: float | None = None,
        track_clamped: bool = False,
        implementation: str | None = None,
    ) -> None:
        layers = layers_of(optimizer)
        optimizer = layers[-1]
        given = {"ham_alpha": alpha, "ham_beta": beta}
        alpha, beta = (
            as_number(_ALPHA if alpha is None else alpha),
            as_number(_BETA if beta is None else beta),
        )
        clamp, max_weight_norm = as_number(clamp), as_number(max_weight_norm)
        check_hyperparameters(alpha, beta, clamp, max_weight_norm, implementation)
        check_flags(mask_zero_grad=mask_zero_grad, track_clamped=track_clamped)
        check_optimizer(optimizer, lr)
        check_implementation(optimizer, implementation)
        self.optimizer = optimizer
        self.clamp, self.mask_zero_grad, self.implementation = clamp, mask_zero_grad, implementation
        self.max_weight_norm, self.track_clamped, self.lr = max_weight_norm, track_clamped, lr
        self._counts = ClampCounts()
        self._first_step = FirstStep()
        self._had_state = True  # before the base step; known only with `lr`
        if model is None and select is not not_norm:
            raise ValueError("select= requires model=: pass the model whose parameters it selects")
        is_selected = as_filter(select, model) if model is not None else not_norm
        self._selected = SelectedParameters(optimizer, model, is_selected)
        self._selected.check_dtypes(alpha, beta)
        self._loading = StateLoading(layers, given, lr)
        self._saved_keys = SavedKeys(optimizer)
        self._handles: list[Any] = []
        try:
            self._attach(alpha, beta)
        except BaseException:
            self.remove()
            raise

    def _attach(self, alpha: float, beta: float) -> None:
        optimizer = self.optimizer
        optimizer.defaults.update(ham_alpha=alpha, ham_beta=beta, ham_explicit=False)
        for group in optimizer.param_groups:
            complete(group, {**optimizer.defaults, "ham_explicit": has_own_values(group)})
        optimizer._ham = self  # type: ignore[attr-defined]
        watch = GradientWatch(optimizer, self._watched_parameters, self._prepare_groups, self._step)
        self._handles += [watch, self._loading]
        self._loading.register()

    def remove(self) -> None:
        """Detach HAM and restore the optimizer and its groups."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._saved_keys.restore(self.optimizer)
        if getattr(self.optimizer, "_ham", None) is self:
            del self.optimizer._ham

    def clamped_share(self) -> Tensor:
        """Fraction of the clamped exponents since the last call: a 0-dim tensor, no host sync.

        A fraction that grows towards 1 shows that alpha is too large: weights are multiplied by e^5 or e^-5
        in a single step.

        Raises:
            RuntimeError: HAM was created without `track_clamped=True`.
        """
        if not self.track_clamped:
            raise RuntimeError("no exponents were counted: create HAM with track_clamped=True")
        return self._counts.share()

    def state_dict(self) -> dict[str, Any]:
        """The counts behind `clamped_share()`; HAM has no other state of its own."""
        return self._counts.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, on the device of the weights."""
        device = next(p.device for group in self.optimizer.param_groups for p in group["params"])
        self._counts.load_state_dict(state, device)

    def _prepare_groups(self) -> None:
        """Before the base step: complete groups that were added or changed, and check all groups."""
        if self.lr is not None and not torch.compiler.is_compiling():
            self._had_state = bool(self.optimizer.state)
        for group in self.optimizer.param_groups:
            complete(group, self.optimizer.defaults)
            check_group(group, self.optimizer, self.lr)

    def _watched_parameters(self) -> list[Tensor]:
        """The parameters whose gradients change what HAM does."""
        return [
            p
            for group in self.optimizer.param_groups
            if may_act(group) and (self.mask_zero_grad or may_differ_from_0(group["ham_alpha"]))
            for p in self._selected.of(group)
        ]

    @torch.no_grad()
    def _step(self) -> None:
        optimizer = self.optimizer
        found_inf = getattr(optimizer, "found_inf", None)  # set by GradScaler around a fused step
        counts = self._counts if self.track_clamped else None
        first = None  # the counts of the first step
        self._first_step.examine(type(optimizer).__name__)
        if self._first_step.must_count(optimizer):
            counts = first = ClampCounts()
        rates = self._rates()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if may_act(group):
                params = [p for p in self._selected.of(group) if p.grad is not None]
                self._hyperbolic_step(group, params, rate, found_inf, counts)
            if self.max_weight_norm is not None and not is_zero(rate):
                params = [p for p in group["params"] if p.grad is not None]
                clip_weight_norm_(params, self.max_weight_norm, found_inf=found_inf)
        if first is not None:
            if self.track_clamped:
                self._counts.add(first)
            if not all(is_zero(rate) for rate in rates):
                self._first_step.copy(first, found_inf)
                self._first_step.examine(type(optimizer).__name__)

    def _rates(self) -> list[float | Tensor]:
        """The rate of each group in the step just taken; 0 in one that only creates the state."""
        groups = self.optimizer.param_groups
        if not (torch.compiler.is_compiling() or self._had_state) and initializes_state(self.optimizer):
            return [0.0] * len(groups)
        acts = [may_act(group) or self.max_weight_norm is not None for group in groups]
        return [rate_of(group, self.lr) if act else 0.0 for group, act in zip(groups, acts, strict=True)]

    def _hyperbolic_step(
        self,
        group: dict,
        params: list[Tensor],
        rate: float | Tensor,
        found_inf: Tensor | None,
        counts: ClampCounts | None,
    ) -> None:
        alpha = -group["ham_alpha"] if group.get("maximize") else group["ham_alpha"]
        by_device: dict[torch.device, list[Tensor]] = {}
        for p in params:
            by_device.setdefault(p.device, []).append(p)
        for device, ps in by_device.items():
            clamped, seen = counts.on(device) if counts is not None else (None, None)
            hyperbolic_step_(
                ps,
                [p.grad for p in ps],
                lr=0.0 if is_zero(rate) else rate,
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
