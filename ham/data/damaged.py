"""What the commands that prepare data do with a damaged file: rename it and put a good one in its place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from .base import DataError


class DamagedError(DataError):
    """Files are damaged, incomplete or not those of the data set.

    Args:
        problem: names the file, and what is wrong with it.
        cure: names the command that replaces `paths`.
        paths: the files or folders that a good copy must replace.
    """

    def __init__(self, problem: str, cure: str, paths: Sequence[Path]) -> None:
        super().__init__(problem, cure, paths)  # an exception is sent to other ranks by its arguments
        self.problem, self.cure, self.paths = problem, cure, tuple(paths)

    def __str__(self) -> str:
        return f"{self.problem}; {self.cure}"


def move_away(path: Path) -> Path:
    """Rename a file or folder to <name>.damaged, or <name>.damaged2 and so on; returns the new path.

    Raises:
        OSError: it cannot be renamed.
    """
    names = (f"{path.name}.damaged{number}" for number in itertools.chain([""], itertools.count(2)))
    new = next(new for new in map(path.with_name, names) if not new.exists())
    return path.rename(new)
