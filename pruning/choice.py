"""Hyperparameters that take one of a few strings."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NoReturn


class Choice(StrEnum):
    """An enum of strings; creating one from any other value raises ValueError with the list of them."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        words = ", ".join(member.value for member in cls)
        name = re.sub(r"(?<!^)(?=[A-Z])", " ", cls.__name__).lower()
        raise ValueError(f"{name} must be one of {words}, got {value!r}")
