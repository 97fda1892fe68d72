"""Writes all pages of the site from the records."""

from __future__ import annotations

import shutil
from pathlib import Path

from ham.files import atomic_write_text

from . import curves, library, overview, pages, runs, sources, study, tables, theory


def texts(results: Path) -> tuple[dict[str, str], list[str]]:
    """The pages of a folder of results: path in the site -> HTML, and a line for each invalid record."""
    found = sources.read(results)
    result, problems = pages_of(found)
    result[theory.PAGE], odd = theory.page(results / "theory")
    return result, [*found.problems, *problems, *odd]


def pages_of(found: sources.Sources) -> tuple[dict[str, str], list[str]]:
    """The pages of these records, and a line for each that lacks its epochs."""
    shown, (studies, problems) = tables.build(found), study.build(found)
    drawn = curves.drawn(found)
    result = overview.texts(found, shown, studies)
    result |= tables.texts(shown, found) | runs.texts(found, drawn) | curves.texts(found, drawn)
    return result | study.texts(studies, found), problems


def write_site(results: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the site into a folder; returns the paths of its pages and a line for each invalid record.

    Pages of an earlier call that no longer exist are removed; other files in the folder are left alone.

    Raises:
        ModuleNotFoundError: jinja2 or vl-convert-python is not installed.
        PlanError: configs/lock.json is out of date.
        OSError: a file cannot be read or written.
    """
    library.write(folder / "assets")  # first: it may be missing
    written, problems = texts(results)
    shutil.copytree(pages.ROOT / "assets", folder / "assets", dirs_exist_ok=True)
    for page, text in written.items():
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
            atomic_write_text(path, text)
    for path in set(folder.rglob("*.html")) - {folder / page for page in written}:
        if pages.GENERATOR in path.read_text(encoding="utf-8", errors="replace"):
            path.unlink()
    return [folder / page for page in written], problems
