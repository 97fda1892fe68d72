"""Sparse training for any PyTorch loop. `import pruning` needs torch alone and knows nothing of HAM."""

from .acdc import ACDC
from .base import Dense, Masked, Sparsifier
from .masks import MaskSet
from .weights import prunable_weights

__all__ = ["ACDC", "Dense", "MaskSet", "Masked", "Sparsifier", "prunable_weights"]
