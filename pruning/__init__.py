"""Sparse training for any PyTorch loop. `import pruning` needs torch only and does not depend on HAM."""

from .acdc import ACDC
from .base import Dense, Sparsifier
from .checks import SparsityWarning
from .deprecation import warn_renamed
from .gmp import GMP
from .grasp import GraSP
from .mask_from import MaskFrom
from .masks import MaskSet
from .one_shot import OneShotMagnitude
from .parameterization import Plain, Product
from .pilot import PILoT
from .prunable import prunable_weights
from .random_pruning import RandomPruning
from .rigl import RigL
from .snip import SNIP
from .sparse_evolution import SET
from .spred import Spred
from .str import STR
from .synflow import SynFlow
from .target import TargetSparsity

__all__ = [
    "ACDC",
    "GMP",
    "SET",
    "SNIP",
    "STR",
    "Dense",
    "GraSP",
    "MaskFrom",
    "MaskSet",
    "OneShotMagnitude",
    "PILoT",
    "Plain",
    "Product",
    "RandomPruning",
    "RigL",
    "Sparsifier",
    "SparsityWarning",
    "Spred",
    "SynFlow",
    "TargetSparsity",
    "prunable_weights",
]


def __getattr__(name: str) -> object:
    """Names of earlier versions, kept for one release."""
    if name == "Masked":
        warn_renamed("pruning.Masked", "pruning.TargetSparsity")
        return TargetSparsity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
