"""Is this process measured by coverage, which makes code take several times as long?"""

from __future__ import annotations

import sys


def is_traced() -> bool:
    """By a trace function, or by sys.monitoring, which coverage uses where it can (Python 3.12 and later)."""
    coverage = sys.modules.get("coverage")
    return sys.gettrace() is not None or bool(coverage and coverage.Coverage.current())
