"""Every tensor of an experiment lies on the device of its model. torch's meta device stands for a GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ham.data.base import ImageData
from ham.run.build import build_optimizer, resolve_mask_source
from ham.run.config import Config, experiments, load
from pruning import STR, Product, Sparsifier

OF_NO_KIND = re.compile(r"_(ham|sam|alpha_only|beta_only|matched_decay|ndim2|200ep)(?![a-z])")
"""Words of a name that say nothing about model, sparsifier and parameterization."""


@pytest.fixture(scope="module")
def kinds() -> dict[str, Config]:
    """One image experiment of each model, sparsifier and parameterization; sparsities choose no device."""
    every = {name for name in experiments() if "/" not in name}
    names = {re.sub(r"_s(80|95)$", "_s90", OF_NO_KIND.sub("", name)) for name in every}
    assert names <= every
    configs = [load([f"+exp={name}"]) for name in sorted(names)]
    return {_kind(cfg): cfg for cfg in configs if isinstance(cfg.data, ImageData)}


def _kind(cfg: Config) -> tuple[str, ...]:
    return tuple(type(part).__name__ for part in (cfg.model, cfg.sparsifier, cfg.parameterization))


def attached(cfg: Config) -> tuple[nn.Module, Sparsifier]:
    with torch.device("meta"):
        model = cfg.model.build(num_classes=cfg.data.num_classes, image_size=cfg.data.image_size)
    sparsifier = resolve_mask_source(cfg, resumed=True)  # MaskFrom reads no file then
    lengths = dict(total_epochs=cfg.epochs, steps_per_epoch=10)
    sparsifier.attach(model, **lengths, seed=0, parameterization=cfg.parameterization)
    return model, sparsifier


def tensors_of(value: object) -> Iterator[Tensor]:
    """The tensors that an object's attributes, lists and dicts hold."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)


def test_every_experiment_has_all_its_tensors_on_the_device_of_its_model(kinds):
    for name, cfg in kinds.items():
        model, sparsifier = attached(cfg)
        elsewhere = [key for key, tensor in model.state_dict().items() if tensor.device.type != "meta"]
        assert not elsewhere, (name, elsewhere)
        parts = (sparsifier, sparsifier.parameterization, sparsifier.masks)
        own = [tensor for part in parts for tensor in tensors_of(vars(part))]
        assert {tensor.device.type for tensor in own} <= {"meta"}, name
        groups = build_optimizer(cfg, model, sparsifier).param_groups
        assert {p.device.type for group in groups for p in group["params"]} == {"meta"}, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_threshold_has_the_device_and_dtype_of_its_weight(device, dtype):
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(1, 2, 3)).to(device, dtype)
    sparsifier = STR(sparsity=0.5)
    sparsifier.attach(model, total_epochs=2, steps_per_epoch=2)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, dtype)}


def test_layers_of_different_dtypes_each_keep_their_own():
    model = nn.Sequential(nn.Linear(4, 3).double(), nn.Linear(3, 2).float())
    STR(sparsity=0.5).attach(model, total_epochs=2, steps_per_epoch=2)
    for layer, dtype in zip(model, (torch.float64, torch.float32), strict=True):
        assert {p.dtype for p in layer.parameters()} == {dtype}


def test_factors_have_the_device_and_dtype_of_their_weight():
    model = nn.Linear(4, 3, device="meta", dtype=torch.float64)
    Product().attach(model, total_epochs=2)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
