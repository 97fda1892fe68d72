"""STR's calibration: which thresholds are tried, when it ends, and which trial becomes the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ham.run import calibrate_str as module
from ham.run.calibrate_str import TOLERANCE, TRIALS, calibrate_str, check_optimizer
from ham.run.config import Config, ConfigError, load
from ham.run.config.optimization import AdamWConfig
from ham.run.logger import RunLogger
from pruning.str import Calibrate, stable_decay

LR_SUM = 8.0


@pytest.fixture(scope="module")
def cfg() -> Config:
    """A target of 90 % and no momentum, so that a decay below 1 / lr is stable."""
    made = load(["+exp=str_s90", "+demo=digits", "sparsifier.calibrate=search", "optimizer.momentum=0"])
    return replace(made, optimizer=replace(made.optimizer, lr=0.5))


@pytest.fixture
def search(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`search([0.8, 0.95], [0.5])`: trials of these sparsities, and the decays proposed after each."""

    def run(sparsities: list[float], proposed: list[float], first: float = 0.25, **changes: Any) -> Any:
        tried: list[float] = []
        proposals = iter(proposed)

        def train(trial: Config, folder: Path, config_hash: str) -> dict[str, Any]:
            number = len(tried)
            assert trial.resume and trial.sparsifier.calibrate is Calibrate.none and config_hash == "hash"
            assert folder == tmp_path / "run" / f"trial{number}"
            tried.append(trial.sparsifier.threshold_decay)
            folder.mkdir(parents=True)
            (folder / "last.pt").write_text(f"weights {number}")
            (folder / "lock").write_text("of the trial")
            content = {"config_hash": "hash", "metrics": {}, "sparsity": {"overall": sparsities[number]}}
            (folder / "summary.json").write_text(json.dumps(content))
            return content

        monkeypatch.setattr(module, "_lr_sum", lambda cfg: LR_SUM)
        monkeypatch.setattr(type(cfg.sparsifier), "first_decay", lambda self, lr_sum, momentum: first)
        monkeypatch.setattr(module, "_next_decay", lambda folder, lr_sum, momentum: next(proposals, 0.0))
        logger = RunLogger(tmp_path / "run", cfg)
        try:
            summary = calibrate_str(replace(cfg, **changes), logger, "hash", train)
        finally:
            logger.close()
        return tried, summary

    return run


def test_a_trial_within_the_tolerance_ends_the_search(search: Callable[..., Any], tmp_path: Path) -> None:
    tried, summary = search([0.8, 0.9035], [0.5])
    assert tried == [0.25, 0.5]
    first, second = summary["search"]
    assert first == {"threshold_decay": 0.25, "sparsity": 0.8, "miss": pytest.approx(-0.1)}
    assert second["miss"] == pytest.approx(0.0035)
    folder = tmp_path / "run"
    assert (folder / "last.pt").read_text() == "weights 1" and (folder / "lock").read_text() == ""
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["sparsity"] == {"overall": 0.9035}


def test_the_closest_of_six_trials_becomes_the_run(search: Callable[..., Any], tmp_path: Path) -> None:
    assert (TRIALS, TOLERANCE) == (6, 0.004)
    misses = [0.8, 0.95, 0.86, 0.91, 0.87, 0.93]
    tried, summary = search(misses, [0.5, 0.4, 0.45, 0.42, 0.44])
    assert tried == [0.25, 0.5, 0.4, 0.45, 0.42, 0.44] and len(summary["search"]) == 6
    assert (tmp_path / "run" / "last.pt").read_text() == "weights 3"


def test_a_proposal_outside_of_the_bracket_is_its_middle(search: Callable[..., Any], cfg: Config) -> None:
    """Below the target the decay is too small; the upper end is 95 % of the largest stable decay."""
    high = 0.95 * stable_decay(0.5, 0.0)
    tried, _ = search([0.8, 0.95, 0.85, 0.9], [0.25, 9.0, 0.1])
    middle = (0.25 + high) / 2
    assert high == 1.9 and tried == [0.25, middle, (0.25 + middle) / 2, ((0.25 + middle) / 2 + middle) / 2]


def test_the_first_decay_is_stable_and_a_narrow_bracket_ends_the_search(search: Callable[..., Any]) -> None:
    tried, summary = search([0.8], [], first=50.0)
    assert tried == [1.9] and len(summary["search"]) == 1
    assert summary["search"][0]["threshold_decay"] == 1.9


def test_a_bracket_of_a_thousandth_is_narrow(search: Callable[..., Any]) -> None:
    tried, _ = search([0.95, 0.8, 0.9], [1.0 - 0.0011, 1.0 - 0.0005], first=1.0)
    assert len(tried) == 3


def test_a_search_that_starts_again_deletes_the_earlier_one(
    search: Callable[..., Any], cfg: Config, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    (folder / "previous.pt").write_text("of the earlier one")
    tried, summary = search([0.9], [], resume=False)
    assert tried == [0.25] and len(summary["search"]) == 1
    assert {path.name for path in folder.iterdir()} == {"lock", "trial0", "last.pt", "summary.json"}


def test_other_optimizers_are_refused(cfg: Config) -> None:
    other = replace(cfg, optimizer=AdamWConfig(lr=0.1))
    message = r"^sparsifier\.calibrate=search needs SGD: use calibrate=ramp with other optimizers$"
    with pytest.raises(ConfigError, match=message):
        check_optimizer(other)
    check_optimizer(cfg)


def test_the_rates_of_all_steps_are_added(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of the factors 1, 0.75, 0.5 and 0.25."""
    schedule = replace(cfg.optimizer.schedule, warmup=0.0)
    made = replace(cfg, epochs=2, optimizer=replace(cfg.optimizer, schedule=schedule))
    loaders = SimpleNamespace(train=[None, None])
    monkeypatch.setattr(type(cfg.data), "load", lambda self, **_: loaders)
    assert module._lr_sum(made) == 0.5 * 2.5


def test_the_next_decay_is_that_of_the_trials_sparsifier(monkeypatch: pytest.MonkeyPatch) -> None:
    sparsifier = SimpleNamespace(next_decay=lambda *arguments: arguments)
    monkeypatch.setattr(module, "load_run", lambda folder: (None, folder, sparsifier))
    assert module._next_decay(Path("trial0"), 8.0, 0.5) == (8.0, 0.5)
