"""Sparse training for any PyTorch loop. `import pruning` needs torch alone and knows nothing of HAM."""

from .acdc import ACDC
from .base import Dense, Masked, Sparsifier
from .masks import MaskSet
from .parameterization import Plain, Product
from .pilot import PILoT
from .rigl import RigL
from .spred import Spred
from .static import SNIP, MaskFrom, RandomPruning, SynFlow
from .str import STR
from .weights import prunable_weights

__all__ = [
    "ACDC",
    "SNIP",
    "STR",
    "Dense",
    "MaskFrom",
    "MaskSet",
    "Masked",
    "PILoT",
    "Plain",
    "Product",
    "RandomPruning",
    "RigL",
    "Sparsifier",
    "Spred",
    "SynFlow",
    "prunable_weights",
]
