"""What a run prints, when, and what it keeps."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ham.run import logger as module
from ham.run.config import Config, ConfigError, load
from ham.run.config.schema import WandbConfig, WandbMode
from ham.run.logger import NullLogger, RunLogger, finite_or_none


@pytest.fixture(scope="module")
def cfg() -> Config:
    return replace(load(["+exp=dense", "+demo=digits"]), epochs=9, seed=4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """`clock[0]` is the time."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def logger(tmp_path: Path, cfg: Config, clock: list[float]) -> Iterator[RunLogger]:
    made = RunLogger(tmp_path / "exp" / "seed4", cfg)
    yield made
    made.close()


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_console_shows_an_epoch_a_second_and_the_first_and_last(
    logger: RunLogger, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for epoch, now in ((0, 100.0), (1, 100.5), (2, 101.0), (3, 101.9), (4, 102.0), (8, 102.1)):
        clock[0] = now
        logger.log_epoch({"epoch": epoch, "top1": 1.0})
    assert shown(capsys) == [f"epoch {n}/9  top1 1.0" for n in (1, 3, 5, 9)]
    logger.flush()
    lines = (logger.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3, 4, 8]


def test_the_console_shows_a_line_of_steps_a_second(
    logger: RunLogger, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for step, now in ((1, 100.0), (2, 100.9), (3, 101.0), (9, 101.1)):
        clock[0] = now
        logger.log_steps({"epoch": 0, "step": step, "train_loss": 0.123456}, 9)
    assert shown(capsys) == ["step 1/9  train_loss 0.1235", "step 3/9  train_loss 0.1235"]
    logger.flush()
    logger.flush()
    lines = (logger.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 9]


def test_the_console_leaves_out_what_only_figures_show(
    logger: RunLogger, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = dict.fromkeys(("kept", "l1_sum", "l1_mean", "inverse_metric_at_zero", "step"), 1.0)
    line = {
        "epoch": 0,
        **hidden,
        "layers": {"fc": 0.5},
        "phase": "dense",
        "lr": 0.00005,
        "top1": 12.34567,
        "n": 3,
    }
    logger.log_epoch(line)
    assert shown(capsys) == ["epoch 1/9  phase dense  lr 0.0001  top1 12.3457  n 3"]


def test_each_line_of_the_log_has_its_time(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "strftime", lambda form: form)
    logger.log("one")
    logger.log("two")
    text = (logger.folder / "train.log").read_text()
    assert text == "%Y-%m-%d %H:%M:%S  one\n%Y-%m-%d %H:%M:%S  two\n"


def test_the_loss_is_read_every_five_seconds(logger: RunLogger, clock: list[float]) -> None:
    asked = []
    for now in (100.0, 104.9, 105.0, 109.9, 110.0):
        clock[0] = now
        asked.append(logger.should_log())
    assert asked == [True, False, True, False, True]


def test_the_time_of_a_run_is_that_of_all_its_processes(logger: RunLogger, clock: list[float]) -> None:
    clock[0] = 107.0
    assert logger.seconds() == 7.0
    logger.log_epoch({"epoch": 0})
    logger.flush()
    size = (logger.folder / "metrics.jsonl").stat().st_size
    assert logger.state_dict() == {"metrics_bytes": size, "elapsed": 7.0}
    logger.log_epoch({"epoch": 1})
    logger.flush()
    logger.load_state_dict({"metrics_bytes": size, "elapsed": 50.0})
    assert logger.seconds() == 57.0 and (logger.folder / "metrics.jsonl").stat().st_size == size


class Bar:
    """In the place of tqdm's."""

    made: list[Bar] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.events = options, list[Any]()
        Bar.made.append(self)

    def update(self) -> None:
        self.events.append("update")

    def refresh(self) -> None:
        self.events.append("refresh")

    @staticmethod
    def write(text: str) -> None:
        """Of a line beside the bar."""

    def set_postfix(self, values: dict[str, Any], refresh: bool) -> None:
        self.events.append((values, refresh))

    def close(self) -> None:
        self.events.append("close")


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.5), (False, 30.0)])
def test_the_progress_bar_starts_at_the_step_of_the_run(
    logger: RunLogger, monkeypatch: pytest.MonkeyPatch, terminal: bool, seconds: float
) -> None:
    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    logger.start_progress(30, 7)
    bar = Bar.made[-1]
    assert bar.options == {
        **{"total": 30, "initial": 7, "unit": "step", "mininterval": seconds, "smoothing": 0.05}
    }
    logger.update_progress()
    logger.set_postfix(loss="1.0")
    logger.write_summary({"metrics": {}})
    assert bar.events == ["update", ({"loss": "1.0"}, False), "close"]
    logger.close()
    assert bar.events[3:] == ["close"]


def test_a_bar_that_cannot_be_drawn_is_refreshed(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Bar):
        def update(self) -> None:
            raise OSError("gone")

    logger._bar = Broken()
    logger.update_progress()
    assert logger._bar.events == ["refresh"]


class Wandb:
    """In the place of the package."""

    class errors:
        class Error(Exception):
            """As wandb's."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.summary: dict[str, Any] = {}
        self.finished = 0

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def init(self, **options: Any) -> Any:
        self.options = options
        finish = lambda: setattr(self, "finished", self.finished + 1)  # noqa: E731
        log = lambda values, step: self.logged.append((values, step))  # noqa: E731
        return SimpleNamespace(log=log, summary=self.summary, finish=finish)


def test_wandb_gets_the_numbers_of_each_line_at_its_step(
    tmp_path: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("tqdm.tqdm", Bar)
    logger = RunLogger(
        tmp_path / "exp" / "seed4", replace(cfg, wandb=WandbConfig(mode=WandbMode.offline, project="mine"))
    )
    logger.start_progress(9, 0)
    assert re.fullmatch("[0-9a-f]{16}", wandb.options.pop("id"))
    assert wandb.options == {
        **{"project": "mine", "name": "exp/seed4", "resume": "allow", "mode": "offline"},
        **{"dir": str(logger.folder), "settings": {"silent": True}},
    }
    logger.log_epoch({"epoch": 2, "top1": 1.5, "phase": "dense", "n": 3})
    logger.log_steps({"epoch": 2, "step": 40}, 99)
    logger.flush()
    assert wandb.logged == [({"epoch": 2, "top1": 1.5, "n": 3}, 3), ({"epoch": 2, "step": 40}, 40)]
    logger.write_summary({"metrics": {"top1_last": 50.0}})
    logger.close()
    assert wandb.summary == {"top1_last": 50.0} and wandb.finished == 1


def test_a_refusal_of_wandb_is_one_line(tmp_path: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(Wandb):
        def init(self, **_: Any) -> None:
            raise self.errors.Error("no key\nmore")

    monkeypatch.setitem(sys.modules, "wandb", Refuses())
    with pytest.raises(ConfigError, match=r"^wandb: no key; run wandb login, or use wandb\.mode=offline$"):
        module._open_wandb(tmp_path, cfg)


def test_what_stays_in_the_directory_of_a_deleted_run_is_named(
    logger: RunLogger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.clear()
    assert shown(capsys) == []
    for name in ("b.tex", "a.tex", "last.pt"):
        (logger.folder / name).touch()
    logger.clear()
    assert shown(capsys) == [f"files that do not belong to a run are kept in {logger.folder}: a.tex, b.tex"]


def test_other_ranks_log_nothing(tmp_path: Path, cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    other = NullLogger(tmp_path / "run", cfg)
    for call in (other.clear, other.update_progress, other.flush, other.close):
        assert call() is None
    other.log("x")
    other.start_progress(1, 0)
    other.load_state_dict({})
    assert (other.folder, other.cfg, other.should_log(), other.state_dict()) == (
        tmp_path / "run",
        cfg,
        False,
        {},
    )
    assert capsys.readouterr() == ("", "") and not (tmp_path / "run").exists()


def test_only_floats_that_are_not_finite_become_none() -> None:
    line = {"a": float("nan"), "b": float("inf"), "c": 1.0, "d": 2, "e": "nan", "f": {"g": 1}}
    assert finite_or_none(line) == {"a": None, "b": None, "c": 1.0, "d": 2, "e": "nan", "f": {"g": 1}}
