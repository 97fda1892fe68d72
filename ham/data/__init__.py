"""Data sets of the paper and of the demo runs."""

from .base import DATASETS, Batch, Data, DataError, ImageData, Loader, Loaders, derived_seed, register
from .cifar import Cifar100
from .commonsense import Commonsense
from .digits import Digits
from .graph_set import GraphSet
from .graphs import Graph, NodeData
from .imagenet_ffcv import ImageNetFFCV
from .imagenet_folder import ImageNetFolder
from .ogbg import OGBG

__all__ = [
    "DATASETS",
    "OGBG",
    "Batch",
    "Cifar100",
    "Commonsense",
    "Data",
    "DataError",
    "Digits",
    "Graph",
    "GraphSet",
    "ImageData",
    "ImageNetFFCV",
    "ImageNetFolder",
    "Loader",
    "Loaders",
    "NodeData",
    "derived_seed",
    "register",
]
