"""Data sets of the paper and of the demo runs."""

from .base import DATASETS, Batch, Data, DataError, ImageData, Loader, Loaders, derived_seed, register
from .cifar import Cifar100
from .commonsense import Commonsense
from .digits import Digits
from .graphs import Graph, NodeData
from .imagenet_ffcv import ImageNetFFCV
from .imagenet_folder import ImageNetFolder

__all__ = [
    "DATASETS",
    "Batch",
    "Cifar100",
    "Commonsense",
    "Data",
    "DataError",
    "Digits",
    "Graph",
    "ImageData",
    "ImageNetFFCV",
    "ImageNetFolder",
    "Loader",
    "Loaders",
    "NodeData",
    "derived_seed",
    "register",
]
