"""A watch over the gradients that HAM reads after the base step: an error if that step has changed them."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import wraps
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .hyperbolic import check_dense, check_gradient, local

_HOOKED_STEP = Optimizer.profile_hook_step(lambda: None).__code__  # of torch's wrapper around every step


class GradientWatch:
    """Compares identity and version of each gradient before and after the base step, without reading values.

    Its pre-hook runs after all others, which may clip or mask gradients. After the base step come the
    comparison, the post-hooks with the attribute `restores_gradients`, which take a penalty out of the
    gradients, and `follow`; all other post-hooks come later, since they may clear gradients or step a
    scheduler. A pre-hook that was registered later than HAM may still change gradients after the record of
    the first step: that step is not compared, and from the next one on the watch's pre-hook runs last. With
    a closure, which computes the gradients inside the step, the record follows each call of the closure. A
    `step` that calls the hooked `step` of its base class runs all hooks twice: the inner ones do nothing.

    Not compared: a compiled step; a step that GradScaler lets divide its gradients by the scale (a fused
    one); what is written to `p.grad.data`, which torch does not count as a new version.

    Args:
        optimizer: the optimizer whose step is watched.
        watched: the optimizer's parameters whose gradients HAM reads in this step.
        prepare: function called before each step, for checks that need no gradient.
        follow: function called after each step that has left the gradients as they were.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        watched: Callable[[], Iterable[Tensor]],
        prepare: Callable[[], None],
        follow: Callable[[], None],
    ) -> None:
        self._optimizer, self._watched = optimizer, watched
        self._prepare, self._follow = prepare, follow
        self._record: list[tuple[Tensor, Tensor | None, int]] | None = None  # None: this step is not compared
        self._has_gradients = False  # before this step
        self._is_first = True  # dtypes are compared before the first step, later where HAM reads gradients
        self._open_steps = 0
        self._before = optimizer.register_step_pre_hook(self._before_step)
        self._after = optimizer.register_step_post_hook(self._after_step)
        self._last = optimizer.register_step_post_hook(self._follow_step)
        self._order_post_hooks()

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in (self._before, self._after, self._last):
            handle.remove()
        self._record = None

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if torch.compiler.is_compiling():
            self._prepare()
            return None
        self._open_steps = _count_open_steps(optimizer) if self._open_steps else 1
        if self._open_steps > 1:
            return None
        self._prepare()
        self._record, self._has_gradients = None, False
        self._order_post_hooks()
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._wrap_closure(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):  # args[0] is the optimizer
            return (args[0], self._wrap_closure(args[1]), *args[2:]), kwargs
        self._take_record()
        return None

    def _wrap_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        @wraps(closure)
        def closure_with_record() -> Any:
            loss = closure()
            self._take_record()
            return loss

        return closure_with_record

    @torch.no_grad()
    def _take_record(self) -> None:
        record = []
        check = check_gradient if self._is_first else _check_later
        for p in self._watched():
            grad = p.grad
            if grad is not None:
                check(p, grad)
            record.append((p, grad, _version(grad)))
        self._record, self._is_first = record, False
        self._has_gradients = _have_gradients(self._optimizer)

    def _order_post_hooks(self) -> None:
        hooks = _hooks(self._optimizer, "post")
        restoring = [key for key, hook in hooks.items() if getattr(hook, "restores_gradients", False)]
        for key in (self._last.id, *reversed(restoring), self._after.id):
            hooks.move_to_end(key, last=False)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if torch.compiler.is_compiling():
            return
        self._open_steps -= 1
        if self._open_steps == 0:
            self._compare()

    def _follow_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if torch.compiler.is_compiling() or self._open_steps == 0:
            self._follow()

    def _compare(self) -> None:
        """Raise ValueError where the step changed a gradient that HAM reads, or cleared all gradients."""
        optimizer = self._optimizer
        record, self._record = self._record, None
        hooks = _hooks(optimizer, "pre")
        if next(reversed(hooks)) != self._before.id:  # in the post-hook: torch iterates over them in a step
            hooks.move_to_end(self._before.id)  # the other hook may have changed or cleared the gradients
            return
        if self._has_gradients and not _have_gradients(optimizer):
            raise ValueError(_message(optimizer))
        if record is None or getattr(optimizer, "grad_scale", None) is not None:
            return
        if any(p.grad is not grad or _version(grad) != version for p, grad, version in record):
            raise ValueError(_message(optimizer))


def _check_later(p: Tensor, grad: Tensor) -> None:
    check_dense(grad)


def _count_open_steps(optimizer: Optimizer) -> int:
    """The number of hooked steps of `optimizer` on the stack: a step that failed is not among them."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        count += frame.f_code is _HOOKED_STEP and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return count


def _have_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _hooks(optimizer: Optimizer, kind: str) -> OrderedDict[int, Callable]:
    return getattr(optimizer, f"_optimizer_step_{kind}_hooks")


def _version(grad: Tensor | None) -> int:
    """The number of writes that torch has counted; a DTensor and its shard have one each."""
    if grad is None or grad.is_inference():
        return 0
    if type(grad) is Tensor:
        return grad._version
    return grad._version + local(grad)._version


def _message(optimizer: Optimizer) -> str:
    name, module = type(optimizer).__name__, type(optimizer).__module__
    cure = "set foreach=False, or " if module.startswith("torch.optim") else ""
    return (
        f"{name} changes p.grad in its step, and HAM reads p.grad after it: {cure}use an optimizer that "
        "does not change p.grad, such as torch.optim.AdamW"
    )
