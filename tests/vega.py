"""A small interpreter of Vega-Lite's transforms and expressions, in float64, for the specifications of pages.

It knows what ham.site's charts use. The browser tests compare it with Vega's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Row = dict[str, Any]


class _Datum:
    """`datum.x` and `datum['x']` in an expression."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __getattr__(self, name: str) -> Any:
        return self._row[name]

    def __getitem__(self, name: str) -> Any:
        return self._row[name]


_FUNCTIONS = {
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "pow": np.power,
    "max": np.maximum,
    "if_": lambda test, yes, no: yes if test else no,
    "sequence": lambda stop: list(range(int(stop))),
    "length": len,
    "isFinite": np.isfinite,
    "NaN": np.float64("nan"),
}


def evaluate(expression: str, row: Row, values: Mapping[str, float]) -> Any:
    """The value of an expression for a row and the values of the parameters."""
    code = re.sub(r"\bif\(", "if_(", expression)
    code = re.sub(r"(?<![\w.'])(\d+(?:\.\d+)?(?:e-?\d+)?)(?![\w.'])", r"number(\1)", code)
    names = {**_FUNCTIONS, **values, "number": np.float64, "datum": _Datum(row), "__builtins__": {}}
    with np.errstate(all="ignore"):
        return eval(code, names)


def parameters(spec: Mapping[str, Any], values: Mapping[str, float]) -> dict[str, float]:
    """The value of each parameter, with those of sliders that are given."""
    known: dict[str, float] = {}
    for own in spec.get("params", []):
        value = evaluate(own["expr"], {}, known) if "expr" in own else own["value"]
        known[own["name"]] = np.float64(values.get(own["name"], value))
    assert set(values) <= set(known), set(values) - set(known)
    return known


def rows(view: Mapping[str, Any], known: Mapping[str, float]) -> list[Row]:
    """The data of a view after its transforms."""
    data = view["data"]
    if "sequence" in data:
        own = data["sequence"]
        values = own["start"] + own["step"] * np.arange(np.ceil((own["stop"] - own["start"]) / own["step"]))
        found: Iterable[Row] = [{own["as"]: value} for value in values]
    else:
        found = [dict(row) for row in data["values"]]
    for transform in view.get("transform", []):
        found = list(_transformed(found, transform, known))
    return list(found)


def _transformed(
    found: Iterable[Row], transform: Mapping[str, Any], known: Mapping[str, float]
) -> Iterable[Row]:
    for row in found:
        if "calculate" in transform:
            yield {**row, transform["as"]: evaluate(transform["calculate"], row, known)}
        elif "filter" in transform:
            if evaluate(transform["filter"], row, known):
                yield row
        elif "fold" in transform:
            key, value = transform["as"]
            yield from ({**row, key: name, value: row[name]} for name in transform["fold"])
        else:
            names = transform["flatten"]
            for values in zip(*(row[name] for name in names), strict=True):
                yield {**row, **dict(zip(names, values, strict=True))}
