"""Networks of the paper: torchvision's and timm's, imported only when one is built."""

from .base import Model, build_model
from .deit import DeiT
from .gnn import GNN
from .resnet import Init, ResNet, Stem

__all__ = ["GNN", "DeiT", "Init", "Model", "ResNet", "Stem", "build_model"]
