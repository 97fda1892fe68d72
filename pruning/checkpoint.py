"""Read a sparsifier's state from a checkpoint of torch.distributed.checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .base import Sparsifier


def load_distributed(sparsifier: Sparsifier, folder: str | Path, *, key: str = "sparsifier") -> None:
    """Restore a sparsifier from a checkpoint that holds `sparsifier.state_dict()`.

    `torch.distributed.checkpoint.load` fills only the tensors that a state has already, and a state has no
    masks while all weights are on. This function reads what the checkpoint has, on any number of ranks. Every
    rank calls it.

    Args:
        sparsifier: a sparsifier attached to a model of the same shapes, sharded or not.
        folder: the checkpoint's folder, as in `torch.distributed.checkpoint.save({"sparsifier":
            sparsifier.state_dict(), ...}, checkpoint_id=folder)`.
        key: the key under which the state was saved.

    Raises:
        ValueError: the checkpoint has nothing under that key, or masks of other names or shapes.
    """
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    metadata = FileSystemReader(folder).read_metadata()
    paths = {flat: path for flat, path in (metadata.planner_data or {}).items() if path[0] == key}
    if not paths:
        raise ValueError(f"{folder} has no {key!r}: save {{{key!r}: sparsifier.state_dict()}} with the model")
    values: dict[str, Any] = {}
    for flat, path in paths.items():
        entry = metadata.state_dict_metadata[flat]
        if isinstance(entry, TensorStorageMetadata):
            values[flat] = _empty_tensor(sparsifier, path[-1], entry.size, entry.properties.dtype)
        else:
            values[flat] = None
    load(values, checkpoint_id=folder)
    state = _without_values(sparsifier.state_dict())
    for flat, (_, *outer, last) in paths.items():
        nested = state
        for name in outer:
            nested = nested.setdefault(name, {})
        nested[last] = values[flat]
    sparsifier.load_state_dict(state)


def _empty_tensor(sparsifier: Sparsifier, name: str, size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """An empty tensor to read into: a DTensor if the weight is a DTensor."""
    weight = sparsifier.masks.weights.get(name)
    if weight is not None and weight.shape == size:
        return torch.empty_like(weight.parameters[0].detach(), dtype=dtype)
    return torch.empty(size, dtype=dtype, device="cpu")


def _without_values(state: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionaries of a state: a checkpoint does not store empty ones."""
    return {name: _without_values(value) for name, value in state.items() if isinstance(value, Mapping)}
