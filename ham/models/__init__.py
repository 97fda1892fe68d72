"""Networks of the paper. torchvision, timm and transformers are imported when their networks are built."""

from .base import MODELS, Model, build_model, register
from .causal_lm import CausalLM
from .deit import DeiT
from .gcn_plus import GCNPlus
from .gnn import GNN
from .resnet import Init, ResNet, Stem

__all__ = [
    "GNN",
    "MODELS",
    "CausalLM",
    "DeiT",
    "GCNPlus",
    "Init",
    "Model",
    "ResNet",
    "Stem",
    "build_model",
    "register",
]
