from __future__ import annotations

import pytest
from report_fixtures import finish_run, make_epochs, make_summary, paper, same_picture, write_record

__all__ = ["finish_run", "make_epochs", "make_summary", "paper", "same_picture", "write_record"]


@pytest.fixture(scope="session")
def committed() -> dict[str, str]:
    """The pages of the committed records, made now: path -> HTML."""
    from ham.files import RESULTS
    from ham.site.build import render_site

    pages, problems = render_site(RESULTS)
    assert not problems
    return pages
