"""How the raw files of OGB's four sets for graph classification are read."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ham.errors import one_line
from ham.files import open_binary

from .. import code2
from ..base import DataError
from ..damaged import DamagedError
from ..graph_set import PARTS, GraphSet, join_graphs
from ..molecules import read_molecules
from .checks import check_graphs, check_labels, check_parts, to_integers
from .package import import_ogb
from .sets import SETS
from .source import Source, instructions


def read(name: str, source: Source, log: Callable[[str], None]) -> GraphSet:
    """Read and check a set; nothing is written. The graphs have 0 walk steps.

    Args:
        name: name of the set.
        source: source from `find_source`.
        log: prints a line for the reader.

    Raises:
        DamagedError: a file is damaged or of another set.
        DataError: a package is missing.
    """
    log(f"{name}: reads {source.folder / source.files[0]}" + ("" if source.is_smiles else " and others"))
    try:
        content = (_read_smiles if source.is_smiles else _read_ogb)(name, source.folder, log)
        check_labels(SETS[name], content["labels"])
        content["parts"] = check_parts(SETS[name], content["parts"])
        tensors = join_graphs(content.pop("graphs"), name)
        check_graphs(SETS[name], tensors)
    except DataError:
        raise
    except (OSError, MemoryError) as error:  # the files may be good
        problem = f"{name}: {source.folder} cannot be read ({one_line(error)})"
        raise DataError(f"{problem}: free memory, and check the disk") from error
    except Exception as error:  # a damaged file can raise anything
        problem = f"{name}: {source.folder} is damaged ({one_line(error)})"
        raise DamagedError(problem, instructions(name), [source.folder]) from error
    texts = {"vocabulary": content.get("vocabulary", []), "words": content.get("words", ())}
    labels, walks = torch.from_numpy(content["labels"]), torch.zeros(len(tensors["nodes"]), 0)
    return GraphSet(name=name, labels=labels, walks=walks, parts=content["parts"], **texts, **tensors)


def _read_smiles(name: str, folder: Path, log: Callable[[str], None]) -> dict[str, Any]:
    content = read_molecules(folder / "raw" / "hiv.csv", import_ogb("utils.features"), log)
    if len(content.labels) != SETS[name].graphs:
        raise ValueError(f"hiv.csv has {len(content.labels)} molecules, not {SETS[name].graphs}")
    return vars(content)


def _read_ogb(name: str, folder: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Graphs, labels and split in OGB's own format, through OGB's reader."""
    facts, rows = SETS[name], {}
    for file in facts.files:
        rows[Path(file).name.removesuffix(".csv.gz")] = _count_rows(folder / file)
    for key in ("num-node-list", "num-edge-list", "graph-label"):
        if rows[key] != facts.graphs:
            raise ValueError(f"raw/{key}.csv.gz has {rows[key]} rows, not {facts.graphs}")
    is_code, reader = facts.kind == "tokens", import_ogb("io.read_graph_raw")
    with contextlib.redirect_stdout(io.StringIO()):
        graphs = reader.read_csv_graph_raw(
            str(folder / "raw"),
            add_inverse_edge=not is_code,  # as in ogb's master.csv
            additional_node_files=code2.NODE_FILES if is_code else [],
        )
    _check_rows(rows, *(int(_table(folder / f"raw/num-{key}-list.csv.gz").sum()) for key in ("node", "edge")))
    for graph in graphs:
        if facts.kind == "classes":
            graph["node_feat"] = np.zeros((graph["num_nodes"], 1), dtype=np.int64)
        elif is_code:
            graph.update(code2.clip(graph))
            graph.update(code2.augment(graph))
    parts = {part: _table(folder / f"split/{facts.split}/{part}.csv.gz")[:, 0] for part in PARTS}
    table = _table(folder / "raw" / "graph-label.csv.gz")
    if is_code:
        return {"graphs": graphs, "parts": parts, **code2.encode_labels(table[:, 0], parts["train"])}
    labels = table.astype(np.float32) if facts.kind == "binary" else to_integers(table)
    return {"graphs": graphs, "parts": parts, "labels": labels}


def _table(path: Path) -> np.ndarray:
    """The cells of a CSV file without header, read as OGB reads it: the word "null" becomes nan there too."""
    import pandas as pd

    with open_binary(path) as file:
        return pd.read_csv(file, compression="gzip", header=None).values


def _count_rows(path: Path) -> int:
    """Number of lines of a complete .gz file. Raises ValueError, which names the file, for a damaged one."""
    count, chunk = 0, b"\n"
    try:
        with open_binary(path) as packed, gzip.open(packed) as file:
            for chunk in iter(lambda: file.read(2**20), b""):
                count += chunk.count(b"\n")
        return count + (not chunk.endswith(b"\n"))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} is damaged: {one_line(error)}") from error


def _check_rows(rows: dict[str, int], nodes: int, edges: int) -> None:
    """Raise ValueError where files disagree on the number of nodes or edges, which OGB's reader ignores."""
    for key, number in rows.items():
        expected = nodes if key.startswith("node") else edges if key.startswith("edge") else number
        if number != expected:
            raise ValueError(f"raw/{key}.csv.gz has {number} rows, but its graphs have {expected}")
