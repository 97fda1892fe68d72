"""Notes of a training on a device: the steps that changed masks, and tensors on another device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from pruning import Sparsifier
from pruning.masks import MaskSet


@dataclass
class Outcome:
    """What a training showed.

    Attributes:
        updates: steps that changed the masks.
        stray: names of tensors that were left on another device.
    """

    updates: set[int] = field(default_factory=set)
    stray: set[str] = field(default_factory=set)


class Recorder:
    """Notes mask updates and tensors that are on another device.

    Args:
        device: where every tensor belongs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.outcome = device, Outcome()

    def updates_noted(self, masks: MaskSet, number: int) -> ExitStack:
        """A context that notes the step if it replaces the masks."""
        stack = ExitStack()
        for name in ("set", "clear"):
            change = getattr(masks, name)

            def noted(*args: Any, change: Callable = change) -> None:
                self.outcome.updates.add(number)
                change(*args)

            stack.enter_context(patch.object(masks, name, noted))
        return stack

    def look(
        self, when: str, model: nn.Module, sparsifier: Sparsifier, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note every tensor of a training that is on another device."""
        masks = sparsifier.masks
        self.look_at(f"model {when}", model.state_dict())
        self.look_at(f"masks {when}", masks.masks)
        self.look_at(f"values {when}", masks.values())
        self.look_at(f"margins {when}", sparsifier.margins())
        saved = sparsifier.state_dict()
        saved.pop("generator", None)  # SET draws on the CPU, so that each device grows the same weights
        self.look_at(f"sparsifier {when}", saved)
        self.look_at(f"sparsifier's attributes {when}", vars(sparsifier))
        self.look_at(f"parameterization {when}", vars(sparsifier.parameterization))
        self.look_at(f"kept {when}", sparsifier.kept())
        for parameter in model.parameters():
            state = optimizer.state.get(parameter, {})  # a "step" may be on the CPU
            own = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}
            self.look_at(f"optimizer {when}", own)

    def look_at(self, what: str, content: Mapping[str, Any]) -> None:
        """Note the tensors in nested mappings and sequences that are on another device."""
        for name, tensor in tensors_of(content):
            if tensor.device.type != self.device.type:
                self.outcome.stray.add(f"{what}: {name.lstrip('.')} on {tensor.device}")


def tensors_of(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of those in nested mappings and sequences; modules and other objects are left out."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            label = f"{name}.{key}" if isinstance(key, str) else name
            yield from tensors_of(value, label)
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from tensors_of(value, f"{name}.{number}")
