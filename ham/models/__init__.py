"""Networks of the paper. torchvision and timm are imported when one of their networks is built."""

from .base import MODELS, Model, build_model, register
from .deit import DeiT
from .gnn import GNN
from .resnet import Init, ResNet, Stem

__all__ = ["GNN", "MODELS", "DeiT", "Init", "Model", "ResNet", "Stem", "build_model", "register"]
