"""A handful of made-up commonsense records for smoke tests, which need no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .base import register
from .commonsense import Commonsense
from .commonsense_files import TASKS, Record

_EXAMPLES, _QUESTIONS = 56, 4


@register("commonsense_tiny")
@dataclass
class TinyCommonsense(Commonsense):
    """Records about numbers in the format of the eight tasks; no file is read, `root` has no effect."""

    def _read(self, name: str, options: Sequence[str] = ()) -> list[Record]:
        if options:
            return [_record(number, options) for number in range(_QUESTIONS)]
        facts = list(TASKS.values())
        return [_record(number, facts[number % len(facts)].options) for number in range(_EXAMPLES)]


def _record(number: int, options: Sequence[str]) -> Record:
    """A record whose correct option is options[number % len(options)]."""
    answer = options[number % len(options)]
    question = f"Please choose the option of {number}: \n\nAnswer format: {'/'.join(options)}"
    return Record(question, "", f"the correct answer is {answer}", answer)
