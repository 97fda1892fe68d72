"""The keys by which parameter groups store HAM's hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

KEYS = ("ham_alpha", "ham_beta", "ham_explicit")
OLD_KEY = "ham_chosen"  # of "ham_explicit" in checkpoints of version 0.4 and earlier


class SavedKeys:
    """The current HAM keys in the groups and defaults of `optimizer`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = [_all_keys_of(group) for group in optimizer.param_groups]
        self._defaults = _all_keys_of(optimizer.defaults)

    def restore(self, optimizer: Optimizer) -> None:
        """Restore the keys; they are removed from groups that were added since then."""
        for i, group in enumerate(optimizer.param_groups):
            _restore(group, self._groups[i] if i < len(self._groups) else {})
        _restore(optimizer.defaults, self._defaults)


def has_own_values(group: dict) -> bool:
    """Return True if the group itself sets HAM's values, for all its parameters."""
    has_both = "ham_alpha" in group and "ham_beta" in group
    return is_marked_explicit(group, has_both)


def is_marked_explicit(group: dict, otherwise: bool = False) -> bool:
    """The group's mark that its values hold for all its parameters, or `otherwise` where it has none."""
    return group.get(OLD_KEY, group.get("ham_explicit", otherwise))


def keys_of(group: dict) -> dict:
    """HAM's keys and values in the group."""
    return {key: group[key] for key in KEYS if key in group}


def rename_old_key(group: dict[str, Any]) -> None:
    """Rename the key of older checkpoints to its current name."""
    if OLD_KEY in group:
        group["ham_explicit"] = group.pop(OLD_KEY)


def fill_missing(group: dict, values: Sequence[float | bool]) -> None:
    """Set those of HAM's keys that are absent or None."""
    for key, value in zip(KEYS, values, strict=True):
        if group.get(key) is None:
            group[key] = value


def complete(group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Rename the old key, and fill in missing keys."""
    rename_old_key(group)
    fill_missing(group, [defaults[key] for key in KEYS])


def _all_keys_of(mapping: dict) -> dict:
    return {key: mapping[key] for key in (*KEYS, OLD_KEY) if key in mapping}


def _restore(mapping: dict, saved: dict) -> None:
    for key in (*KEYS, OLD_KEY):
        mapping.pop(key, None)
    mapping.update(saved)
