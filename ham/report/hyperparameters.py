"""Tables 5, 13, 16 and 19, hyperparameters: not runs but what configs/ says."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from . import plan
from .render import Text
from .spec import CONFIGS, lock

BASES = ("cifar100_rn18", "imagenet_rn50", "imagenet_deit")  # rows of Table 5, in the paper's order
GRAPH_SETS = {  # rows of Table 13 -> number of graphs, of OGB; the paper has molhiv's and code2's exchanged
    "ogbg-ppa": 158_100,
    "ogbg-molpcba": 437_929,
    "ogbg-molhiv": 41_127,
    "ogbg-code2": 452_741,
}


@dataclass(frozen=True)
class Sheet:
    """A table of settings: `rows` map each of its columns to a value, a list where there are several."""

    name: str
    title: str
    note: str
    rows: tuple[dict[str, Any], ...]

    def text(self) -> Text:
        """The table in words."""
        head = tuple(column.replace("_", " ") for column in self.rows[0])
        block = tuple(tuple(map(_word, row.values())) for row in self.rows)
        return Text(self.name, self.title, (self.note,), head, (block,))

    def comma_separated(self) -> str:
        """The table as CSV; several values are separated by blanks."""
        out = io.StringIO()
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(self.rows[0])
        lines.writerows([_word(value).replace(" / ", " ") for value in row.values()] for row in self.rows)
        return out.getvalue()


def training_details() -> Sheet:
    """Table 5."""
    note = (
        "Read from configs/base, configs/optimizer and the experiments over them. Controls that alter a "
        "value of the paper's on purpose (matched decay) are not counted."
    )
    return Sheet("table05", "Table 5. Training details", note, tuple(map(_training_details, BASES)))


def _training_details(name: str) -> dict[str, Any]:
    base = _yaml("base", name)
    groups = {key: value for entry in base["defaults"] for key, value in entry.items()}
    kind = groups["override /optimizer"]
    optimizer = _yaml("optimizer", kind) | base["optimizer"]
    over = [info for info in lock()[""].values() if info.base == name]
    momentum = f" m={optimizer['momentum']:g}" if "momentum" in optimizer else ""
    sam = ", sam" if any(info.passes == 2 for info in over) else ""
    return {
        "dataset": groups["override /data"],
        "model": groups["override /model"],
        "lr": float(optimizer["lr"]),  # YAML 1.1 reads 5e-5 as text
        "weight_decay": float(optimizer["weight_decay"]),
        "epochs": sorted({info.epochs for info in over}),
        "batch_size": base["batch_size"],
        "optimizer": f"{kind}{momentum}{sam}",
        "lr_schedule": optimizer["schedule"]["kind"],
    }


def graph_classification() -> Sheet:
    """Table 13."""
    rows = []
    for dataset, graphs in GRAPH_SETS.items():
        ham = _yaml("ham", dataset.replace("-", "_"))
        rows.append({"dataset": dataset, "graphs": graphs, "alpha": ham["alpha"], "beta": ham["beta"]})
    note = (
        "Read from configs/ham. Numbers of graphs are OGB's: the paper has those of molhiv and code2 "
        "exchanged."
    )
    return Sheet("table13", "Table 13. HAM's values for graph classification", note, tuple(rows))


def node_classification(number: int, method: str, sign: str) -> Sheet:
    """Table 16 or 19: (alpha, beta) of each set and architecture."""
    rows = []
    for dataset in (*plan.table("14").columns, *plan.table("15").columns):
        values = {}
        for arch in ("gcn", "gat", "sage"):
            ham = _yaml("exp/node", f"{dataset.replace('-', '_')}_{arch}_{method}")["ham"]
            values[arch] = [float(ham["alpha"]), float(ham["beta"])]
        rows.append({"dataset": dataset, **values})
    note = "(alpha, beta) of the experiments node/..., as the paper chose them on the validation nodes."
    title = f"Table {number}. HAM's values for node classification, alpha {sign} 0"
    return Sheet(f"table{number}", title, note, tuple(rows))


SHEETS: dict[str, Callable[[], Sheet]] = {
    "table05": training_details,
    "table13": graph_classification,
    "table16": partial(node_classification, 16, "ham", ">"),
    "table19": partial(node_classification, 19, "nham", "<"),
}


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _yaml(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
