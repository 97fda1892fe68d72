"""Answer the test questions by the model of a run; the questions are split over the ranks."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ham import distributed
from ham.data.commonsense_files import Question
from ham.models.causal_lm import LanguageModel
from ham.tasks.commonsense_answers import Score, evaluate, settings_hash

from .checkpoint import check_owner
from .config import Config
from .logger import NullLogger, RunLogger
from .loop import Interrupted

ANSWERS = "answers"


@dataclass(frozen=True)
class Answering:
    """Answers the questions of each task, and stops at a signal.

    Args:
        cfg: configuration of the run.
        questions: task -> its questions.
        language: model and tokenizer.
        logger: logger of the run.
        received: names of the stop signals received so far.
    """

    cfg: Config
    questions: dict[str, list[Question]]
    language: LanguageModel
    logger: RunLogger | NullLogger
    received: list[str]

    def all_tasks(self, when: str) -> dict[str, Score]:
        """Task -> score of the current model; `when` names the folder of the answers. Raises Interrupted."""
        folder = self.logger.folder / ANSWERS / when
        return {task: self._task(task, folder) for task in self.questions}

    def _task(self, task: str, folder: Path) -> Score:
        me, data = distributed.world(), self.cfg.data
        own_questions = self.questions[task][me.rank :: me.size]
        part = f".{me.rank}of{me.size}" if me.size > 1 else ""
        language = self.language
        distributed.on_rank_zero(lambda: self._create(folder))
        score = Score(task, 0, 0, 0)
        with suppress(Interrupted):  # until the others have answered their part of this task
            score = evaluate(
                *(language.model, language.tokenizer, task, own_questions, data.scoring),
                path=folder / f"{task}{part}.jsonl",
                settings=settings_hash(self.cfg.model, language.model, task, own_questions, data.scoring),
                log=self.logger.log,
                after_batch=self._raise_if_stopped,
            )
        if distributed.all_reduce_or(int(bool(self.received))):
            name = self.received[0] if self.received else "a signal to another rank"
            raise Interrupted(f"stopped by {name} while it answered questions")
        counts = torch.tensor([score.correct, score.questions, score.unanswered])
        score = Score(task, *distributed.all_reduce_sum(counts).tolist())
        self.logger.log(f"{folder.name} training: {task} {100 * score.correct / score.questions:.2f} %")
        return score

    def _create(self, folder: Path) -> None:
        check_owner(self.logger.folder)
        folder.mkdir(parents=True, exist_ok=True)

    def _raise_if_stopped(self) -> None:
        if self.received:
            raise Interrupted


def accuracies(scores: dict[str, Score], prefix: str = "") -> dict[str, float]:
    """Accuracy of each task in percent, and their mean; nothing without scores."""
    if not scores:
        return {}
    values = {task: 100 * score.correct / score.questions for task, score in scores.items()}
    values["average"] = sum(values.values()) / len(values)
    return {f"{prefix}{name}": value for name, value in values.items()}
