"""What a run asks of a model: a dataclass of hyperparameters that builds a plain torch module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Model:
    """A family of networks. Subclasses are the schema of `configs/model`.

    Args:
        demo: fields that a scaled-down demo run replaces, so that it keeps the family.
    """

    demo: dict[str, Any] = field(default_factory=dict)

    def check(self, image_size: int) -> None:
        """Raise ValueError, naming the cure, where images of `image_size` pixels a side do not fit."""

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        """A fresh network: float images [N, 3, image_size, image_size] -> logits [N, num_classes].

        Draws from torch's global generator. A network of graphs also asks for `num_features`.
        """
        raise TypeError(f"{type(self).__name__} is no model: choose one of configs/model")


def build_model(
    model: Model, *, num_classes: int, image_size: int, generator: torch.Generator, **sizes: int
) -> nn.Module:
    """`model.build` with weights that `generator` alone decides; the global random stream stays put."""
    model.check(image_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return model.build(num_classes=num_classes, image_size=image_size, **sizes)
