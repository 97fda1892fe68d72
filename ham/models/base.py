"""The contract of models, and their registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn


@dataclass
class Model:
    """Hyperparameters of a family of networks. Subclasses are the schema of `configs/model`.

    Args:
        demo: scale, digits or cifar16 -> fields that a run scaled down to it replaces; the family stays.
            `Config.demo_values` names the scale.

    Attributes:
        min_batch_size: samples that one forward pass in training needs.
    """

    demo: dict[str, Any] = field(default_factory=dict)

    min_batch_size: ClassVar[int] = 1

    def check(self, image_size: int) -> None:
        """Raise ValueError if the network cannot read images of `image_size` px per side; 0: no images."""

    def build(self, *, num_classes: int, **sizes: int) -> nn.Module:
        """A new network; its output is logits [N, num_classes].

        Draws from torch's global generator; see `build_model`.

        Args:
            num_classes: number of classes.
            sizes: sizes of the input. A network of images takes `image_size` (pixels per side) and reads
                float images [N, 3, image_size, image_size]; a network of graphs takes `num_features` (per
                node).
        """
        raise TypeError(f"{type(self).__name__} cannot be built: choose a model of configs/model")

    def building_lines(self, num_classes: int, image_size: int) -> tuple[list[str], list[str]]:
        """Python lines, imports and statements, that build this network as `model`.

        Raises:
            ValueError: the family has none.
        """
        raise ValueError(f"{type(self).__name__} cannot be exported: choose a run with a model of images")

    def loading_lines(self, path: Path, num_classes: int, image_size: int) -> str:
        """Python code that makes `model`, this network with the weights of a safetensors file.

        Args:
            path: the file, which holds the network's state_dict.
            num_classes: number of classes.
            image_size: pixels per side.

        Raises:
            ValueError: the family has no such lines.
        """
        imports, statements = self.building_lines(num_classes, image_size)
        load = [f'model.load_state_dict(load_file("{path}"))', "model.eval()"]
        return "\n".join(["from safetensors.torch import load_file", *imports, "", *statements, *load])


MODELS: dict[str, type[Model]] = {}
"""Models by the name of their schema: `configs/model/*.yaml` refer to `<name>_schema`."""

_ModelClass = TypeVar("_ModelClass", bound=type[Model])


def register(name: str) -> Callable[[_ModelClass], _ModelClass]:
    """Class decorator that adds a model to `MODELS` as `name`."""

    def add(model: _ModelClass) -> _ModelClass:
        if name in MODELS:
            raise ValueError(
                f"{name!r} is already registered for {MODELS[name].__name__}: choose another name"
            )
        MODELS[name] = model
        return model

    return add


def build_model(model: Model, *, num_classes: int, generator: torch.Generator, **sizes: int) -> nn.Module:
    """`model.build` with weights that depend on `generator` only; the global random state is not changed."""
    model.check(sizes.get("image_size", 0))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return model.build(num_classes=num_classes, **sizes)
