"""Reads the data of the theory's figures, which scripts/theory_runs.py writes to results/theory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ham.files import RESULTS

from .odd_files import InvalidRecord, read_json

DATA = RESULTS / "theory"
Shown = TypeVar("Shown")


def show(source: Path, make: Callable[[dict[str, Any]], Shown]) -> Shown:
    """The result of `make` for the data in a file, DATA/<figure>.json.

    Raises:
        InvalidRecord: the file is missing, or `make` cannot use its data.
    """
    cure = f"run python scripts/theory_runs.py --figure {source.stem}"
    if not source.exists():
        raise InvalidRecord(f"{source} is missing: {cure}")
    try:
        return make(read_json(source))
    except InvalidRecord as error:
        raise InvalidRecord(f"{source}: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise InvalidRecord(f"{source}: its data are invalid ({error!r}): {cure}") from None
