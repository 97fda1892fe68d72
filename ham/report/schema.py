"""The types and ranges of everything that a record keeps; files that others wrote are not trusted.

A rule maps a value and its name to a message that names the missing or invalid field, "" if there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ham.experiments import SEEDS

Rule = Callable[[Any, str], str]

LARGEST = 1e100
"""The absolute value of a number: sums and squares of such numbers are finite."""

_LARGEST_COUNT = 2**53  # a larger integer is not exact as a float
_DEPTH, _LENGTH = 20, 10_000  # levels and characters
_LABEL = re.compile(r"(?!.*[`|<>\[\]\\$~])(?!.*(?<! )\*|.*\*(?! ))(?!.*(?<!\w)_|.*_(?!\w))[ -~]{0,300}")
_HASH = re.compile(r"[0-9a-f]{64}")


def _invalid(name: str) -> str:
    return f"{name} is missing or invalid"


def is_number(value: Any) -> bool:
    """Return True for an int or float that is finite and not above `LARGEST`, but not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def number(low: float = -LARGEST, high: float = LARGEST) -> Rule:
    """A number in a range."""
    kind = "a finite number" if high == LARGEST else f"within {low:g} and {high:g}"
    return lambda value, name: (
        "" if is_number(value) and low <= value <= high else f"{name} is missing or not {kind}"
    )


def integer(low: int = 0, high: int = _LARGEST_COUNT) -> Rule:
    """An integer in a range."""

    def rule(value: Any, name: str) -> str:
        if not isinstance(value, int) or isinstance(value, bool):
            return _invalid(name)
        return "" if low <= value <= high else f"{name} is not within {low} and {high}"

    return rule


def of_type(kind: type) -> Rule:
    """A value of a type, whose content other rules check."""
    return lambda value, name: "" if isinstance(value, kind) else _invalid(name)


def text(pattern: re.Pattern[str] | None = None) -> Rule:
    """A text, of a pattern if given."""
    return lambda value, name: (
        "" if isinstance(value, str) and (pattern is None or pattern.fullmatch(value)) else _invalid(name)
    )


def label(value: Any, name: str) -> str:
    """A text that pages show: printable ASCII without markup, at most 300 characters."""
    if not isinstance(value, str):
        return _invalid(name)
    return "" if _LABEL.fullmatch(value) else f"{name} is not in plain words (it is {value[:60]!r})"


def nullable(rule: Rule) -> Rule:
    """None, or a value of a rule."""
    return lambda value, name: "" if value is None else rule(value, name)


def each(rule: Rule) -> Rule:
    """A list of such values."""
    return lambda value, name: (
        next(filter(None, (rule(item, name) for item in value)), "")
        if isinstance(value, list)
        else _invalid(name)
    )


def mapping(rule: Rule) -> Rule:
    """An object with any keys and such values."""
    return lambda value, name: (
        next(filter(None, (rule(item, f"{name}.{key}") for key, item in value.items())), "")
        if isinstance(value, dict)
        else _invalid(name)
    )


def fields(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """An object with these keys; nothing reads its other keys, see `odd_value`."""

    def rule(value: Any, name: str) -> str:
        if not isinstance(value, dict):
            return _invalid(name) if name else "not a JSON object"
        known = {**required, **{key: kind for key, kind in (optional or {}).items() if key in value}}
        prefix = f"{name}." if name else ""
        checked = (kind(value.get(key, _MISSING), f"{prefix}{key}") for key, kind in known.items())
        return next(filter(None, checked), "")

    return rule


def odd_value(content: Any) -> str:
    """What must not be in a record's JSON: nan, a control character, too many levels; "" if there is none."""
    for depth, value in _values(content):
        if depth > _DEPTH:
            return f"it is nested deeper than {_DEPTH} levels"
        if isinstance(value, str) and not (value.isprintable() and len(value) <= _LENGTH):
            return f"it holds a control character, or a text of over {_LENGTH} characters: {value[:60]!r}"
        if isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
            return "it holds nan, inf or a number beyond 1e100"
    return ""


def _values(content: Any) -> Iterator[tuple[int, Any]]:
    """Every value and key with its depth, down to the first level that is too deep."""
    waiting = [(0, content)]
    while waiting:
        depth, value = waiting.pop()
        yield depth, value
        if isinstance(value, dict):
            waiting += ((depth + 1, part) for pair in value.items() for part in pair)
        elif isinstance(value, list):
            waiting += ((depth + 1, part) for part in value)


_MISSING = object()
_BOOL, _COUNTS = of_type(bool), mapping(integer())
_HARDWARE = fields({"cpu": label}, {"cores": nullable(integer(1)), "gpus": nullable(each(label))})
_RANKS = nullable(integer(1, 2**20))
_RESUMED = fields({}, {"dirty": nullable(_BOOL), "hardware": nullable(_HARDWARE), "ranks": _RANKS})
_PROVENANCE = fields(
    {"argv": each(text()), "hardware": _HARDWARE},
    {
        "dirty": nullable(_BOOL),
        "python": nullable(label),
        "versions": nullable(mapping(nullable(label))),
        "threads": nullable(integer(1)),
        "ranks": _RANKS,
        "slurm_job": nullable(label),
        "config_hash": text(),
        "resumed_from": each(_RESUMED),
    },
)
IDENTITY = fields(
    {
        "exp": text(),
        "overridden": _BOOL,
        "seed": integer(0, SEEDS[-1]),
        "config_hash": text(_HASH),
        "status": text(),
        "epochs": integer(),
        "demo": nullable(text()),
        "provenance": _PROVENANCE,
    },
    {"cell": nullable(label), "task": label, "ranks": of_type(dict)},
)
"""Of summary.json, diverged.json and their records."""

_SOURCE = fields(
    {"exp": text(), "seed": integer(0, SEEDS[-1]), "config_hash": text(_HASH)}, {"demo": nullable(text())}
)
_SPARSITY = fields(
    {"target": number(0, 1), "overall": number(0, 1)},
    {"kept": integer(), "total": integer(), "masks_from": nullable(_SOURCE)},
)
_PERCENT = number(0, 100)
GRAPH = fields({"name": label, "metric": label, "nodes": fields({"valid": integer(1)})})
_GRAPHS = fields({"name": label}, {"metric": label, "graphs": _COUNTS})


_TASK = fields({"correct": integer(), "questions": integer(1)}, {"unanswered": integer()})


def _answers(value: Any, name: str) -> str:
    """The counts of one task of a language model."""
    if problem := _TASK(value, name):
        return problem
    return f"more correct answers than questions in {name}" if value["correct"] > value["questions"] else ""


def results(percents: tuple[str, ...], is_node: bool) -> Rule:
    """The rule for the results of a finished run, with these metrics in percent."""
    graph = {"graph": GRAPH} if is_node else {}
    metrics = fields(dict.fromkeys(percents, _PERCENT))
    optional = {
        "graphs": _GRAPHS,
        "ham": mapping(number()),
        "checkpoint": _COUNTS,
        "answers": mapping(_answers),
        "timing": mapping(number(0)),
    }

    def rule(value: Any, name: str) -> str:
        known = fields({"metrics": metrics, "sparsity": _SPARSITY, **graph}, optional)(value, name)
        return known or mapping(nullable(number()))(value["metrics"], "metrics")

    return rule


EPOCH = fields({"epoch": integer()})
"""A line of metrics.jsonl; its other values are numbers, None, or `masks_from`."""


def epoch_error(line: Any) -> str:
    """A message that names the invalid value of a line of metrics.jsonl, "" if there is none."""
    if error := EPOCH(line, ""):
        return error
    rules = {"layers": of_type(dict), "masks_from": _SOURCE}
    others = {key: value for key, value in line.items() if value is not None and not is_number(value)}
    return next(filter(None, (rules.get(key, number())(value, key) for key, value in others.items())), "")
