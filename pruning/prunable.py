"""Which weights of a model are prunable, and how to parametrize them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from .shards import reshard_
from .weights import Weight, weight_of

_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    _ConvNd: ("weight",),
    nn.Linear: ("weight",),
    nn.MultiheadAttention: _PROJECTIONS,
    nn.RNNCellBase: ("weight_ih", "weight_hh"),
}
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

_MARK = "_is_of_sparsifier"  # attribute of the parametrizations that `parametrize_` registers

Parametrization = TypeVar("Parametrization", bound=nn.Module)


def prunable_weights(
    model: nn.Module,
    exclude: Iterable[str] = (),
    include: Iterable[str] = (),
    *,
    computed: Iterable[str] = (),
) -> dict[str, Weight]:
    """Qualified name -> weight of linear, convolution, attention and recurrent layers; no biases, no norms.

    Also those of transformers' `Conv1D` and of its fused experts (three-dimensional parameters). Frozen
    weights and those without elements are left out; so are embeddings and the weights tied to them, unless
    `include` matches.

    Args:
        model: a module; a weight shared by several layers appears once. Names are those of the plain model:
            "conv1.weight" with any parametrization and inside DistributedDataParallel or `torch.compile`, in
            the order of `model.named_modules()`.
        exclude: globs of names to keep dense, such as "conv1.weight" or "head.*".
        include: globs of further parameters to prune, such as "embed.weight".
        computed: globs of weights that need not be parameters.

    Raises:
        ValueError: a glob matches no weight, no weight remains to prune, or a weight is not a parameter.
    """
    reshard_(model)
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, _EMBEDDINGS)}
    weights: dict[str, Weight] = {}
    first_names: dict[int, str] = {}
    repeated: set[str] = set()
    for name, module, attribute in weight_locations(model, include):
        weight = weight_of(module, attribute)
        first = weight.parameters[0]
        if not _matches(name, exclude) and not _matches(name, computed):
            _check_parameter(name, first)
        identity, included = id(first), _matches(name, include)
        # requires_grad of a computed tensor says nothing: under spectral_norm it depends on the forward pass
        is_trained = first.requires_grad or not isinstance(first, nn.Parameter)
        if not is_trained or not _has_elements(first) or (identity in embedded and not included):
            continue
        if first_names.setdefault(identity, name) != name:
            repeated.add(name)
            continue
        weight.input_dim = _input_dim(module, first.ndim)
        weight.groups = module.groups if isinstance(module, _ConvNd) else 1
        weight.padding_idx = module.padding_idx if isinstance(module, _EMBEDDINGS) else None
        weights[name] = weight
    for option, patterns, names in (
        ("include", include, weights.keys() | repeated),
        ("exclude", exclude, weights),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"{option}={pattern!r} matches no prunable weight; names are like "
                    f"{next(iter(weights), 'conv1.weight')}"
                )
    prunable = {name: weight for name, weight in weights.items() if not _matches(name, exclude)}
    if not prunable:
        embeddings = "; embeddings and weights tied to them need include=[globs]" if embedded else ""
        raise ValueError(
            f"nothing to prune: the model has no linear or convolution weight that is trainable and not "
            f"excluded{embeddings}"
        )
    return prunable


def not_covered(
    model: nn.Module, weights: Mapping[str, Weight], exclude: Iterable[str], include: Iterable[str]
) -> set[str]:
    """The names of plain weights that `prunable_weights` would find and that are not in `weights`."""
    owned = {id(p) for weight in weights.values() for p in weight.parameters}
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, _EMBEDDINGS)}
    return {
        name
        for prefix, module in _plain_modules(model)
        for attribute, p in module._parameters.items()
        if p is not None
        and id(p) not in owned
        and p.requires_grad
        and _has_elements(p)
        and (name := f"{prefix}.{attribute}" if prefix else attribute)
        and (_matches(name, include) or (_is_prunable(module, attribute) and id(p) not in embedded))
        and not _matches(name, exclude)
    }


def weight_locations(
    model: nn.Module, include: Iterable[str] = (), *, all_names: bool = False
) -> list[tuple[str, nn.Module, str]]:
    """(name, module, attribute) of every weight of a prunable layer; shared ones repeat.

    Args:
        model: any module.
        include: globs of further parameters.
        all_names: repeat a module that has several names, too.
    """
    return [
        (name, module, attribute)
        for prefix, module in _plain_modules(model, all_names)
        for attribute in _parameter_names(module)
        if (name := f"{prefix}.{attribute}" if prefix else attribute)
        and (_matches(name, include) or _is_prunable(module, attribute))
        and getattr(module, attribute, None) is not None
    ]


def _plain_modules(model: nn.Module, all_names: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """(name without the prefixes of wrappers, module), without the modules inside parametrizations."""
    wrappers = {
        f"{name}.module".removeprefix(".")
        for name, m in model.named_modules(remove_duplicate=not all_names)
        if isinstance(m, DistributedDataParallel | DataParallel)
    }
    for name, module in model.named_modules(remove_duplicate=not all_names):
        parts = name.split(".") if name else []
        if "parametrizations" not in parts:
            kept = [
                part
                for i, part in enumerate(parts)
                if part not in _WRAPPED and ".".join(parts[: i + 1]) not in wrappers
            ]
            yield ".".join(kept), module


def _parameter_names(module: nn.Module) -> list[str]:
    """The attributes of a layer that may hold a weight, parametrized ones and computed ones included."""
    layer = [name for kind, names in _LAYERS.items() if isinstance(module, kind) for name in names]
    layer += _recurrent_names(module) or ["weight"] * _is_conv1d(module)
    parametrized: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    return list(dict.fromkeys([*layer, *module._parameters, *parametrized]))


def _is_prunable(module: nn.Module, attribute: str) -> bool:
    if isinstance(module, nn.RNNBase):
        return attribute in _recurrent_names(module)
    if _is_conv1d(module):
        return attribute == "weight"
    if _has_experts(module):
        return getattr(module, attribute).ndim == 3 and "bias" not in attribute
    return any(isinstance(module, kind) and attribute in names for kind, names in _LAYERS.items())


def _input_dim(module: nn.Module, ndim: int) -> int | None:
    """The dimension of a layer's weights that its inputs are summed over; None if unknown.

    Fused experts are [experts, outputs, inputs], or [experts, inputs, outputs] as in GPT-OSS and Llama 4.
    Transformers states in `is_transposed` which of the two it is, except in some layers such as Llama 4's.
    """
    if isinstance(module, _ConvTransposeNd) or _is_conv1d(module):
        return 0
    if _has_experts(module):
        is_transposed = getattr(module, "is_transposed", None)
        return None if is_transposed is None or ndim != 3 else 1 if is_transposed else 2
    return 1


def _recurrent_names(module: nn.Module) -> list[str]:
    """The weights of nn.RNN, nn.LSTM and nn.GRU, without biases and the parameters of weight_norm."""
    names = module._flat_weights_names if isinstance(module, nn.RNNBase) else []
    return [name for name in names if name.startswith("weight_")]


def _has_experts(module: nn.Module) -> bool:
    """Return True if a layer holds one matrix per expert in a single parameter, as in transformers."""
    return type(module).__name__.endswith("Experts")


def _is_conv1d(module: nn.Module) -> bool:
    """Return True for the linear layer of GPT-2 in transformers, whose weight is [inputs, outputs]."""
    classes = type(module).__mro__  # a parametrized layer has a class of its own
    return any(c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in classes)


def as_list(globs: str | Iterable[str]) -> list[str]:
    """A glob or several, as a list."""
    return [globs] if isinstance(globs, str) else list(globs)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _has_elements(tensor: Tensor) -> bool:
    return isinstance(tensor, UninitializedParameter) or tensor.numel() > 0


def _check_parameter(name: str, tensor: Tensor) -> None:
    """Raise ValueError where a weight's tensor is not a parameter with a shape."""
    if isinstance(tensor, UninitializedParameter):
        raise ValueError(f"{name} has no shape yet: run one forward pass through the lazy layer first")
    if not isinstance(tensor, nn.Parameter):
        raise ValueError(
            f"{name} is not a parameter but computed from others, as by torch.nn.utils.spectral_norm, "
            "weight_norm or torch.nn.utils.prune: undo that first (remove_spectral_norm, remove_weight_norm, "
            "prune.remove), or exclude the weight"
        )


def parametrize_(
    model: nn.Module,
    make: Callable[[], Parametrization],
    exclude: Iterable[str] = (),
    include: Iterable[str] = (),
) -> list[Parametrization]:
    """Register `make()` on every prunable weight and return the parametrizations in the order of the weights.

    A parametrization's own parameters get the device and the dtype of its weight.

    Raises:
        ValueError: a weight is shared, already parametrized, or cannot be parametrized.
    """
    prunable = prunable_weights(model, exclude, include)
    owners: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append(f"{prefix}.{attribute}" if prefix else attribute)
    selected = []
    for name, module, attribute in weight_locations(model, include):
        if _matches(name, exclude):
            continue
        if parametrize.is_parametrized(module, attribute):
            raise ValueError(
                f"{name} is already parametrized: attach only once and to the unparametrized model, or "
                f"exclude {name}"
            )
        if name not in prunable:
            continue
        if prunable[name].parameters[0].is_complex():
            raise ValueError(f"{name} is complex: exclude it, or use a method that sets masks, such as RigL")
        if len(owner_names := owners[id(getattr(module, attribute))]) > 1:
            raise ValueError(f"{owner_names[-1]} shares its weight with {owner_names[0]}: untie them first")
        if isinstance(module, nn.RNNBase):
            raise ValueError(
                f"{name} cannot be parametrized, because its layer keeps a list of its weights: exclude it, "
                "or use a method that sets masks on plain weights"
            )
        selected.append((module, attribute))
    parametrizations = []
    for module, attribute in selected:
        weight = getattr(module, attribute)
        with torch.device(weight.device):
            parametrization = make()
        if any(p.dtype != weight.dtype for p in parametrization.parameters()):
            parametrization.to(weight.dtype)
        setattr(parametrization, _MARK, True)
        parametrize.register_parametrization(module, attribute, parametrization)
        parametrizations.append(parametrization)
    return parametrizations


def own_parametrizations(module: nn.Module) -> list[str]:
    """The attributes of a module that `parametrize_` has parametrized, without those that a user has."""
    if not parametrize.is_parametrized(module):
        return []
    parametrizations: Any = module.parametrizations
    return [name for name, steps in parametrizations.items() if any(hasattr(s, _MARK) for s in steps)]
