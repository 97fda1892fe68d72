"""Table 5, training details: not runs but what configs/ says."""

from __future__ import annotations

import csv
import io
from typing import Any

import yaml
from plan import CONFIGS, lock
from render import Text

NAME = "table05"
COLUMNS = ("dataset", "model", "lr", "weight_decay", "epochs", "batch_size", "optimizer", "lr_schedule")
BASES = ("cifar100_rn18", "imagenet_rn50", "imagenet_deit")  # in the paper's order
_NOTES = (
    "Read from configs/base, configs/optimizer and the experiments over them. Controls that alter a value of "
    "the paper's on purpose (matched decay) are not counted.",
)


def rows() -> list[dict[str, Any]]:
    """A dictionary with COLUMNS for each base; `epochs` is a list."""
    return [_row(name) for name in BASES]


def _row(name: str) -> dict[str, Any]:
    base = _yaml("base", name)
    groups = {key: value for entry in base["defaults"] for key, value in entry.items()}
    kind = groups["override /optimizer"]
    optimizer = _yaml("optimizer", kind) | base["optimizer"]
    over = [facts for facts in lock()[""].values() if facts.base == name]
    momentum = f" m={optimizer['momentum']:g}" if "momentum" in optimizer else ""
    sam = ", sam" if any(facts.passes == 2 for facts in over) else ""
    return {
        "dataset": groups["override /data"],
        "model": groups["override /model"],
        "lr": float(optimizer["lr"]),  # YAML 1.1 reads 5e-5 as text
        "weight_decay": float(optimizer["weight_decay"]),
        "epochs": sorted({facts.epochs for facts in over}),
        "batch_size": base["batch_size"],
        "optimizer": f"{kind}{momentum}{sam}",
        "lr_schedule": optimizer["schedule"]["kind"],
    }


def text() -> Text:
    """The table in words."""
    head = tuple(column.replace("_", " ") for column in COLUMNS)
    block = tuple(tuple(_word(row[column]) for column in COLUMNS) for row in rows())
    return Text(NAME, "Table 5. Training details", _NOTES, head, (block,))


def comma_separated() -> str:
    """The table as CSV; several epochs are separated by blanks."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows([_word(row[column]).replace(" / ", " ") for column in COLUMNS] for row in rows())
    return out.getvalue()


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _yaml(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
