"""A sparsifier on the hooks of an optimizer, for any training loop without changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from .optimizer_state import has_state
from .optimizers import layers_of, runs_hooks, unwrapped
from .shards import local, sum_over_parts

if TYPE_CHECKING:
    from .base import Sparsifier


class OptimizerHook:
    """Calls `after_backward`, `add_decay` and `after_step` around every step of an optimizer.

    The first two run before the optimizer's other pre-hooks, or after the closure of `step(closure)`; the
    last one runs after its other post-hooks, and so after HAM. Where `after_backward` of a sparsifier
    returns False the gradients are dropped, so that neither the optimizer nor HAM moves a weight. With
    `steps_per_epoch`, the last step of the training also calls `on_end`; steps that GradScaler skips are not
    counted, so a loop with float16 calls `on_end` itself.

    HAM on the same optimizer reads gradients without the parameterization's decay: `decoupled_decay` is set.

    Gradients that are clipped before `optimizer.step()` still have the entries of pruned weights.

    Args:
        sparsifier: an attached sparsifier; it counts the steps in its attribute `step`.
        optimizer: a torch optimizer, or a wrapper that holds one: in `.base_optimizer`, as SAM does, or in
            `.optimizer` if the wrapper itself runs no step hooks. The hook is on the optimizer inside; after
            the own step of a wrapper around it that runs hooks the masks are applied once more.

    Raises:
        TypeError: `optimizer` is not an optimizer.
        ValueError: the optimizer does not run step hooks, or does not train the sparsifier's weights with the
            weight decay that they need.
    """

    def __init__(self, sparsifier: Sparsifier, optimizer: Optimizer) -> None:
        self.sparsifier, self.optimizer = sparsifier, check_hook(sparsifier, optimizer)
        self.is_active = False
        self._acts = self._skips = self._dropped = False
        self._group_values: list[dict[str, Any]] = []
        self._pre = self.optimizer.register_step_pre_hook(self._before_step)
        self._pre_hooks.move_to_end(self._pre.id, last=False)  # masks gradients before HAM looks at them
        self._restore = self.optimizer.register_step_post_hook(self._remove_decay)  # HAM runs after it
        self._post = self.optimizer.register_step_post_hook(self._after_step)
        self._outer = [
            layer.register_step_post_hook(self._mask_again)
            for layer in layers_of(optimizer)[:-1]
            if runs_hooks(layer)
        ]

    @property
    def _pre_hooks(self) -> Any:
        return self.optimizer._optimizer_step_pre_hooks

    def remove(self) -> None:
        """Detach the sparsifier from the optimizer; its masks are then no longer enforced."""
        for handle in (self._pre, self._restore, self._post, *self._outer):
            handle.remove()
        if self.sparsifier._hook is self:
            self.sparsifier._hook = self.sparsifier._announced_to = None

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if _is_nested(optimizer):
            return None
        self._acts = self._skips = self._dropped = False
        self._post.remove()
        self._post = optimizer.register_step_post_hook(self._after_step)  # after HAM, attached any time
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        self._group_values = [_numbers(group) for group in optimizer.param_groups] if closure else []
        if closure is None:
            self._on_gradients()
            return None
        if len(args) > 1:
            return (optimizer, self._wrap_closure(closure), *args[2:]), kwargs
        return args, {**kwargs, "closure": self._wrap_closure(closure)}

    def _wrap_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def closure_with_masks() -> Any:
            if self._acts:
                raise RuntimeError(
                    f"{type(self.optimizer).__name__} calls its closure more than once per step: a "
                    "sparsifier needs an optimizer with one gradient per step"
                )
            loss = closure()
            self._on_gradients()
            return loss

        return closure_with_masks

    def _on_gradients(self) -> None:
        if _initializes_state(self.optimizer):
            return
        sparsifier = self.sparsifier
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None and sparsifier.has_penalty:
            raise RuntimeError(
                "GradScaler gives this fused optimizer scaled gradients, to which a penalty cannot be added: "
                "call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        step = sparsifier.step
        if step < 0:
            raise RuntimeError(
                "the loaded state was saved without a hook and does not contain the number of steps: set "
                "sparsifier.step to the number of optimizer steps before this one"
            )
        if self._overflowed():
            sparsifier.mask_gradients()  # the optimizer skips this step: it does not count
            return
        if getattr(self.optimizer, "_ham", None) is not None:
            sparsifier.parameterization.decoupled_decay = True
        self._acts, self.is_active = True, True
        try:
            if sparsifier.after_backward(step, self.optimizer):
                sparsifier.add_decay()
            else:
                self._skips = True
        finally:
            self.is_active = False
        self._drop_gradients()

    def _overflowed(self) -> bool:
        """Return True if GradScaler found infinite gradients, so that a fused optimizer will skip this step.

        A host sync, as GradScaler makes one in each step of an optimizer that is not fused.
        """
        found_inf = getattr(self.optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf)

    def _drop_gradients(self) -> None:
        """Let the step change nothing where a sparsifier skips it and all have seen the gradients."""
        owners = [getattr(hook, "__self__", None) for hook in self._pre_hooks.values()]
        hooks = [owner for owner in owners if isinstance(owner, OptimizerHook)]
        if hooks[-1] is not self or not any(hook._skips for hook in hooks):
            return
        self._dropped = True
        groups = self.optimizer.param_groups
        for p in (p for group in groups for p in group["params"]):
            p.grad = None
        self._group_values = self._group_values or [_numbers(group) for group in groups]

    def _remove_decay(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """With `decoupled_decay`, give HAM the gradient without the penalty."""
        self.sparsifier.parameterization.remove_decay()

    _remove_decay.restores_gradients = True  # type: ignore[attr-defined]

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if not self._acts or _is_nested(optimizer):
            return
        self._acts = False
        sparsifier = self.sparsifier
        if self._dropped:  # counters of steps in optimizers outside torch
            _restore_numbers(optimizer, self._group_values)
        if not self._skips:
            sparsifier.after_step()
        sparsifier.step += 1
        if sparsifier.steps_per_epoch is not None and sparsifier.step == sparsifier.total_steps:
            sparsifier.on_end()

    def _mask_again(self, wrapper: Optimizer, args: tuple, kwargs: dict) -> None:
        """After the own step of a wrapper, which may have changed weights, as Lookahead does."""
        self.sparsifier.masks.apply_to_weights_()


def check_hook(sparsifier: Sparsifier, optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside wrappers. Raises the errors of `OptimizerHook` if it does not fit."""
    optimizer = unwrapped(optimizer)
    sparsifier.check(optimizer)
    _check_weight_decay(sparsifier, optimizer)
    _check_other_hooks(sparsifier, optimizer)
    return optimizer


def _check_other_hooks(sparsifier: Sparsifier, optimizer: Optimizer) -> None:
    """Raise ValueError where another sparsifier's hook on this optimizer acts on the same weight."""
    own = {id(p): name for name, w in sparsifier.masks.weights.items() for p in w.parameters}
    for hook in optimizer._optimizer_step_pre_hooks.values():
        other = getattr(hook, "__self__", None)
        if isinstance(other, OptimizerHook) and other.sparsifier is not sparsifier:
            for weight in other.sparsifier.masks.weights.values():
                for name in (own[id(p)] for p in weight.parameters if id(p) in own):
                    raise ValueError(
                        f"the hook of another {type(other.sparsifier).__name__} on this optimizer acts "
                        f"on {name}: call remove() on that hook first"
                    )


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group; single ones in tensors are copied."""
    numbers = {k: v for k, v in group.items() if isinstance(v, int | float)}
    tensors = {k: v.clone() for k, v in group.items() if isinstance(v, torch.Tensor) and v.numel() == 1}
    return {**numbers, **tensors}


@torch.no_grad()
def _restore_numbers(optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and isinstance(group[key], torch.Tensor):
                group[key].copy_(value)
            else:
                group[key] = value


def _is_nested(optimizer: Optimizer) -> bool:
    """Return True if the step of a base class, inside the optimizer's own step, has called the hook."""
    steps = [c.__dict__["step"] for c in type(optimizer).__mro__ if "step" in c.__dict__]
    if sum(getattr(step, "hooked", False) for step in steps) < 2:
        return False
    caller = sys._getframe(2)  # torch's function around every step, which runs the hooks
    frame = caller.f_back
    while frame is not None:
        if frame.f_code is caller.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def _initializes_state(optimizer: Optimizer) -> bool:
    """Return True in the step by which torch.distributed.checkpoint creates the state (rate 0, gradients 0).

    A host sync, only while every rate is 0 and no state exists.
    """
    if optimizer.state or has_state(optimizer):  # the first of them is quick
        return False
    rates = [group.get("lr") for group in optimizer.param_groups]
    if any(rate is None or (isinstance(rate, torch.Tensor) and rate.device.type != "cpu") for rate in rates):
        return False
    if any(rates):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    has_values = sum_over_parts([local(gradient).any().long() for gradient in gradients], gradients)
    return not any(bool(count) for count in has_values)


def _check_weight_decay(sparsifier: Sparsifier, optimizer: Optimizer) -> None:
    decays = {id(p): decay for p, decay in sparsifier.weight_decays().items()}
    for group in optimizer.param_groups:
        own = float(group.get("weight_decay") or 0.0)
        wrong = [decays[id(p)] for p in group["params"] if decays.get(id(p), own) != own]
        if wrong:
            raise ValueError(
                f"{type(sparsifier).__name__} sets the weight decay of its parameters to {wrong[0]:g}, the "
                f"optimizer to {own:g}: create it from sparsifier.param_groups(model.parameters())"
            )
