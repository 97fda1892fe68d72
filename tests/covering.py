"""Which tests execute a line, from the data of pytest --cov --cov-context=test."""

from __future__ import annotations

from pathlib import Path

from coverage import CoverageData
from mutants import Mutant


class CoveringTests:
    """Tests by file and line.

    Args:
        data: The file that coverage wrote, of the whole suite or of a part.
        most: The largest number of tests of a line; the closest to its module come first.
    """

    def __init__(self, data: Path, most: int = 300) -> None:
        self._data, self.most = CoverageData(str(data)), most
        self._data.read()
        self._lines: dict[str, dict[int, list[str]]] = {}

    def of(self, mutant: Mutant, related: list[str]) -> list[str]:
        """Tests that execute the mutant's line, those of `related` files first; none if it runs at import.

        In a statement of several lines, coverage may know only an earlier one.
        """
        lines = self._of_file(mutant.file)
        line = max((n for n in lines if n <= mutant.line), default=0)
        tests = {context.rpartition("|")[0] for context in lines.get(line, [])} - {""}
        rank = {file: number for number, file in enumerate(related)}
        ordered = sorted(tests, key=lambda test: (rank.get(test.partition("::")[0], len(rank)), test))
        return ordered[: self.most]

    def _of_file(self, file: str) -> dict[int, list[str]]:
        if file not in self._lines:
            measured = [name for name in self._data.measured_files() if name.endswith(f"/{file}")]
            self._lines[file] = self._data.contexts_by_lineno(measured[0]) if measured else {}
        return self._lines[file]
