"""How the ranks share the questions of a task, and what is counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ham import distributed
from ham.distributed import World
from ham.run import answering
from ham.run.answering import Answering, accuracies
from ham.run.loop import Interrupted
from ham.tasks.commonsense_answers import Score

SCORES = {"boolq": Score("boolq", 3, 4, 1), "piqa": Score("piqa", 1, 2, 0)}


def test_accuracies_are_percent_with_their_mean() -> None:
    assert accuracies(SCORES) == {"boolq": 75.0, "piqa": 50.0, "average": 62.5}
    assert accuracies(SCORES, "before_") == {
        "before_boolq": 75.0,
        "before_piqa": 50.0,
        "before_average": 62.5,
    }
    assert accuracies({}) == {}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The share and the file of each evaluation, in which two questions of three are right."""
    calls: list[Any] = []

    def evaluate(
        model: Any, tokenizer: Any, task: str, share: list[int], scoring: str, **options: Any
    ) -> Score:
        calls.append((model, tokenizer, task, share, scoring, options["path"], options["settings"]))
        options["after_batch"]()
        return Score(task, 2, 3, 1)

    monkeypatch.setattr(answering, "evaluate", evaluate)
    monkeypatch.setattr(answering, "settings_hash", lambda *arguments: arguments)
    return calls


def make(folder: Path, *received: str) -> tuple[Answering, list[str]]:
    lines: list[str] = []
    cfg = SimpleNamespace(data=SimpleNamespace(scoring="first"), model="m cfg")
    language = SimpleNamespace(model="model", tokenizer="tokenizer")
    logger = SimpleNamespace(folder=folder, log=lines.append)
    return Answering(cfg, {"boolq": [0, 1, 2, 3, 4], "piqa": [5]}, language, logger, list(received)), lines


def test_each_task_has_a_file_and_a_line(asked: list[Any], tmp_path: Path) -> None:
    made, lines = make(tmp_path / "new")
    assert made.all_tasks("after") == {name: Score(name, 2, 3, 1) for name in ("boolq", "piqa")}
    assert lines == [f"after training: {name} 66.67 %" for name in ("boolq", "piqa")]
    folder = tmp_path / "new" / "answers" / "after"
    assert folder.is_dir()
    (first, second) = asked
    every = [0, 1, 2, 3, 4]
    assert first[:6] == ("model", "tokenizer", "boolq", every, "first", folder / "boolq.jsonl")
    assert first[6] == ("m cfg", "model", "boolq", every, "first") and second[3] == [5]
    made.all_tasks("after")


def test_a_rank_answers_every_second_question_and_the_counts_are_added(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world", lambda: World(1, 2))
    monkeypatch.setattr(distributed, "on_rank_zero", lambda fn: None)
    monkeypatch.setattr(distributed, "all_reduce_or", lambda flag: flag)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda counts: counts + torch.tensor([1, 5, 2]))
    made, lines = make(tmp_path)
    assert made._task("boolq", tmp_path / "before") == Score("boolq", 3, 8, 3)
    assert asked[0][3] == [1, 3] and asked[0][5].name == "boolq.1of2.jsonl"
    assert lines == ["before training: boolq 37.50 %"]


@pytest.mark.parametrize("own", [True, False])
def test_a_signal_to_any_rank_stops_all_after_their_task(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    heard: list[int] = []
    monkeypatch.setattr(distributed, "all_reduce_or", lambda flag: heard.append(flag) or 1)
    made, lines = make(tmp_path, *(["SIGTERM", "SIGUSR1"] if own else []))
    name = "SIGTERM" if own else "a signal to another rank"
    with pytest.raises(Interrupted, match=f"^stopped by {name} while it answered questions$"):
        made._task("boolq", tmp_path)
    assert heard == [int(own)] and lines == [] and len(asked) == 1
