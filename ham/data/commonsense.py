"""Commonsense fine-tuning of a language model (Table 11): examples, questions, tokens and batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Data, DataError, derived_seed, register
from .commonsense_files import (
    FOLDER,
    TASKS,
    TRAIN_FILE,
    Question,
    Record,
    evaluation_prompt,
    offered_options,
    read_records,
    training_text,
)

IGNORED = -100
"""Label of a token that does not count in the loss."""


class Scoring(StrEnum):
    """How a model answers: it generates text, with 4 beams or greedily, or compares likelihoods."""

    beam = "beam"
    greedy = "greedy"
    likelihood = "likelihood"


@dataclass(frozen=True)
class Examples:
    """The training files, split.

    Args:
        train: examples to learn.
        valid: held-out examples; empty with val_set_size=0.
    """

    train: list[Record]
    valid: list[Record]


@register("commonsense")
@dataclass
class Commonsense(Data):
    """Files in LLM-Adapters' format; the defaults are DoRA's commonsense set-up.

    Args:
        root: the folder of the files; empty: $HAM_DATA/commonsense.
        train: files of training examples, relative to `root`.
        tests: tasks to evaluate, each in <root>/<task>/test.json.
        cutoff_len: number of tokens after which a training text is cut off.
        val_set_size: number of training examples that are held out.
        examples: number of training examples that are used, a random subset; 0: all.
        questions: number of questions per task that are used, a random subset; 0: all.
        scoring: see `Scoring`.
        eval_every: number of steps between two evaluations of the held-out examples, and two checkpoints.
        load_best: evaluate the checkpoint with the lowest loss on the held-out examples; false: the last one.
        score_before: answer the questions also before training.
        split_seed: seed of the held-out examples and of the subsets, which are the same in every run.
    """

    root: str = ""
    train: list[str] = field(default_factory=lambda: [TRAIN_FILE])
    tests: list[str] = field(default_factory=lambda: list(TASKS))
    cutoff_len: int = 256
    val_set_size: int = 120
    examples: int = 0
    questions: int = 0
    scoring: Scoring = Scoring.beam
    eval_every: int = 80
    load_best: bool = True
    score_before: bool = False
    split_seed: int = 42

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown task, a repeated or missing file, or a number out of range."""
        for key, names in (("train", self.train), ("tests", self.tests)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"data.{key} must list each name once, and at least one: got {list(names)}")
        if unknown := [name for name in self.tests if name not in TASKS]:
            raise ValueError(f"unknown task data.tests={unknown[0]!r}: choose from {', '.join(TASKS)}")
        if self.cutoff_len < 1:
            raise ValueError(f"data.cutoff_len must be at least 1 token, got {self.cutoff_len}")
        if self.eval_every < 1:
            raise ValueError(f"data.eval_every must be at least 1 step, got {self.eval_every}")
        for key in ("val_set_size", "examples", "questions", "split_seed"):
            if (value := getattr(self, key)) < 0:
                raise ValueError(f"data.{key} must not be negative, got {value}")
        self.scoring = Scoring(self.scoring)

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return Path(self.root or Path(os.environ.get("HAM_DATA", "."), FOLDER))

    def load_examples(self) -> Examples:
        """Read the training files and split them.

        The held-out examples are those of `train_test_split(test_size=val_set_size, seed=split_seed)` of the
        library datasets, as in DoRA's finetune.py. A subset is the beginning of the same permutation.

        Raises:
            DataError: a file is missing or invalid, or has too few examples.
        """
        records = [record for name in self.train for record in self._read(name)]
        needed = self.val_set_size + max(self.examples, 1)
        if len(records) < needed:
            raise DataError(
                f"{', '.join(self.train)} in {self.folder}: {len(records)} examples are fewer than the "
                f"{needed} of data.examples and data.val_set_size: lower them, or add files to data.train"
            )
        order = np.random.default_rng(self.split_seed).permutation(len(records)).tolist()
        valid, train = order[: self.val_set_size], order[self.val_set_size :]
        train = train[: self.examples or None]
        return Examples([records[i] for i in train], [records[i] for i in valid])

    def load_questions(self, task: str) -> list[Question]:
        """The questions of a task in the order of its file.

        With questions=0 the file must have the task's known number of questions.

        Raises:
            DataError: the file is missing or invalid, or has too few questions.
        """
        facts, name = TASKS[task], f"{task}/test.json"
        records = self._read(name, facts.options)
        if not self.questions and len(records) != facts.test:
            raise DataError(
                f"{self.folder / name} has {len(records)} questions, not the {facts.test} of {task}: "
                f"get it again with {_prepare_command(self.folder)}, or set data.questions"
            )
        if self.questions > len(records):
            raise DataError(
                f"{self.folder / name} has {len(records)} questions: lower data.questions={self.questions}"
            )
        rng = np.random.default_rng(derived_seed(self.split_seed, f"questions {task}"))
        chosen = sorted(rng.permutation(len(records))[: self.questions or None].tolist())
        return [_question(index, records[index], facts.options) for index in chosen]

    def _read(self, name: str, options: Sequence[str] = ()) -> list[Record]:
        path = self.folder / name
        try:
            return read_records(path, options)
        except FileNotFoundError:
            cure = f"set HAM_DATA or data.root, or see {_prepare_command(self.folder)}"
            raise DataError(f"{path} is missing: {cure}") from None


def _prepare_command(folder: Path) -> str:
    return f"python scripts/prepare_data.py commonsense --to {folder.parent}"


def _question(index: int, record: Record, options: Sequence[str]) -> Question:
    offered = offered_options(record.instruction, options)
    return Question(index, evaluation_prompt(record), offered, record.answer)


def tokenize(tokenizer: Any, text: str, cutoff_len: int) -> list[int]:
    """Token ids of a text: cut off after `cutoff_len`, and an EOS appended where there is room for one.

    Args:
        tokenizer: a tokenizer of transformers.
        text: the text to encode.
        cutoff_len: number of tokens.
    """
    ids = list(tokenizer(text, truncation=True, max_length=cutoff_len)["input_ids"])
    eos = tokenizer.eos_token_id
    return [*ids, eos] if len(ids) < cutoff_len and ids[-1:] != [eos] else ids


def encode_examples(records: Sequence[Record], tokenizer: Any, cutoff_len: int) -> list[dict[str, list[int]]]:
    """What a Trainer reads: input_ids, attention_mask and labels of each example, not padded.

    The loss is over the entire text (train_on_inputs of DoRA's finetune.py), so labels are the input_ids.
    """
    ids = (tokenize(tokenizer, training_text(record), cutoff_len) for record in records)
    return [{"input_ids": row, "attention_mask": [1] * len(row), "labels": list(row)} for row in ids]


def collate(
    examples: Sequence[dict[str, list[int]]], *, pad_id: int = 0, multiple: int = 8
) -> dict[str, Tensor]:
    """Pad examples on the left to the longest one, rounded up to a multiple.

    Args:
        examples: examples from `encode_examples`.
        pad_id: token of the padding; 0, as in DoRA's finetune.py.
        multiple: the width is a multiple of this number of tokens.

    Returns:
        input_ids, attention_mask (0 on padding) and labels (-100 on padding), int64 [N, width].
    """
    longest = max(len(example["input_ids"]) for example in examples)
    width = -(-longest // multiple) * multiple
    fills = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    return {
        key: torch.tensor([[fill] * (width - len(row[key])) + list(row[key]) for row in examples])
        for key, fill in fills.items()
    }
