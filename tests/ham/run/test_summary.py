"""The contents of summary.json and diverged.json, and when masks are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ham import distributed
from ham.distributed import World
from ham.run import summary as module
from ham.run.config import load
from ham.run.summary import agreed_ranks, finish, identity, summarize, summarize_divergence, timing

CFG = replace(load(["+exp=acdc_s90", "+demo=digits"]), seed=3, epochs=4, overridden=True)
IDENTITY = {
    "exp": "acdc_s90",
    "cell": CFG.cell,
    "demo": "digits",
    "overridden": True,
    "seed": 3,
    "config_hash": "h",
    "task": "images",
}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run of 20 steps in 8 seconds, which has finished 2 epochs."""
    written: list[Any] = []
    directory = SimpleNamespace(provenance=lambda: {"commit": "abc"})
    return SimpleNamespace(
        cfg=CFG,
        config_hash="h",
        epoch=2,
        step=20,
        written=written,
        task=SimpleNamespace(summarize=lambda run: {"metrics": {"top1_last": 50.0}}),
        logger=SimpleNamespace(
            seconds=lambda: 8.04, directory=directory, folder=tmp_path, write_summary=written.append
        ),
        sparsifier=SimpleNamespace(masks=SimpleNamespace(active=False), achieved_sparsity=lambda: 0.0),
    )


def test_a_run_of_the_papers_scale_has_no_demo() -> None:
    assert identity(CFG, "h") == IDENTITY and CFG.cell
    assert identity(load(["+exp=dense"]), "h")["demo"] is None


def test_a_summary_has_result_time_and_origin(run: Any) -> None:
    expected = {
        **IDENTITY,
        **{"status": "done", "epochs": 4, "metrics": {"top1_last": 50.0}},
        "timing": {"seconds": 8.0, "steps": 20, "steps_per_second": 2.49},
        "ranks": {"world_size": 1, "agreed": True},
        "provenance": {"commit": "abc"},
    }
    assert summarize(run) == expected
    assert finish(run) == expected and run.written == [expected]
    assert not list(run.logger.folder.iterdir()), "a dense network has no masks"


@pytest.mark.parametrize(("active", "sparsity"), [(True, 0.0), (False, 0.5), (True, 0.5)])
def test_masks_of_a_sparse_network_are_written_with_their_origin(
    run: Any, monkeypatch: pytest.MonkeyPatch, active: bool, sparsity: float
) -> None:
    run.sparsifier = SimpleNamespace(masks=SimpleNamespace(active=active), achieved_sparsity=lambda: sparsity)
    origins: list[dict[str, Any]] = []
    monkeypatch.setattr(
        module, "save_masks", lambda file, sparsifier, origin: origins.append(origin) or file.write(b"masks")
    )
    finish(run)
    assert origins == [{"exp": "acdc_s90", "demo": "digits", "seed": 3, "config_hash": "h"}]
    assert (run.logger.folder / "masks.pt").read_bytes() == b"masks"


def test_a_divergence_has_its_reason_and_the_epochs_that_were_finished(run: Any) -> None:
    expected = {"status": "diverged", "reason": "nan at step 3", "epochs": 2, "provenance": {"commit": "abc"}}
    assert summarize_divergence(run, "nan at step 3") == IDENTITY | expected


def test_times_are_rounded_to_a_tenth_and_rates_to_a_hundredth(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timing(3.14159, 10) == {"seconds": 3.1, "steps": 10, "steps_per_second": 3.18}
    monkeypatch.setattr(distributed, "world", lambda: World(0, 4))
    assert agreed_ranks() == {"world_size": 4, "agreed": True}
