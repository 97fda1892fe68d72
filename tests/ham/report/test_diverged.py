"""A seed that diverged is named below its table, with the reason, in every text format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import script

from ham.report import plan
from ham.report.diverged import diverged_note
from ham.report.records import write_divergence
from ham.report.spec import RunSpec

COMMAND = script("tables")
LOST = RunSpec("snip_ham_s90", 1)
REASON = "the loss is not finite at step 204"


@pytest.fixture
def lose(make_summary: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[[RunSpec], Path]:
    """`lose(run)`: the record of a run that diverged in epoch 3."""

    def write(run: RunSpec) -> Path:
        content = make_summary(run, status="diverged", reason=REASON, epochs=3)
        return write_divergence(run, content, tmp_path)

    return write


@pytest.mark.parametrize("demo", ["", "digits"])
def test_a_table_names_the_seed_that_diverged(
    demo: str, lose: Callable, write_record: Callable, tmp_path: Path
) -> None:
    for seed in (0, 2):
        write_record(tmp_path, RunSpec("snip_ham_s90", seed, demo=demo), 44.0 + seed)
    lose(RunSpec("snip_ham_s90", 1, demo=demo))
    given = ["--table", "10", "--results", str(tmp_path), *(["--demo", demo] if demo else [])]
    assert COMMAND.main(given) == 0
    for ending in ("md", "tex"):
        text = (tmp_path / "tables" / f"{'demo_' if demo else ''}table10.{ending}").read_text()
        assert "45.00" in text and "(n = 2" in text  # the mean of the two others
        sentence = f"Diverged, hence not in a mean: snip_ham_s90, seed 1 ({REASON})."
        assert " ".join(text.replace("\\_", "_").split()).count(sentence) == 1


def test_tables_without_the_run_do_not_name_it(
    lose: Callable, write_record: Callable, tmp_path: Path
) -> None:
    write_record(tmp_path, RunSpec("acdc_s90", 0))
    lose(LOST)
    assert COMMAND.main(["--table", "4", "--results", str(tmp_path)]) == 0
    assert "Diverged" not in (tmp_path / "tables" / "table04.md").read_text()


def test_a_run_that_was_finished_later_is_not_named() -> None:
    table = plan.table("10")
    assert diverged_note(table, {LOST: REASON}, {}) != ""
    assert diverged_note(table, {LOST: REASON}, {LOST}) == ""
    assert diverged_note(table, {}, {}) == ""


def test_a_damaged_record_of_a_divergence_is_reported(
    lose: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lose(LOST)
    path.write_text(path.read_text().replace('"reason"', '"cause"'))
    assert COMMAND.main(["--table", "10", "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"tables.py: left out {path}: it is incomplete: reason is missing or invalid")
