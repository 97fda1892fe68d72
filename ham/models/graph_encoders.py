"""Encoders of the nodes, edges and random walks of OGB's sets for graph classification."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from torch import Tensor, nn

ATOMS = (119, 5, 12, 12, 10, 6, 6, 2, 2)
"""Categories of OGB's nine features of an atom."""

BONDS = (5, 6, 2)
"""Categories of OGB's three features of a bond."""

CODE_NODES, CODE_EDGES = (98, 10030, 21), (2, 2)
"""Type, attribute and depth of a node of a syntax tree; type and direction of an edge."""


class Encoder(StrEnum):
    """Kind of the features of nodes and edges.

    molecules: OGB's categorical features of atoms and bonds. proteins: no node features, seven numbers per
    edge. code: nodes and edges of a syntax tree.
    """

    molecules = "molecules"
    proteins = "proteins"
    code = "code"


class SumOfEmbeddings(nn.Module):
    """One embedding per categorical feature, added up, as OGB's AtomEncoder, BondEncoder and ASTNodeEncoder.

    Args:
        sizes: number of categories of each feature.
        width: width of the embeddings.
        xavier: uniform initialization by Glorot & Bengio as in OGB's encoders of molecules; else torch's.
    """

    def __init__(self, sizes: Sequence[int], width: int, *, xavier: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        for table in self.tables:
            if xavier:
                nn.init.xavier_uniform_(table.weight)

    def forward(self, categories: Tensor) -> Tensor:
        """int64 [n, features] -> [n, width]."""
        first, *others = zip(self.tables, categories.unbind(dim=1), strict=True)
        embedded = first[0](first[1])
        for table, column in others:
            embedded = embedded + table(column)
        return embedded


class WalkEncoder(nn.Module):
    """BatchNorm and a linear layer on random-walk probabilities (RWSE; Dwivedi et al., 2022)."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(steps), nn.Linear(steps, width)

    def forward(self, walks: Tensor) -> Tensor:
        """[nodes, steps] -> [nodes, width]."""
        return self.linear(self.norm(walks))


def node_encoder(kind: Encoder, width: int) -> nn.Module:
    """Categories [nodes, columns] -> [nodes, width]."""
    sizes = {Encoder.molecules: ATOMS, Encoder.proteins: (1,), Encoder.code: CODE_NODES}[kind]
    return SumOfEmbeddings(sizes, width, xavier=kind is Encoder.molecules)


def edge_encoder(kind: Encoder, width: int) -> nn.Module:
    """Features [kinds, columns] -> [kinds, width]."""
    if kind is Encoder.proteins:
        return nn.Linear(7, width)
    sizes = BONDS if kind is Encoder.molecules else CODE_EDGES
    return SumOfEmbeddings(sizes, width, xavier=kind is Encoder.molecules)
