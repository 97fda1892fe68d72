"""A progress bar with the time left, for preparations that may take more than some seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def progress(items: Iterable[Any] | None, name: str, unit: str, total: int | None = None) -> Any:
    """The bar of tqdm over `items`; it appears after 2 seconds, with a line per 30 seconds in a log file.

    Args:
        items: items to iterate over; None: the caller calls update.
        name: shown before the bar.
        unit: unit of the items, in the plural; "B", bytes, gets prefixes such as M.
        total: number of items, where `items` does not have a length.
    """
    from tqdm import tqdm

    every = 0.5 if sys.stderr.isatty() else 30.0
    shown: dict[str, Any] = {
        "desc": name,
        "unit": unit,
        "mininterval": every,
        "maxinterval": max(10.0, every),
    }
    if unit == "B":
        shown |= {"unit_scale": True, "unit_divisor": 1024}
    return tqdm(items, total=total, delay=2, leave=False, **shown)
