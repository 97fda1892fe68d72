"""What a configuration can choose from: group -> name -> dataclass. A new method is one line here."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any

from ham.data import Cifar100, Digits, Graph, ImageNetFFCV, ImageNetFolder
from ham.models import GNN, DeiT, ResNet
from pruning import (
    ACDC,
    SNIP,
    STR,
    Dense,
    MaskFrom,
    PILoT,
    Plain,
    Product,
    RandomPruning,
    RigL,
    Spred,
    SynFlow,
)

from .optimization import AdamConfig, AdamWConfig, HamConfig, SGDConfig


def _with_demo(schema: type) -> type:
    """The schema and what a demo run replaces in it: the library's dataclasses hold hyperparameters alone."""
    demo = ("demo", dict[str, Any], field(default_factory=dict, kw_only=True))
    return make_dataclass(schema.__name__, [demo], bases=(schema,))


SCHEMAS = {
    "model": {"resnet": ResNet, "deit": DeiT, "gnn": GNN},
    "data": {
        "digits": Digits,
        "cifar100": Cifar100,
        "imagenet_ffcv": ImageNetFFCV,
        "imagenet_folder": ImageNetFolder,
        "graph": Graph,
    },
    "optimizer": {"sgd": SGDConfig, "adamw": AdamWConfig, "adam": AdamConfig},
    "ham": {"ham": HamConfig},
    "sparsifier": {
        name: _with_demo(schema)
        for name, schema in {
            "dense": Dense,
            "acdc": ACDC,
            "rigl": RigL,
            "str": STR,
            "random": RandomPruning,
            "snip": SNIP,
            "synflow": SynFlow,
            "mask_from": MaskFrom,
            "pilot": PILoT,
            "spred": Spred,
        }.items()
    },
    "parameterization": {"plain": Plain, "product": Product},
}
