"""HAM's keys in the parameter groups while an optimizer loads a state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from .checks import LearningRate, check_group, outer_stacklevel
from .keys import complete, has_own_values, keys_of, rename_old_key


class StateLoading:
    """Completes the groups that `load_state_dict` sets, and warns of values that the state replaces.

    Args:
        layers: the wrappers around an optimizer from the outside to the inside, then the optimizer itself.
        given: the alpha and beta that were passed to HAM, under their keys in a group; None: not passed.
        lr: HAM's function of the learning rate.
    """

    def __init__(
        self, layers: Sequence[Optimizer], given: Mapping[str, float | None], lr: LearningRate | None
    ) -> None:
        self._optimizer, self._lr = layers[-1], lr
        self._layers = [layer for layer in layers if _loads_groups_of(layer, self._optimizer)]
        self._given = {key: value for key, value in given.items() if value is not None}
        self._keys_before: list[dict[str, Any]] = []
        self._handles: list[Any] = []
        groups = self._optimizer.param_groups
        self._warn_of_lost_values(
            "the values that the optimizer's groups already have, from a loaded state or a copied optimizer",
            groups,
            [{} if has_own_values(group) else self._given for group in groups],
        )

    def register(self) -> None:
        """Register the hooks of `load_state_dict`."""
        for layer in self._layers:
            self._handles.append(layer.register_load_state_dict_pre_hook(self._before_load))
            self._handles.append(layer.register_load_state_dict_post_hook(self._after_load))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        for group in optimizer.param_groups:  # a wrapper's new groups lack the keys before the next step
            complete(group, self._optimizer.defaults)
        self._keys_before = [keys_of(group) for group in optimizer.param_groups]

    def _after_load(self, optimizer: Optimizer) -> None:
        """Restore the keys that a state_dict saved before HAM was attached lacks.

        If the state was saved with a different parameter selection (by `model` instead of by the groups, or
        the other way round), its values belong to other parameters: the group keeps its own.
        """
        selection_differs = False
        for group, before in zip(optimizer.param_groups, self._keys_before, strict=True):
            rename_old_key(group)
            if group.get("ham_explicit") not in (None, before["ham_explicit"]):
                group.update(before)
                selection_differs = True
            complete(group, before)
            check_group(group, self._optimizer, self._lr)
        if selection_differs:
            warnings.warn(
                "the loaded state was saved with a different parameter selection (param_groups vs. model=); "
                "HAM keeps its current selection, alpha and beta. To use the saved ones, create HAM as it "
                "was when the state was saved",
                stacklevel=outer_stacklevel(),
            )
        self._warn_of_lost_values(
            "the values of the loaded state",
            optimizer.param_groups,
            [
                {key: value for key, value in self._given.items() if before[key] == value}
                for before in self._keys_before
            ],
        )

    def _warn_of_lost_values(self, kept: str, groups: list[dict], expected: list[dict[str, float]]) -> None:
        """Warn once if groups hold other values than those that were passed to HAM; `kept` names them."""
        lost = {
            key: (value, group[key])
            for group, values in zip(groups, expected, strict=True)
            for key, value in values.items()
            if group.get(key) is not None and group[key] != value
        }
        if lost:
            self._given = {}
            both = ", ".join(f"{key[4:]}={theirs} instead of {ours}" for key, (ours, theirs) in lost.items())
            cure = ", ".join(f"group[{key!r}]" for key in lost)
            warnings.warn(
                f"HAM keeps {kept} ({both}): set {cure} after loading or copying to change them",
                stacklevel=outer_stacklevel(),
            )


def _loads_groups_of(layer: Optimizer, optimizer: Optimizer) -> bool:
    """Return True if `load_state_dict` of `layer` sets the groups of the optimizer."""
    return layer is optimizer or (
        hasattr(layer, "_optimizer_load_state_dict_post_hooks")
        and layer.param_groups is optimizer.param_groups
    )
