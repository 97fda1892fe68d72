"""The progress bar: what it counts, and how often it is drawn."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import tqdm

from ham.data.progress import progress


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each bar."""
    bars: list[dict[str, Any]] = []
    monkeypatch.setattr(tqdm, "tqdm", lambda items, **options: bars.append({"items": items, **options}))
    return bars


@pytest.mark.parametrize(("is_terminal", "seconds"), [(True, (0.5, 10.0)), (False, (30.0, 30.0))])
def test_a_log_file_gets_a_line_per_30_seconds_and_a_terminal_two_per_second(
    is_terminal: bool, seconds: tuple[float, float], drawn: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    progress([1, 2], "name", "graphs", total=7)
    (bar,) = drawn
    assert (bar.pop("mininterval"), bar.pop("maxinterval")) == seconds
    assert bar == {
        **{"items": [1, 2], "desc": "name", "unit": "graphs", "total": 7},
        **{"delay": 2, "leave": False},
    }


def test_bytes_have_prefixes_of_1024(drawn: list) -> None:
    progress(None, "name", "B", total=10**6)
    (bar,) = drawn
    assert (bar["unit"], bar["unit_scale"], bar["unit_divisor"]) == ("B", True, 1024)
