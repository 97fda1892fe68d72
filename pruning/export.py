"""A trained sparse model as plain tensors: dense state_dict, masks, sparse CSR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .base import Sparsifier

MASKS = "masks.pt"


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the model as it was before any parametrization, on the CPU.

    Weights that are computed (m * w, soft thresholds) appear as what they compute, under their plain names.
    Copies are made of tensors, never of modules: the model is left as it is.
    """
    state, behind = {}, []
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for attribute in module.parametrizations:
                dot = f"{prefix}." if prefix else ""
                behind.append(f"{dot}parametrizations.{attribute}.")
                with torch.no_grad():
                    state[f"{dot}{attribute}"] = _plain(getattr(module, attribute))
    for key, value in model.state_dict().items():
        if not key.startswith(tuple(behind)):
            state[key] = _plain(value)
    return state


def _plain(tensor: Tensor) -> Tensor:
    copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copy.add_(0.0) if copy.is_floating_point() else copy  # no -0.0


def sparse_csr(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Compressed rows of the named weights, each seen as a matrix [first dimension, all others].

    Returns:
        "<name>.crow" and "<name>.col" (int32) "<name>.values" and "<name>.shape" (int64) per weight. A
        weight is `torch.sparse_csr_tensor(crow, col, values, (shape[0], prod(shape[1:]))).to_dense()`, viewed
        in its shape.
    """
    found = {}
    for name in names:
        rows = state[name].flatten(1) if state[name].ndim > 1 else state[name][None]
        on = rows != 0
        ends = on.sum(dim=1).cumsum(0)
        found[f"{name}.crow"] = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        found[f"{name}.col"] = on.nonzero()[:, 1].to(torch.int32)
        found[f"{name}.values"] = rows[on]
        found[f"{name}.shape"] = torch.tensor(state[name].shape)
    return found


def save_masks(path: str | Path, sparsifier: Sparsifier, origin: Mapping[str, Any] | None = None) -> None:
    """Write which weights are on, for `MaskFrom`; of STR also how far each is above its threshold.

    Args:
        path: of the file, such as masks.pt.
        sparsifier: attached and trained.
        origin: plain values that say where the masks come from.
    """
    content = {
        "masks": {name: kept.cpu() for name, kept in sparsifier.kept().items()},
        "margins": {name: margin.cpu() for name, margin in sparsifier.margins().items()},
        "origin": dict(origin or {}),
    }
    torch.save(content, path)


def load_masks(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Masks, margins (empty but for STR) and origin from a file of `save_masks`, or from its folder.

    Raises:
        ValueError: there is no such file, or it is none of `save_masks`.
    """
    path = Path(source)
    path = path / MASKS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"no masks at {path}: train the run that they come from to its end first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content["masks"]), dict(content["margins"]), dict(content["origin"])
    except (RuntimeError, UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or holds no masks: delete {path.parent} and train its run again"
        ) from error
