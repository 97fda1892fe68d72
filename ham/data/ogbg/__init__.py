"""Graph classification: one of OGB's four sets, and its score by OGB's evaluator."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ham.distributed import on_rank_zero, world

from .. import code2
from ..base import Data, DataError, register
from ..graph_set import PARTS, GraphSet, from_tensors, to_tensors
from ..random_walks import return_probabilities
from .cache import FOLDER, Tensors, cache_key, load, load_or_build
from .files import read
from .package import import_ogb
from .sets import SETS, OGBGSet
from .source import Source, find_source

__all__ = ["OGBG", "PARTS", "SETS", "GraphSet", "OGBGSet", "score"]


@register("ogbg")
@dataclass
class OGBG(Data):
    """One of OGB's four sets; `num_classes` is the number of outputs of the set, whatever is given.

    Args:
        name: ogbg-ppa, ogbg-molpcba, ogbg-molhiv or ogbg-code2.
        root: the folder that contains the sets; empty: $HAM_DATA/graphs.
        walk_steps: K, for the probabilities that a random walk is back at its node after 1..K steps; 0: none.
    """

    name: str = ""
    root: str = ""
    walk_steps: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown set or a negative number of steps."""
        if self.name not in SETS:
            raise ValueError(f"unknown set data.name={self.name!r}: choose one of {', '.join(SETS)}")
        if self.walk_steps < 0:
            raise ValueError(f"data.walk_steps must not be negative, got {self.walk_steps}")
        self.num_classes = SETS[self.name].outputs

    @property
    def facts(self) -> OGBGSet:
        """Facts of the set."""
        return SETS[self.name]

    def load_graphs(self, log: Callable[[str], None] = print) -> GraphSet:
        """Read the set on the CPU, from its cache or, once, from the raw files.

        Every rank calls this; rank 0 reads first. Only a single process reads raw files and writes the
        cache: this takes longer than other ranks wait (compute.timeout) for large sets, so several ranks
        need the cache that scripts/prepare_graphs.py writes.

        Args:
            log: prints a line for the reader, on rank 0.

        Raises:
            DataError: a file is missing, damaged or of another set, a package is missing, or there are
                several ranks and no cache.
        """
        graphs = on_rank_zero(lambda: self._load(log))
        return self._load(lambda line: None) if graphs is None else graphs

    def _load(self, log: Callable[[str], None]) -> GraphSet:
        root = Path(self.root or Path(os.environ.get("HAM_DATA", "."), "graphs"))
        source = find_source(self.name, root)
        packages = ("ogb", "rdkit") if source.is_smiles else ("ogb",)
        key = cache_key(source.folder, source.files, packages, self.name)
        path = source.folder / FOLDER / f"{key}.safetensors"
        graphs = from_tensors(
            self._load_or_build(path, lambda: self._build(source, log), log, "reads the raw files")
        )
        if not self.walk_steps:
            return graphs
        path = path.with_name(f"{key}-walks{self.walk_steps}.safetensors")
        walks = self._load_or_build(path, lambda: self._walks(graphs), log, "computes the random walks")
        return replace(graphs, walks=walks["walks"])

    def _load_or_build(
        self, path: Path, build: Callable[[], Tensors], log: Callable[[str], None], work: str
    ) -> Tensors:
        """`load_or_build` in a single process; several ranks load. Raises DataError."""
        if world().size == 1:
            return load_or_build(path, build, log, work)
        try:
            tensors, problem = load(path), f"{path} is missing"
        except ValueError as error:
            tensors, problem = None, str(error)
        if tensors is not None:
            return tensors
        steps = "" if self.walk_steps in (0, self.facts.walk_steps) else f" --walk-steps {self.walk_steps}"
        raise DataError(
            f"{self.name}: {problem}, and several ranks do not build it; prepare it first: python "
            f"scripts/prepare_graphs.py {self.name} --to DIR{steps}, with a DIR that can be written to, then "
            "data.root=DIR/graphs"
        )

    def _build(self, source: Source, log: Callable[[str], None]) -> Tensors:
        return to_tensors(read(self.name, source, log))

    def _walks(self, graphs: GraphSet) -> Tensors:
        ends = (graphs.sources, graphs.targets)
        try:
            walks = return_probabilities(graphs.node_starts, graphs.edge_starts, *ends, self.walk_steps)
        except ValueError as error:
            raise DataError(f"{self.name}: {error}; set data.walk_steps=0") from error
        return {"walks": walks}


def score(
    name: str,
    predictions: Tensor,
    labels: Tensor,
    *,
    vocabulary: Sequence[str] = (),
    words: Sequence[str] = (),
) -> float:
    """The metric of OGB's evaluator in percent: ROC-AUC, average precision, accuracy or F1.

    Args:
        name: name of the set.
        predictions: logits [graphs, tasks] (binary), or int64 chosen classes [graphs, 1] (classes), or int64
            chosen tokens [graphs, 5] (tokens).
        labels: [graphs, tasks] with nan for unknown (binary), int64 [graphs, 1] (classes); for tokens `words`
            is compared instead.
        vocabulary: see `GraphSet`; for tokens.
        words: the true words of these graphs, see `GraphSet`; for tokens.

    Raises:
        ValueError: a prediction is nan or inf, or shapes do not fit, or no task has labels of both kinds.
        DataError: ogb is not installed.
    """
    facts, predictions = SETS[name], predictions.detach().cpu()
    content: dict[str, Any]
    if not bool(predictions.isfinite().all()):
        raise ValueError(f"predictions for {name} have nan or inf")
    if facts.kind == "tokens":
        truth = [text.split(" ") for text in words]
        content = {"seq_ref": truth, "seq_pred": code2.decode(predictions.tolist(), vocabulary)}
    else:
        content = {"y_true": labels.cpu(), "y_pred": predictions}
    evaluator = import_ogb("graphproppred").Evaluator(name)
    try:
        return 100 * float(evaluator.eval(content)[facts.metric])
    except RuntimeError as error:
        raise ValueError(f"OGB cannot score {name}: {error}") from error
