"""Commonsense questions in LLM-Adapters' format: facts of the tasks, reading and validation, prompt texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ham.files import read_bytes

from .base import DataError

FOLDER = "commonsense"
TRAIN_FILE = "commonsense_170k.json"
SOURCE = "https://github.com/AGI-Edgerunners/LLM-Adapters"
_FIELDS = ("instruction", "input", "output", "answer")
_INDENT = " " * 16
_TASK = "Below is an instruction that describes a task"
_CONTEXT = ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request."
_FORMAT = "Answer format:"
RESPONSE = "### Response:"
"""The line that precedes the answer."""


@dataclass(frozen=True)
class QuestionSet:
    """Facts of one task.

    Args:
        options: the answers that its regular expression accepts, in the order of commonsense_evaluate.py.
        test: number of questions in test.json.
        train: number of examples in train.json.
    """

    options: tuple[str, ...]
    test: int
    train: int

    def find(self, text: str) -> str:
        """The first option that occurs anywhere in a text; "" without one."""
        match = re.search("|".join(self.options), text)
        return match.group() if match else ""


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, count + 1))


# Options: commonsense_evaluate.py of NVlabs/DoRA. Together the training sets have the 170,420 examples of
# commonsense_170k.json
TASKS = {
    "boolq": QuestionSet(("true", "false"), 3270, 9427),
    "piqa": QuestionSet(_numbered("solution", 2), 1838, 16113),
    "social_i_qa": QuestionSet(_numbered("answer", 5), 1954, 33410),
    "hellaswag": QuestionSet(_numbered("ending", 4), 10042, 39905),
    "winogrande": QuestionSet(_numbered("option", 2), 1267, 63238),
    "ARC-Easy": QuestionSet(_numbered("answer", 5), 2376, 2251),
    "ARC-Challenge": QuestionSet(_numbered("answer", 5), 1172, 1119),
    "openbookqa": QuestionSet(_numbered("answer", 5), 500, 4957),
}
"""The eight tasks of Table 11 by the name of their folder."""


@dataclass(frozen=True)
class Record:
    """One example of a file.

    Args:
        instruction: the question, its options and the line "Answer format: ...".
        input: further context; empty in all files of the eight tasks.
        output: the text to learn, "the correct answer is ...".
        answer: the correct option.
    """

    instruction: str
    input: str
    output: str
    answer: str


@dataclass(frozen=True)
class Question:
    """One question of a test set.

    Args:
        index: position in test.json, from 0.
        prompt: the text that the model continues.
        options: the answers that the question offers.
        answer: the correct one.
    """

    index: int
    prompt: str
    options: tuple[str, ...]
    answer: str


def read_records(path: Path, options: Sequence[str] = ()) -> list[Record]:
    """Read a file of examples, at least one.

    Args:
        path: path of a JSON file, a list of objects.
        options: answers that the file may have; empty: any.

    Raises:
        FileNotFoundError: the file is missing.
        DataError: the file or one of its records is invalid; the message names the first one.
    """
    cure = f"get the file again from {SOURCE}"
    try:
        content = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({str(error).splitlines()[0]}): {cure}") from None
    if not isinstance(content, list) or not content:
        raise DataError(f"{path} is not a list of at least one example: {cure}")
    for index, entry in enumerate(content):
        if problem := _problem(entry, options):
            raise DataError(f"{path}: record {index} (from 0) {problem}; fix the record, or {cure}")
    return [Record(*(entry[field] for field in _FIELDS)) for entry in content]


def file_names() -> list[str]:
    """The files that experiments can read, relative to the folder."""
    return [TRAIN_FILE, *(f"{task}/{part}.json" for task in TASKS for part in ("test", "train"))]


def describe(folder: Path) -> str:
    """A line about the files in the folder, after a check of each file's records and their number.

    Raises:
        DataError: a file is invalid, or all files are missing.
    """
    facts: dict[str, tuple[tuple[str, ...], int]] = {
        TRAIN_FILE: ((), sum(task.train for task in TASKS.values()))
    }
    for task, known in TASKS.items():
        facts |= {f"{task}/test.json": (known.options, known.test)}
        facts |= {f"{task}/train.json": (known.options, known.train)}
    present, missing = [], []
    for name, (options, expected) in facts.items():
        try:
            count = len(read_records(folder / name, options))
        except FileNotFoundError:
            missing += [name] if name == TRAIN_FILE or name.endswith("test.json") else []
            continue
        if count != expected:
            raise DataError(
                f"{folder / name} has {count} records, not {expected}: get it again from {SOURCE}"
            )
        present.append(
            f"{name.replace('/test.json', '')}: {count} " + ("questions" if "test" in name else "examples")
        )
    if not present:
        raise DataError(f"{folder} has none of the files of {SOURCE}")
    return "; ".join(present) + (f"; missing: {', '.join(missing)}" if missing else "")


def _problem(entry: Any, options: Sequence[str]) -> str:
    """What is wrong with a record; "" if nothing is."""
    if not isinstance(entry, dict):
        return f"is a {type(entry).__name__}, not an object with the fields {', '.join(_FIELDS)}"
    for field in _FIELDS:
        if field not in entry:
            return f"has no field {field!r}"
        if not isinstance(entry[field], str):
            return f"has {field} = {str(entry[field])[:40]!r}, which is not a string"
        if field != "input" and not entry[field].strip():
            return f"has an empty {field}"
    if options and entry["answer"] not in options:
        return f"has answer = {entry['answer'][:40]!r}, which is not one of {'/'.join(options)}"
    return ""


def offered_options(instruction: str, options: Sequence[str]) -> tuple[str, ...]:
    """The options after the last "Answer format:" of an instruction, in its order; without that line, all."""
    _, _, offered = instruction.rpartition(_FORMAT)
    matches = re.findall("|".join(options), offered) if _FORMAT in instruction else []
    return tuple(dict.fromkeys(matches)) or tuple(options)


def training_text(record: Record) -> str:
    """Prompt and output, in the words and white space of `generate_prompt` in NVlabs/DoRA's finetune.py."""
    first = f"{_TASK}{_CONTEXT}{_REQUEST} " if record.input else f"{_TASK}{_REQUEST}  "
    return _blocks(first, record, blank_line=_INDENT) + record.output


def evaluation_prompt(record: Record) -> str:
    """The prompt of NVlabs/DoRA's commonsense_evaluate.py.

    It has fewer blanks than that of training: one less at the end of its first line, and none in the lines
    between the blocks.
    """
    first = f"{_TASK}{_CONTEXT}{_REQUEST}" if record.input else f"{_TASK}{_REQUEST} "
    return _blocks(first, record, blank_line="")


def _blocks(first: str, record: Record, blank_line: str) -> str:
    """The blocks are indented by 16 blanks, as in the sources' triple-quoted strings."""
    blocks = {"### Instruction:": record.instruction}
    if record.input:
        blocks["### Input:"] = record.input
    lines = [first, ""]
    for title, text in blocks.items():
        lines += [f"{_INDENT}{title}", f"{_INDENT}{text}", blank_line]
    return "\n".join([*lines, f"{_INDENT}{RESPONSE}", _INDENT])
