"""Data sets of the paper and of the demo."""

from .base import Batch, Data, DataError, Loader, Loaders, derived_seed
from .cifar import Cifar100
from .digits import Digits
from .graphs import Graph, NodeTask
from .imagenet_ffcv import ImageNetFFCV
from .imagenet_folder import ImageNetFolder

__all__ = [
    "Batch",
    "Cifar100",
    "Data",
    "DataError",
    "Digits",
    "Graph",
    "ImageNetFFCV",
    "ImageNetFolder",
    "Loader",
    "Loaders",
    "NodeTask",
    "derived_seed",
]
