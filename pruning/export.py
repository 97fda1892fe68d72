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
    Tensors are copied, modules are not: the model does not change.
    """
    state: dict[str, Tensor] = {}
    parametrized: list[str] = []
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for attribute in module.parametrizations:
                dot = f"{prefix}." if prefix else ""
                parametrized.append(f"{dot}parametrizations.{attribute}.")
                with torch.no_grad():
                    state[f"{dot}{attribute}"] = _plain(getattr(module, attribute))
    for key, value in model.state_dict().items():
        if not key.startswith(tuple(parametrized)):
            state[key] = _plain(value)
    return state


def _plain(tensor: Tensor) -> Tensor:
    copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copy.add_(0.0) if copy.is_floating_point() else copy  # no -0.0


def remove_parametrizations_(model: nn.Module) -> nn.Module:
    """Replace every parametrized weight by what it computes (m * w, soft thresholds), in place.

    The model then is plain: with the names of the model before `attach`, its outputs and its zeros. A weight
    is a new parameter, without a gradient and trained where the ones behind it were: an optimizer that was
    created before does not train it, and no optimizer state carries over. Call it after the training: the
    sparsifier no longer fits the model. `plain_state_dict` leaves the model unchanged instead.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrizations: Any = module.parametrizations
            for attribute in list(parametrizations):
                _make_plain_(module, attribute)
    return model


def _make_plain_(module: nn.Module, attribute: str) -> None:
    steps: Any = module.parametrizations[attribute]  # type: ignore[index]
    originals = list(steps.parameters(recurse=False))
    with torch.no_grad():
        theta = getattr(module, attribute).clone()
        theta = theta.add_(0.0) if theta.is_floating_point() else theta  # no -0.0
    # leave_parametrized would write theta into an only original, which an exported program may share
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=not steps.is_tensor)
    delattr(module, attribute)
    if originals:
        trained = any(original.requires_grad for original in originals)
        module.register_parameter(attribute, nn.Parameter(theta, requires_grad=trained))
    else:
        module.register_buffer(attribute, theta)


def sparse_csr(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The named weights in compressed rows, each as a matrix [first dimension, all others].

    Returns:
        "<name>.crow" and "<name>.col" (int32) "<name>.values" and "<name>.shape" (int64) per weight. A
        weight is `torch.sparse_csr_tensor(crow, col, values, (shape[0], prod(shape[1:]))).to_dense()`, viewed
        in its shape.
    """
    arrays = {}
    for name in names:
        rows = state[name].flatten(1) if state[name].ndim > 1 else state[name][None]
        nonzero = rows != 0
        ends = nonzero.sum(dim=1).cumsum(0)
        arrays[f"{name}.crow"] = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        arrays[f"{name}.col"] = nonzero.nonzero()[:, 1].to(torch.int32)
        arrays[f"{name}.values"] = rows[nonzero]
        arrays[f"{name}.shape"] = torch.tensor(state[name].shape)
    return arrays


def save_masks(path: str | Path, sparsifier: Sparsifier, origin: Mapping[str, Any] | None = None) -> None:
    """Write the masks for `MaskFrom`; for STR also how far each weight is above its threshold.

    Args:
        path: of the file, such as masks.pt.
        sparsifier: attached and trained.
        origin: plain values that describe the run which the masks come from.
    """
    content = {
        "masks": {name: mask.cpu() for name, mask in sparsifier.kept().items()},
        "margins": {name: margin.cpu() for name, margin in sparsifier.margins().items()},
        "origin": dict(origin or {}),
    }
    torch.save(content, path)


def load_masks(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Masks, margins (STR only, else empty) and origin from a file of `save_masks`, or from its folder.

    Raises:
        ValueError: the file is missing, or `save_masks` did not write it.
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
