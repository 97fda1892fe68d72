"""Reads pages of the site as a browser would: elements, texts, tables, embedded data.

A test module that imports it is skipped where the pages cannot be made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

from ham.files import RESULTS

pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install -e '.[site]'")

VOID = ("meta", "link", "input", "img", "br", "hr")


@dataclass
class Element:
    """An element with its attributes, children and own texts, in order."""

    tag: str
    attrs: dict[str, str | None]
    parts: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with single spaces; data of scripts is no text."""
        return " ".join(self._raw().split())

    def _raw(self) -> str:
        if self.tag in ("script", "style"):
            return ""
        return "".join(part if isinstance(part, str) else part._raw() for part in self.parts)

    @property
    def classes(self) -> list[str]:
        """Of its class attribute."""
        return (self.attrs.get("class") or "").split()

    def all(self, *tags: str) -> list[Element]:
        """The elements of these tags in it, all elements without."""
        found = []
        for part in self.parts:
            if isinstance(part, Element):
                found += [part, *part.all()]
        return [own for own in found if not tags or own.tag in tags]

    def without(self, name: str) -> str:
        """The text without the elements of a class."""
        kept = [part for part in self.parts if isinstance(part, str) or name not in part.classes]
        return Element(self.tag, {}, kept).text


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} twice"
        own = Element(tag, dict(attrs))
        self.open[-1].parts.append(own)
        if tag not in VOID:
            self.open.append(own)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def parse(text: str) -> Element:
    """The document; an AssertionError where tags do not match."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == [parser.root], "an element is not closed"
    return parser.root


def data_of(page: Element, attribute: str) -> dict[str, Any]:
    """Id of a chart -> the JSON that is drawn there."""
    scripts = [own for own in page.all("script") if attribute in own.attrs]
    return {own.attrs[attribute] or "": json.loads("".join(map(str, own.parts))) for own in scripts}


def grid(table: Element) -> list[list[Element | None]]:
    """The rows of a table's bodies; None where a cell of an earlier row or column reaches."""
    rows: list[list[Element | None]] = []
    reach: dict[int, int] = {}  # column -> rows that its cell still covers
    for row in [own for body in table.all("tbody") for own in body.all("tr")]:
        cells, column = [], 0
        for cell in row.all("td", "th"):
            while reach.get(column):
                reach[column] -= 1
                cells.append(None)
                column += 1
            width, height = (int(cell.attrs.get(name) or 1) for name in ("colspan", "rowspan"))
            cells += [cell, *[None] * (width - 1)]
            reach |= {column + i: height - 1 for i in range(width)}
            column += width
        rows.append(cells)
    return rows


def stale(pages: dict[str, str], *starts: str) -> list[str]:
    """Names of the pages, of those that start so, whose committed files are others or missing."""
    chosen = {name: text for name, text in pages.items() if name.startswith(starts)}
    assert chosen, f"no page starts with {starts}"
    return sorted(name for name, text in chosen.items() if _committed(name) != text)


def _committed(name: str) -> str:
    path = RESULTS / "site" / name
    return path.read_text(encoding="utf-8") if path.exists() else ""
