"""A trained sparse model as plain tensors: dense state_dict, masks, sparse CSR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrize

from .base import Sparsifier
from .prunable import own_parametrizations
from .shards import full, is_sharded

MASKS = "masks.pt"


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the model as it was before `attach`, on the CPU.

    Weights that are computed (m * w, soft thresholds) appear as what they compute, under their plain names;
    those with a parametrization of the user's own keep that. Tensors are copied, modules are not: the model
    does not change. Weights that `fully_shard` splits are gathered, so every rank calls it.
    """
    state: dict[str, Tensor] = {}
    parametrized: list[str] = []
    for prefix, module in model.named_modules(remove_duplicate=False):  # as in the state_dict
        for attribute in own_parametrizations(module):
            dot = f"{prefix}." if prefix else ""
            parametrized.append(f"{dot}parametrizations.{attribute}.")
            with torch.no_grad():
                state[f"{dot}{attribute}"] = _plain(getattr(module, attribute))
    for key, value in model.state_dict().items():
        if not key.startswith(tuple(parametrized)):
            state[key] = _plain(value)
    return state


def _plain(tensor: Tensor) -> Tensor:
    copy = full(tensor.detach()).to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copy.add_(0.0) if copy.is_floating_point() else copy  # no -0.0


def remove_parametrizations_(model: nn.Module) -> nn.Module:
    """Replace every weight that `attach` has parametrized by what it computes, in place.

    The model is then plain: it has the names of the model before `attach`, and its outputs and zeros. A
    weight is a new parameter without a gradient; it requires gradients if the parameters that it replaces
    did. An optimizer that was created before does not train it, and no optimizer state carries over. Call
    this function after training: the sparsifier no longer fits the model. `plain_state_dict` leaves the
    model unchanged instead.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        for attribute in own_parametrizations(module):
            _make_plain_(module, attribute)
    return model


def _make_plain_(module: nn.Module, attribute: str) -> None:
    steps: Any = module.parametrizations[attribute]  # type: ignore[index]
    trained = any(original.requires_grad for original in steps.parameters(recurse=False))
    with torch.no_grad():
        theta = getattr(module, attribute).clone().add_(0.0)  # no -0.0
    # leave_parametrized would write theta into an only original, which an exported program may share
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=not steps.is_tensor)
    delattr(module, attribute)
    module.register_parameter(attribute, nn.Parameter(theta, requires_grad=trained))


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
        arrays[f"{name}.shape"] = torch.tensor(state[name].shape, device="cpu")
    return arrays


_SEMI_STRUCTURED_DTYPES = (torch.float16, torch.bfloat16, torch.int8)


def semi_structured(
    source: nn.Module | Mapping[str, Tensor], names: Iterable[str], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The named 2:4 sparse weights in the form that NVIDIA's sparse tensor cores multiply with.

    A weight of the result takes the place of the dense one in `torch.nn.functional.linear` and nn.Linear.

    Args:
        source: a model, with any parametrization, or a state_dict.
        names: names of weights [out, in] with at least two zeros in every four along a row.
        dtype: the dtype to convert the weights to first; None: they already are float16, bfloat16 or int8.

    Returns:
        Name -> `torch.sparse.SparseSemiStructuredTensor` on the current CUDA device.

    Raises:
        ValueError: a name is unknown, a weight does not qualify (`semi_structured_error`), or there is no
            CUDA device of compute capability 8.0 or more.
    """
    state = plain_state_dict(source) if isinstance(source, nn.Module) else source
    names = list(names)
    if unknown := [name for name in names if name not in state]:
        raise ValueError(f"unknown weight {unknown[0]}: names are like those of plain_state_dict(model)")
    weights = {name: state[name].detach().to(dtype or state[name].dtype) for name in names}
    for name, weight in weights.items():
        if error := semi_structured_error(weight):
            raise ValueError(f"{name} {error}")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise ValueError(
            "2:4 sparse matrices need an NVIDIA GPU of compute capability 8.0 or more: export on such a "
            "machine, or save the dense weights by plain_state_dict"
        )
    return {
        name: torch.sparse.to_sparse_semi_structured(weight.cuda().contiguous())
        for name, weight in weights.items()
    }


def semi_structured_error(weight: Tensor) -> str:
    """The reason why a weight has no 2:4 sparse form, with the cure; "" if it has one. Runs on any device."""
    from torch.sparse import semi_structured as forms

    if weight.ndim != 2:
        return f"has {weight.ndim} dimensions: only matrices [out, in] have a 2:4 sparse form"
    if weight.dtype not in _SEMI_STRUCTURED_DTYPES:
        return f"is {str(weight.dtype).removeprefix('torch.')}: pass dtype=torch.float16 or torch.bfloat16"
    cutlass = forms.SparseSemiStructuredTensor._FORCE_CUTLASS  # torch's switch between its two libraries
    form = forms.SparseSemiStructuredTensorCUTLASS if cutlass else forms.SparseSemiStructuredTensorCUSPARSELT
    minimum = form._DTYPE_SHAPE_CONSTRAINTS[weight.dtype]
    rows, columns = minimum.sparse_min_rows, minimum.sparse_min_cols
    if weight.shape[0] % rows or weight.shape[1] % columns or not weight.numel():
        return f"is {list(weight.shape)}: its sides must be multiples of {rows} and {columns}; leave it dense"
    if int((weight.unflatten(1, (-1, 4)) != 0).sum(dim=-1).max()) > 2:
        return "has more than two non-zero entries of four: train with granularity='2:4' and sparsity=0.5"
    return ""


def save_masks(
    path: str | Path | BinaryIO, sparsifier: Sparsifier, origin: Mapping[str, Any] | None = None
) -> None:
    """Write the masks for `MaskFrom`; for STR also how far each weight is above its threshold.

    Where `fully_shard` splits weights, every rank calls it, and rank 0 writes.

    Args:
        path: path of the file, such as masks.pt; or the file, open for writing.
        sparsifier: an attached and trained sparsifier.
        origin: plain values that describe the run that the masks come from.
    """
    kept = sparsifier.kept()
    content = {
        "masks": {name: full(mask).cpu() for name, mask in kept.items()},
        "margins": {name: margin.cpu() for name, margin in sparsifier.margins().items()},
        "origin": dict(origin or {}),
    }
    if not any(is_sharded(mask) for mask in kept.values()) or distributed.get_rank() == 0:
        torch.save(content, path)


def load_masks(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Masks, margins (STR only, else empty) and origin from a file of `save_masks`, or from its folder.

    Raises:
        ValueError: the file is missing, or `save_masks` did not write it.
    """
    path = Path(source)
    path = path / MASKS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} does not exist: finish the run that the masks come from first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content["masks"]), dict(content["margins"]), dict(content["origin"])
    except (RuntimeError, UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or contains no masks: delete {path.parent} and train that run again"
        ) from error
