"""Checks of numbers in tables: a cell has the expected form and its numbers are correct roundings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

_NUMBER = re.compile(r"(?:(?<![\w.])[+-])?\d+(?:\.\d+)?")


def numbers(text: str) -> list[str]:
    """All numbers in a text, with a sign where one is printed."""
    return _NUMBER.findall(text)


def could_print(text: str, value: float) -> bool:
    """Is the text a correct rounding of the value, which is known to 1e-9? Of two at a tie, both are."""
    half = Decimal(1).scaleb(int(Decimal(text).as_tuple().exponent)) / 2
    has_sign = (text[0] == "-") == (value < -1e-9)
    return has_sign and abs(Decimal(text) - Decimal(float(value))) <= half + Decimal("1e-9")


@dataclass(frozen=True)
class Check:
    """A cell's text, its form with # for each number, and the numbers."""

    text: str
    template: str
    values: tuple[float, ...]

    @property
    def mistake(self) -> str:
        """What is wrong with the text; empty if nothing is."""
        printed = numbers(self.text)
        if _NUMBER.sub("#", self.text) != self.template or len(printed) != len(self.values):
            return f"{self.text!r} is not of the form {self.template!r}"
        pairs = zip(printed, self.values, strict=True)
        wrong = [f"{own} for {value!r}" for own, value in pairs if not could_print(own, value)]
        return f"{self.text!r}: {', '.join(wrong)}" if wrong else ""


def check(text: str, template: str, *values: float) -> Check:
    """The check of a cell; both signs for +- are the same."""
    return Check(text.replace("±", "+-"), template, values)


def check_spread(text: str, values: np.ndarray) -> Check:
    """The check of a mean and sample standard deviation."""
    if len(values) == 1:
        return check(text, "#", values[0])
    return check(text, "# +- #", values.mean(), values.std(ddof=1))


def mistakes(checks: Iterable[Check]) -> list[str]:
    """All that is wrong."""
    return [own.mistake for own in checks if own.mistake]


def accepted_alterations(checks: Iterable[Check]) -> list[str]:
    """Cells that pass although a number was moved by two units of its last place: there should be none."""
    passed = []
    for own in checks:
        for place in re.finditer(r"\d+(?:\.(\d+))?", own.text):
            digits = len(place[1] or "")
            number = f"{float(place[0]) + 2 * 10.0**-digits:.{digits}f}"
            changed = Check(
                own.text[: place.start()] + number + own.text[place.end() :], own.template, own.values
            )
            passed += [] if changed.mistake else [changed.text]
    return passed


def agree(printed: list[str], expected: Iterable[float]) -> bool:
    """Is each printed number a correct rounding of the expected one?"""
    return all(could_print(text, value) for text, value in zip(printed, expected, strict=True))


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the head first and without the line of dashes."""
    blocks = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    tables = [[[c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines()] for block in blocks]
    return [[row for row in table if set("".join(row)) != {"-"}] for table in tables]
