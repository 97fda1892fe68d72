"""Checks of the options of a sparsifier and of `attach`, with errors of one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from math import isfinite
from numbers import Integral, Real
from typing import Any


def check_counts(total_epochs: int, steps_per_epoch: int | None) -> None:
    """Raise ValueError unless both are positive integers, or `steps_per_epoch` is None."""
    for name, value in (("total_epochs", total_epochs), ("steps_per_epoch", steps_per_epoch)):
        if name == "steps_per_epoch" and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            cure = ": count the calls of optimizer.step()" if name == "steps_per_epoch" else ""
            raise ValueError(f"{name} must be positive and an integer, got {value!r}{cure}")


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless 0 <= sparsity < 1; the message suggests the likely intention."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise ValueError(f"sparsity must be a number in [0, 1), got {sparsity!r}")
    if not 0 <= sparsity < 1:
        hint = f"; did you mean {sparsity / 100:g}?" if 1 < sparsity < 100 else ""
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity:g}{hint}")


def check_positive_integer(name: str, value: Any, unit: str = "") -> None:
    """Raise ValueError with the option's name unless `value` is an integer of at least 1."""
    if check_integer(name, value) < 1:
        raise ValueError(f"{name} must be at least 1{unit}, got {value}")


def check_integer(name: str, value: Any) -> int:
    """The integer, also one of numpy. Raises ValueError with the option's name on anything else."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer, got {_describe(value)}")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """The number, also one of numpy. Raises ValueError unless it is one and finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {_describe(value)}")
    if not isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value if isinstance(value, int) else float(value)


def check_flag(name: str, value: Any) -> bool:
    """The flag. Raises ValueError unless it is True or False: a text such as "no" would be true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {_describe(value)}")
    return value


def check_globs(name: str, value: Any) -> list[str]:
    """The globs as a list, also of a single one. Raises ValueError on what is not text."""
    globs = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(glob, str) for glob in globs):
        raise ValueError(f'{name} must be a list of globs such as ["head.*"], got {_describe(value)}')
    return globs


_CHECKS = {"bool": check_flag, "int": check_integer, "float": check_number, "list[str]": check_globs}


def check_options(owner: Any) -> None:
    """Check every field of a dataclass by its declared type, and convert numbers of other packages.

    Raises:
        ValueError: a flag is not True or False, or a number is not a finite number; it names the field.
    """
    for field in fields(owner):
        declared = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        check, value = _CHECKS.get(declared.removesuffix(" | None")), getattr(owner, field.name)
        if check is not None and not (value is None and declared.endswith(" | None")):
            setattr(owner, field.name, check(field.name, value))


def _describe(value: Any) -> str:
    """A value in one line, for an error."""
    return " ".join(repr(value).split())
