"""Every method has a page in docs/methods whose table lists its fields with their defaults."""

from __future__ import annotations

import ast
import re
from dataclasses import MISSING, fields
from enum import Enum

import pytest

import pruning
from ham.files import ROOT
from pruning.base import SPARSIFIERS, Sparsifier
from pruning.parameterization import PARAMETERIZATIONS

PAGES = ROOT / "docs" / "methods"
WITHOUT_PAGE = {"dense", "plain"}
METHODS = {
    **{name: cls for name, cls in SPARSIFIERS.items() if cls.__module__.startswith(f"{pruning.__name__}.")},
    "sign_in": PARAMETERIZATIONS["product"],
}
NAMES = sorted(METHODS.keys() - WITHOUT_PAGE)


def rows(text: str) -> dict[str, str]:
    """Field -> default, as the table of a page states them."""
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, flags=re.MULTILINE))


def default_of(field) -> object:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return value.value if isinstance(value, Enum) else value


@pytest.mark.parametrize("name", NAMES)
def test_a_page_lists_the_fields_and_defaults_of_its_method(name):
    stated = rows((PAGES / f"{name}.md").read_text())
    expected = {field.name: default_of(field) for field in fields(METHODS[name])}
    assert stated.keys() == expected.keys()
    for key, text in stated.items():
        if expected[key] is MISSING or (key == "source" and expected[key] == ""):
            assert text == "-", key
        else:
            assert ast.literal_eval(text.strip("`")) == expected[key], key


def test_there_is_no_page_without_a_method():
    assert {path.stem for path in PAGES.glob("*.md")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_cites_its_source_and_says_what_the_method_needs(name):
    text = (PAGES / f"{name}.md").read_text()
    assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}", text) or name == "mask_from"
    for heading in ("## What it does", "## Switches", "## What it needs and costs"):
        assert heading in text


def test_the_table_of_methods_names_every_public_method_of_a_sparsifier():
    text = (ROOT / "docs" / "sparse_training.md").read_text()
    section = text.partition("## Methods of a sparsifier")[2].partition("\n## ")[0]
    stated = {name for row in section.splitlines() for name in re.findall(r"`(\w+)\(", row.split(" | ")[0])}
    public = {name for name in dir(Sparsifier) if not name.startswith("_")}
    expected = {
        name for name in public if callable(getattr(Sparsifier, name)) and name != "resolve"
    }  # for configurations
    assert stated == expected
