"""Writes all pages of the site from the committed records."""

from __future__ import annotations

import shutil
from pathlib import Path

from ham.files import atomic_write_text

from . import library, pages


def write_site(results: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the site into a folder; returns the paths of its pages and a line for each invalid record."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, problems = {"index.html": pages.render("base.html", page="index.html", title="HAM")}, []
    for page, text in texts.items():
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, text)
    shutil.copytree(pages.ROOT / "assets", folder / "assets", dirs_exist_ok=True)
    library.write(folder / "assets")
    return [folder / page for page in texts], problems
