"""Writes all pages of the site from the records."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ham.files import ROOT, atomic_write_text, read_bytes, read_text

from . import curves, library, overview, pages, runs, sources, study, tables, theory

FOLDERS = ("runs", "tables")
"""Folders of the site that have pages."""


class InvalidTarget(OSError):
    """Pages do not belong in this folder; one line with the cure."""


def render_site(results: Path) -> tuple[dict[str, str], list[str]]:
    """The pages of a folder of results: path in the site -> HTML, and a line for each invalid record."""
    found = sources.read(results)
    result, problems = render_records(found)
    result[theory.PAGE], odd = theory.page(results / "theory")
    return result, [*found.problems, *problems, *odd]


def render_records(found: sources.Sources) -> tuple[dict[str, str], list[str]]:
    """The pages of these records, and a line for each that lacks its epochs."""
    shown, (studies, problems) = tables.build(found), study.build(found)
    panels = curves.panels_by_run(found)
    result = overview.render(found, shown, studies)
    result |= tables.render(shown, found) | runs.render(found, panels) | curves.render(found, panels)
    return result | study.render(studies, found), problems


def write_site(results: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the site into a folder; returns the paths of its pages and a line for each invalid record.

    Pages of an earlier call that no longer exist are removed. Files in assets/ that the site has are
    replaced; other files in the folder are not changed.

    Raises:
        ModuleNotFoundError: jinja2 or vl-convert-python is not installed.
        InvalidTarget: the folder holds the repository, the results or a page of somebody else's.
        PlanError: configs/lock.json is out of date.
        OSError: a file cannot be read or written.
    """
    _check_target(results, folder)
    library.write(folder / "assets")  # first: it may be missing
    written, problems = render_site(results)
    shutil.copytree(pages.ROOT / "assets", folder / "assets", dirs_exist_ok=True)
    for page, text in written.items():
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or read_text(path, errors="replace") != text:
            atomic_write_text(path, text)
    for path in {*_pages_in(folder)} - {folder / page for page in written}:
        path.unlink()
    return [folder / page for page in written], problems


def _check_target(results: Path, folder: Path) -> None:
    """Raise InvalidTarget where pages do not belong."""
    place = folder.resolve()
    for name, kept in (("the repository", ROOT), ("the results", results)):
        if kept.resolve().is_relative_to(place):
            raise InvalidTarget(f"{folder} holds {name}: give a folder of its own, such as {folder / 'site'}")
    index = folder / "index.html"
    if os.path.lexists(index) and index not in _pages_in(folder):
        raise InvalidTarget(f"{index} is not a page of this script: give another folder, or move it away")


def _pages_in(folder: Path) -> list[Path]:
    """The pages that this module wrote, in the folders where it writes pages."""
    places = (folder, *(folder / name for name in FOLDERS))
    files = [
        path
        for place in places
        for path in place.glob("*.html")
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
    ]
    return [path for path in files if pages.GENERATOR in read_bytes(path).decode(errors="replace")]
