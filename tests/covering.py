"""Which tests execute a line, from the data of pytest --cov --cov-context=test."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree

from coverage import CoverageData
from mutants import Mutant


class CoveringTests:
    """Tests by file and line.

    Args:
        data: The file that coverage wrote, of the whole suite or of a part.
        times: What pytest --junitxml wrote in that run: the quickest tests come first.
        seconds: How long the tests of a line may take together.
    """

    def __init__(self, data: Path, times: Path | None = None, seconds: float = 120.0) -> None:
        self._data, self.seconds = CoverageData(str(data)), seconds
        self._data.read()
        self._lines: dict[str, dict[int, list[str]]] = {}
        cases = ElementTree.parse(times).getroot().iter("testcase") if times else ()
        self._times = {_name(case): float(case.get("time", 0)) for case in cases}

    def of(self, mutant: Mutant, related: list[str]) -> list[str]:
        """Tests that execute the mutant's line, the quickest first, then by the order of `related` files.

        Empty if the line runs at import alone, or if its quickest test takes longer than `seconds`. Of a
        statement of several lines coverage may know only the first, so the nearest line above counts.
        """
        lines = self._of_file(mutant.file)
        line = max((n for n in lines if n <= mutant.line), default=0)
        tests = {context.rpartition("|")[0] for context in lines.get(line, [])} - {""}
        rank = {file: number for number, file in enumerate(related)}
        ordered = sorted(tests, key=lambda test: (self._cost(test), rank.get(_file(test), len(rank)), test))
        ends = accumulate(self._times.get(test, 0.0) for test in ordered)
        return [test for test, end in zip(ordered, ends, strict=True) if end <= self.seconds]

    def _cost(self, test: str) -> float:
        return round(self._times.get(test, 0.0), 1)

    def _of_file(self, file: str) -> dict[int, list[str]]:
        if file not in self._lines:
            measured = [name for name in self._data.measured_files() if name.endswith(f"/{file}")]
            self._lines[file] = self._data.contexts_by_lineno(measured[0]) if measured else {}
        return self._lines[file]


def _file(test: str) -> str:
    return test.partition("::")[0]


def _name(case: ElementTree.Element) -> str:
    """The name of a test, from its element in the results of --junitxml."""
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
