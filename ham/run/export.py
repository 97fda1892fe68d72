"""Exports a trained run as plain files: dense weights, masks and compressed rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from ham.files import atomic_write
from pruning.cost import Cost, cost
from pruning.export import plain_state_dict, sparse_csr

from .load import load_run


@dataclass(frozen=True)
class Export:
    """Result of an export.

    Args:
        files: paths of model.safetensors, masks.safetensors, csr.safetensors.
        cost: cost of the sparse network, for one image.
        sparsity: achieved sparsity.
        loading_lines: Python code that builds the network and loads the weights.
    """

    files: tuple[Path, ...]
    cost: Cost
    sparsity: float
    loading_lines: str


def export(run: Path, to: Path) -> Export:
    """Write the three files of a run into the folder `to`.

    Raises:
        ConfigError: there is no run, or it has no checkpoint of this version.
        CheckpointError: its checkpoints are damaged.
        ValueError: there is no code that loads its model.
        OSError: a file cannot be written.
    """
    cfg, model, sparsifier = load_run(run)
    num_classes, image_size = cfg.data.num_classes, cfg.data.image_size
    loading_lines = cfg.model.loading_lines(to / "model.safetensors", num_classes, image_size)
    state = plain_state_dict(model)
    masks = sparsifier.kept()
    tensors = {
        "model.safetensors": state,
        "masks.safetensors": {name: mask.to("cpu", torch.uint8).contiguous() for name, mask in masks.items()},
        "csr.safetensors": sparse_csr(state, masks),
    }
    to.mkdir(parents=True, exist_ok=True)
    for name, content in tensors.items():
        atomic_write(to / name, lambda file, content=content: file.write(save(content)))
    counts = {name: count for name, count, _ in sparsifier.counts()}
    return Export(
        tuple(to / name for name in tensors),
        cost(model, counts, (1, 3, image_size, image_size)),
        sparsifier.achieved_sparsity(),
        loading_lines,
    )
