"""A language model's answers to commonsense questions: kept in a file, and counted."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from ham.data.commonsense import Scoring
from ham.data.commonsense_files import TASKS, Question
from ham.files import open_text, read_bytes
from ham.models.causal_lm import CausalLM, adapter_digest

from .generation import BEAMS, NEW_TOKENS, answer


@dataclass(frozen=True)
class Score:
    """How a model did on a task.

    Args:
        task: name of the task.
        correct: number of questions with the correct answer.
        questions: number of all questions.
        unanswered: number of questions whose text names no option; they count as wrong.
    """

    task: str
    correct: int
    questions: int
    unanswered: int


@dataclass(frozen=True)
class Answer:
    """One line of an answer file.

    Args:
        index: position of the question in test.json, from 0.
        text: text of the model after the last "### Response:".
        prediction: the first option in the text; "" without one.
        answer: the correct option.
        correct: True if they are equal.
        settings: `settings_hash` of the evaluation.
    """

    index: int
    text: str
    prediction: str
    answer: str
    correct: bool
    settings: str


def settings_hash(
    spec: CausalLM, model: Any, task: str, questions: Sequence[Question], scoring: Scoring
) -> str:
    """16 hexadecimal digits of what the answers depend on: checkpoint, adapter, task, questions, scoring."""
    content = [
        *(spec.checkpoint, spec.gguf, str(spec.dtype), spec.lora_alpha, adapter_digest(model)),
        *(task, [astuple(question) for question in questions], str(scoring), BEAMS, NEW_TOKENS),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def evaluate(
    model: Any,
    tokenizer: Any,
    task: str,
    questions: Sequence[Question],
    scoring: Scoring,
    *,
    path: Path,
    settings: str,
    log: Callable[[str], None],
    after_batch: Callable[[], None] = lambda: None,
    tokens_per_batch: int = 0,
) -> Score:
    """Answer the questions that have no line in `path` yet, and count all.

    A batch's lines are written as soon as it is answered, so that an interrupted evaluation resumes after its
    last complete line. A file of other settings, or a damaged one, is started again.

    Args:
        model: a model from `CausalLM.load`.
        tokenizer: tokenizer of the model.
        task: name of the task.
        questions: questions from `Commonsense.load_questions`.
        scoring: options of the answers.
        path: JSON lines, fields of `Answer`; only this process writes it.
        settings: hash from `settings_hash`.
        log: prints a line for the reader.
        after_batch: function called after each batch is written; it may raise to interrupt the evaluation.
        tokens_per_batch: see `answer`.
    """
    from tqdm import tqdm

    done = {line.index: line for line in resume_answers(path, settings, log)}
    remaining = [question for question in questions if question.index not in done]
    every = 0.5 if sys.stderr.isatty() else 30.0
    with (
        open_text(path, "a") as file,
        tqdm(
            total=len(questions),
            initial=len(questions) - len(remaining),
            desc=task,
            unit="q",
            mininterval=every,
        ) as bar,
    ):
        for batch in answer(model, tokenizer, remaining, scoring, tokens_per_batch=tokens_per_batch):
            for question, text in batch:
                prediction = TASKS[task].find(text)
                correct = prediction == question.answer
                line = Answer(question.index, text, prediction, question.answer, correct, settings)
                done[line.index] = line
                file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
            bar.update(len(batch))
            after_batch()
    lines = [done[question.index] for question in questions]
    unanswered = sum(not line.prediction for line in lines)
    return Score(task, sum(line.correct for line in lines), len(lines), unanswered)


def resume_answers(path: Path, settings: str, log: Callable[[str], None]) -> list[Answer]:
    """The answers in a file, whose incomplete last line is cut off.

    A file of other settings, or a damaged one, is deleted, and `log` gets a line about it.
    """
    if not path.exists():
        return []
    content = read_bytes(path)
    complete = content[: content.rfind(b"\n") + 1]
    try:
        lines = [Answer(**json.loads(line)) for line in complete.splitlines()]
    except (ValueError, TypeError):
        return _start_again(path, "a damaged line", log)
    if any(line.settings != settings for line in lines):
        return _start_again(path, "answers of another model or other settings", log)
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    return lines


def _start_again(path: Path, reason: str, log: Callable[[str], None]) -> list[Answer]:
    log(f"{path} has {reason}: its questions are answered again")
    path.unlink()
    return []
