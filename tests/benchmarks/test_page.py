"""docs/benchmarks.md is what benchmarks/page.py writes; the README has no other figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import page
import pytest

from ham.files import ROOT

FIGURE = r"\d[\d,.]*\s(?:ms|us|GB/s|MiB|images/s|launches|bytes a weight|times as fast)\b"
"""A number with a unit of the benchmarks."""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the committed results, to change."""
    for file in page.RESULTS.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    return tmp_path


def change(results: Path, name: str, edit) -> dict[str, str]:
    file = results / f"{name}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return page.figures(results)


def test_the_page_is_up_to_date():
    written = page.page(page.TEMPLATE.read_text(), page.figures())
    stale = "docs/benchmarks.md is stale: change benchmarks/page.md and run python benchmarks/page.py"
    assert page.PAGE.read_text() == written, stale


def test_every_figure_has_a_place():
    names = set(re.findall(r"\{(\w+)\}", page.TEMPLATE.read_text()))
    assert names == page.figures().keys()


def unwritten(text: str, page_text: str) -> list[str]:
    """Figures with a unit of the benchmarks that the page does not have."""
    flat = " ".join(page_text.split())
    return [found for found in re.findall(FIGURE, " ".join(text.split())) if found not in flat]


def test_figures_of_the_readme_are_on_the_page():
    wrong = unwritten((ROOT / "README.md").read_text(), page.PAGE.read_text())
    assert not wrong, f"{wrong} are not in docs/benchmarks.md: quote its figures"


def test_another_figure_is_found():
    assert unwritten("HAM takes 9.5 ms,\n32 times\nas fast", "takes 9.4 ms, 32 times as fast") == ["9.5 ms"]


def test_figures_follow_the_results(results):
    before = page.figures(results)
    ms = json.loads((results / "optimizer.json").read_text())["median_ms"]
    assert before["ham_added"] == f"{ms['SGD fused + HAM'] - ms['SGD fused']:.1f}"
    after = change(results, "optimizer", lambda c: c["median_ms"].update({"SGD fused": 1.0}))
    assert after["ham_added"] == f"{ms['SGD fused + HAM'] - 1:.1f}"
    after = change(results, "molecules", lambda c: c.update(epoch_seconds=1234))
    assert after["molecule_epoch"] == "1,234"
    after = change(results, "masks", lambda c: c.update(sparsity=0.5))
    assert after["mask_sparsity"] == "50 %"


def test_spreads_are_shown_where_they_were_recorded(results):
    after = change(results, "masks", lambda c: c.update(median_s={"a": 2, "b": 3}, spread_s={"a": [1, 4]}))
    assert "| a | 2.00 (1.00 to 4.00) |" in after["masks"]
    assert "| b | 3.00 |" in after["masks"]


def test_all_benchmarks_show_their_spread(results):
    change(results, "optimizer", lambda c: c.update(spread_ms={key: [111, 222] for key in c["median_ms"]}))
    change(results, "molecules", lambda c: c["step"].update(spread={"ours": [333, 444], "stock": [1, 2]}))
    for kind in ("steps", "overheads"):
        add = lambda c, kind=kind: [row.update(spread_ms=[555, 666]) for row in c[kind]]  # noqa: E731
        after = change(results, "throughput-cpu", add)
    rows = after["ham"].splitlines()[2:]
    assert rows and all("(111.0 to 222.0)" in row for row in rows)
    assert "(333.0 to 444.0)" in after["molecules"]
    assert "(555 to 666)" in after["steps"] and "(555.0 to 666.0)" in after["overheads"]


def test_a_part_that_was_not_measured_says_so(results):
    def keep_ham(content):
        content["overheads"] = [row for row in content["overheads"] if row["part"] == "HAM"]

    after = change(results, "throughput-cpu", keep_ham)
    lines = after["overheads"].splitlines()[2:]
    assert [page.NOT_MEASURED in line for line in lines] == [False, True, True, True, True]


def test_a_row_of_counts_worked_by_hand():
    row = {"launches": 100, "read": 3000, "written": 1000, "syncs": 0, "live": 2000, "peak": 9000}
    more = {
        "step": "m",
        "launches": 400,
        "read": 5000,
        "written": 3000,
        "syncs": 2,
        "live": 10_000,
        "peak": 9500,
    }
    base = {"step": page.LOOP, **row}
    facts = {"weights": 1000, "batch_size": 1, "rows": [base, row | more]}
    lines = page.count_table(facts, launch_us=2.5).splitlines()
    assert lines[2] == "| ham.run's step | 100 | - | 0.00 | - | 0 | - | - | 0.25 | 0.25 | 0.25 | - |"
    assert lines[3] == "| m | 400 | 300 | 0.00 | 4.0 | 2 | 8.0 | 0.5 | 1.00 | 1.00 | 1.00 | 300.0 % |"


def test_an_unknown_name_is_an_error():
    with pytest.raises(KeyError, match="nothing"):
        page.page("{nothing}", {"something": ""})
