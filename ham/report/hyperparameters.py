"""Tables 5, 13, 16 and 19: hyperparameters, read from configs/."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import plan, search_grid
from .render import Text
from .spec import CONFIGS, lock

BASES = ("cifar100_rn18", "imagenet_rn50", "imagenet_deit")  # rows of Table 5, in the paper's order
GRAPH_SETS = {  # rows of Table 13 -> OGB's number of graphs; the paper swaps those of molhiv and code2
    "ogbg-ppa": 158_100,
    "ogbg-molpcba": 437_929,
    "ogbg-molhiv": 41_127,
    "ogbg-code2": 452_741,
}


@dataclass(frozen=True)
class Sheet:
    """A table without runs: `rows` map each column to a value, or to a list of values; see `Text`."""

    name: str
    title: str
    note: str
    rows: tuple[dict[str, Any], ...]
    caption: str = ""
    formulas: Mapping[str, str] = field(default_factory=dict)

    def to_text(self) -> Text:
        """The table as text."""
        head = tuple(column.replace("_", " ") for column in self.rows[0])
        block = tuple(tuple(map(_format, row.values())) for row in self.rows)
        return Text(self.name, self.title, (self.note,), head, (block,), self.caption, self.formulas)

    def comma_separated(self) -> str:
        """The table as CSV; spaces separate the values of a list."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.rows[0])
        writer.writerows([_format(value).replace(" / ", " ") for value in row.values()] for row in self.rows)
        return out.getvalue()


def training_details() -> Sheet:
    """Table 5."""
    note = (
        "Read from configs/base, configs/optimizer and the experiments based on them. Controls that change a "
        "value of the paper on purpose (matched decay) are excluded."
    )
    caption = (
        "How the paper's vision models are trained: data set, network, learning rate, weight decay, "
        "number of epochs, images per step, optimizer (m: momentum; sam: sharpness aware minimization, "
        "in some runs) and schedule of the learning rate, for every method."
    )
    rows = tuple(map(_training_details, BASES))
    return Sheet("table05", "Table 5. Training details", note, rows, caption)


def _training_details(name: str) -> dict[str, Any]:
    base = _yaml("base", name)
    groups = {key: value for entry in base["defaults"] for key, value in entry.items()}
    kind = groups["override /optimizer"]
    optimizer = _yaml("optimizer", kind) | base["optimizer"]
    infos = [info for info in lock()[""].values() if info.base == name]
    momentum = f" m={optimizer['momentum']:g}" if "momentum" in optimizer else ""
    sam = ", sam" if any(info.passes == 2 for info in infos) else ""
    return {
        "dataset": groups["override /data"],
        "model": groups["override /model"],
        "lr": float(optimizer["lr"]),  # YAML 1.1 reads 5e-5 as text
        "weight_decay": float(optimizer["weight_decay"]),
        "epochs": sorted({info.epochs for info in infos}),
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
        "Read from configs/ham. The numbers of graphs are OGB's; the paper swaps those of molhiv and code2."
    )
    caption = (
        "HAM's strength alpha and decay beta for each graph classification set of Table 12, and the "
        "number of graphs in the set."
    )
    return Sheet("table13", "Table 13. HAM's values for graph classification", note, tuple(rows), caption)


def node_classification(number: int, method: str, sign: str) -> Sheet:
    """Table 16 or 19: (alpha, beta) of each data set and architecture."""
    rows = []
    for table in (plan.table("14"), plan.table("15")):
        for column, dataset in enumerate(table.columns):
            exps = [row.cells[column].exp for row in table.rows]
            bases = [exp for exp in exps if exp in search_grid.bases()]
            values = {
                base.rpartition("_")[2]: list(map(float, search_grid.published(f"{base}_{method}")))
                for base in bases
            }
            rows.append({"dataset": dataset, **values})
    note = "(alpha, beta) of the experiments node/..., which the paper chose on the validation nodes."
    title = f"Table {number}. HAM's values for node classification, alpha {sign} 0"
    name, table_numbers = ("HAM", "14, 15, 17 and 18") if method == "ham" else ("nHAM", "17 and 18")
    caption = (
        f"{name}'s strength alpha and decay beta, as alpha / beta, for each graph (row) and network (column: "
        f"GCN, GAT, GraphSAGE) of Tables {table_numbers}."
    )
    return Sheet(f"table{number}", title, note, tuple(rows), caption)


SHEETS: dict[str, Callable[[], Sheet]] = {
    "table05": training_details,
    "table13": graph_classification,
    "table16": partial(node_classification, 16, "ham", ">"),
    "table19": partial(node_classification, 19, "nham", "<"),
}


def _format(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(_format, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _yaml(group: str, name: str) -> dict[str, Any]:
    return plan.read_yaml(CONFIGS / group / f"{name}.yaml")
