"""Renders a template of templates/ to a page; everything that enters a template is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ham.report.render import PLUS_MINUS

ROOT = Path(__file__).parent
GENERATOR = '<meta name="generator" content="scripts/report.py of HAM">'
"""What every page has, and no page of others."""
NAVIGATION = (  # page -> its name in the menu
    ("index.html", "Overview"),
    ("tables.html", "Tables"),
    ("runs.html", "Runs"),
    ("curves.html", "Curves"),
    ("study.html", "Study"),
    ("theory.html", "Theory"),
)


def signs(text: str) -> str:
    """A text of tables with the sign for +-."""
    return text.replace("+-", PLUS_MINUS)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["signs"] = signs
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    return environment


def render(template: str, *, page: str, title: str, **context: Any) -> str:
    """A page as HTML.

    Args:
        template: file of templates/.
        page: path of the page in the site, such as "runs/cifar100.html"; links are relative to it.
        title: title of the page, in words.
        context: values of the template.

    Raises:
        jinja2.UndefinedError: the template uses a value that `context` lacks.
    """
    root = "../" * page.count("/")
    values = {"page": page, "title": title, "root": root, "navigation": NAVIGATION, **context}
    return _environment().get_template(template).render(values)
