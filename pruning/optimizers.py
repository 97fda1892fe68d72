"""The optimizer that trains a sparsifier's weights, perhaps inside wrappers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .checks import warn_at_caller
from .shards import is_sharded


def check_optimizer(optimizer: Optimizer, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError unless the optimizer trains every tensor of `weights` that has requires_grad.

    Args:
        optimizer: the optimizer used for training.
        weights: pairs (name, trained tensor).
    """
    weights = list(weights)
    if sparse := [name for name, p in weights if p.grad is not None and p.grad.is_sparse]:
        raise ValueError(
            f"{sparse[0]} has sparse gradients, which cannot be masked: set sparse=False in its layer"
        )
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, tensor in weights if tensor.requires_grad and id(tensor) not in trained]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        shard = " and fully_shard(model)" if any(is_sharded(tensor) for _, tensor in weights) else ""
        raise ValueError(
            f"the optimizer does not train {missing[0]}{others}: create it after sparsifier.attach(model)"
            f"{shard}, from the model's parameters; freeze weights that should not be trained, and exclude "
            "those that another optimizer trains"
        )


def warn_of_decay_in_ham(optimizer: Any, is_decoupled: bool) -> None:
    """Warn if HAM on an optimizer would read gradients with a penalty in them.

    Args:
        optimizer: the optimizer used for training, or a wrapper.
        is_decoupled: True if `remove_decay` restores the gradients; HAM runs after it only where it is
            registered itself as a hook, and not within another function.
    """
    layers = [layer for layer in layers_of(optimizer) if getattr(layer, "_ham", None) is not None]
    hooks = [hook for layer in layers for hook in layer._optimizer_step_post_hooks.values()]
    restores = is_decoupled and any(getattr(hook, "restores_gradients", False) for hook in hooks)
    if layers and not restores:
        warn_at_caller(
            "HAM reads the gradients of the factors m and w with their decay in them: call "
            "sparsifier.hook(optimizer) in place of after_backward, add_decay and after_step, or set "
            "parameterization.decoupled_decay=True and register its remove_decay as a step post-hook"
        )


def unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimizer inside wrappers such as accelerate's and SAM's.

    Raises:
        TypeError: there is no torch optimizer inside.
        ValueError: the optimizer does not run step hooks.
    """
    optimizer = layers_of(optimizer)[-1]
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"hook needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not runs_hooks(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} does not run the step hooks of torch.optim.Optimizer: call "
            "after_backward, add_decay and after_step around its step"
        )
    return optimizer


def layers_of(optimizer: Any) -> list[Any]:
    """The wrappers around an optimizer from the outside to the inside, then the optimizer itself."""
    layers = [optimizer]
    while (inner := _inner_optimizer(layers[-1])) is not None and not any(inner is layer for layer in layers):
        layers.append(inner)
    return layers


def _inner_optimizer(wrapper: Any) -> Optimizer | None:
    """The optimizer that a wrapper holds and whose hooks take the place of its own."""
    inner = getattr(wrapper, "base_optimizer", None)  # SAM's: its two-step API does not call SAM's own step
    if isinstance(inner, Optimizer) and _share_parameters(wrapper, inner):
        return inner
    if runs_hooks(wrapper):  # Lookahead, which moves weights after the step of the optimizer inside
        return None
    inner = getattr(wrapper, "optimizer", None)
    return inner if isinstance(inner, Optimizer) else None


def _share_parameters(wrapper: Any, inner: Optimizer) -> bool:
    groups = getattr(wrapper, "param_groups", inner.param_groups)
    own = {id(p) for group in groups for p in group["params"]}
    return any(id(p) in own for group in inner.param_groups for p in group["params"])


def runs_hooks(optimizer: Any) -> bool:
    """Return True for an optimizer whose step calls the hooks of torch.optim.Optimizer."""
    return isinstance(optimizer, Optimizer) and getattr(type(optimizer).step, "hooked", False)
