"""Renders a template of templates/ to a page; everything that enters a template is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROOT = Path(__file__).parent
NAVIGATION = (  # page -> its name in the menu
    ("index.html", "Overview"),
    ("tables.html", "Tables"),
    ("runs.html", "Runs"),
    ("study.html", "Study"),
    ("theory.html", "Theory"),
)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, *, page: str, title: str, **context: Any) -> str:
    """A page as HTML.

    Args:
        template: file of templates/.
        page: path of the page in the site, such as "runs/cifar100.html"; links are relative to it.
        title: of the page, in words.
        context: values of the template.

    Raises:
        jinja2.UndefinedError: the template uses a value that `context` lacks.
    """
    root = "../" * page.count("/")
    values = {"page": page, "title": title, "root": root, "navigation": NAVIGATION, **context}
    return _environment().get_template(template).render(values)
