"""Small files in LLM-Adapters' format, for tests."""

import json
from pathlib import Path

from ham.data.commonsense_files import TASKS


def record(task: str, number: int, **changes: str) -> dict[str, str]:
    """Record `number` of a task; its correct option is the number-th one, counted around."""
    options = TASKS[task].options
    answer = options[number % len(options)]
    question = f"Is {number} the number of this question? " + "Think about it. " * (number % 4)
    return {
        "instruction": f"{question}\n\nAnswer format: {'/'.join(options)}",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
        **changes,
    }


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_folder(root: Path, *, train: int = 40, test: int = 12, tasks: tuple[str, ...] = ("boolq",)) -> Path:
    """root/train.json and root/<task>/test.json."""
    write(root / "train.json", [record("boolq", number) for number in range(train)])
    for task in tasks:
        write(root / task / "test.json", [record(task, number) for number in range(test)])
    return root
