"""Which parameters HAM acts on, on real models."""

import math
import re
from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
import torch
from timm.layers import BatchNormAct2d, LayerNorm2d, RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torchvision.models import resnet18

from ham import HAM, param_groups
from ham.optim import everything, ndim2, not_norm


def small_vit() -> VisionTransformer:
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=5)


def norm_names(model: nn.Module) -> set[str]:
    """Names of the parameters of norm layers, from isinstance alone."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    norms = [prefix for prefix, module in model.named_modules() if isinstance(module, kinds)]
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in norms}


def names_where(model: nn.Module, groups: list[dict], condition: Callable[[dict], bool]) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for group in groups if condition(group) for p in group["params"]}


def acted_on(model: nn.Module, groups: list[dict]) -> set[str]:
    return names_where(model, groups, lambda group: group["ham_alpha"] != 0 or group["ham_beta"] != 0)


MODELS = {"resnet18": resnet18, "ViT": small_vit}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize(
    "select", ["not_norm", "ndim2", "everything", "*.weight", not_norm, ndim2, everything]
)
@pytest.mark.parametrize("decay", ["everything", "not_norm", "ndim2"])
def test_every_trainable_parameter_is_in_exactly_one_group(build, select, decay):
    model = build()
    groups = param_groups(model, weight_decay=0.1, select=select, decay=decay)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())
    assert all(group["params"] for group in groups)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    HAM(optimizer, alpha=20.0, beta=0.1)
    values = {(group["ham_alpha"], group["ham_beta"]) for group in optimizer.param_groups}
    assert values <= {(20.0, 0.1), (0.0, 0.0)}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_not_norm_is_the_default_and_takes_biases_in(build):
    model = build()
    names = {name for name, _ in model.named_parameters()}
    assert norm_names(model)
    assert any(name.endswith("bias") for name in names - norm_names(model))
    assert acted_on(model, param_groups(model, weight_decay=0.0)) == names - norm_names(model)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_ndim2_takes_tensors_of_two_and_more_dimensions(build):
    model = build()
    taken = acted_on(model, param_groups(model, weight_decay=0.0, select="ndim2"))
    assert taken == {name for name, p in model.named_parameters() if p.ndim >= 2}
    assert not any(name.endswith("bias") for name in taken)
    if build is small_vit:
        assert {"cls_token", "pos_embed"} <= taken


def test_resnet18_by_hand():
    model = resnet18()
    selected, rest = param_groups(model, weight_decay=0.1)
    assert len(selected["params"]) == 20 + 2  # 20 convolutions, weight and bias of fc
    assert len(rest["params"]) == 40  # 20 BatchNorm layers
    assert (selected["ham_alpha"], rest["ham_alpha"]) == (None, 0)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("layer4.*", lambda name: name.startswith("layer4.")),
        ("*conv?.weight", lambda name: fnmatchcase(name, "*conv?.weight")),
        ("fc.bias", lambda name: name == "fc.bias"),
        (lambda name, module, param: param.numel() > 10_000, None),
        (lambda name, module, param: isinstance(module, nn.Linear), lambda name: name.startswith("fc.")),
    ],
    ids=["glob", "glob with ?", "name", "size", "module type"],
)
def test_globs_and_functions(select, expected):
    model = resnet18()
    large = {name for name, p in model.named_parameters() if p.numel() > 10_000}
    names = {name for name, _ in model.named_parameters() if expected(name)} if expected else large
    assert names
    assert acted_on(model, param_groups(model, weight_decay=0.0, select=select)) == names


@pytest.mark.parametrize("decay", ["everything", "not_norm", "ndim2", "fc.*"])
def test_decay_rule_is_independent_of_select(decay):
    model = resnet18()
    groups = param_groups(model, weight_decay=0.1, decay=decay)
    named = dict(model.named_parameters())
    expected = {
        "everything": set(named),
        "not_norm": named.keys() - norm_names(model),
        "ndim2": {name for name, p in named.items() if p.ndim >= 2},
        "fc.*": {"fc.weight", "fc.bias"},
    }[decay]
    assert names_where(model, groups, lambda group: group["weight_decay"] == 0.1) == expected
    assert {group["weight_decay"] for group in groups} <= {0.1, 0.0}
    assert acted_on(model, groups) == named.keys() - norm_names(model)


@pytest.mark.parametrize("argument", ["select", "decay"])
@pytest.mark.parametrize("pattern", ["layer9.*", "not-norm", "fc"])
def test_a_pattern_that_matches_nothing_is_refused(argument, pattern):
    with pytest.raises(ValueError, match=re.escape(f"{pattern!r} matches no parameter")) as error:
        param_groups(resnet18(), weight_decay=0.0, **{argument: pattern})
    assert "\n" not in str(error.value)


def test_frozen_parameters_are_left_out():
    model = resnet18()
    model.layer1.requires_grad_(False)
    found = names_where(model, param_groups(model, weight_decay=0.0), lambda group: True)
    assert found == {name for name, p in model.named_parameters() if not name.startswith("layer1.")}
    with pytest.raises(ValueError, match="matches no parameter"):
        param_groups(model, weight_decay=0.0, select="layer1.*")
    with pytest.raises(ValueError, match="no trainable parameter"):
        param_groups(model.requires_grad_(False), weight_decay=0.0)


def test_shared_parameters_appear_once():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    [group] = param_groups(model, weight_decay=0.0)
    assert [id(p) for p in group["params"]] == [id(model[0].weight)]


NORMS = {
    "BatchNorm1d": nn.BatchNorm1d(4),
    "SyncBatchNorm": nn.SyncBatchNorm(4),
    "InstanceNorm2d": nn.InstanceNorm2d(4, affine=True),
    "GroupNorm": nn.GroupNorm(2, 4),
    "LayerNorm": nn.LayerNorm(4),
    "RMSNorm": nn.RMSNorm(4),
    "timm LayerNorm2d": LayerNorm2d(4),
    "timm BatchNormAct2d": BatchNormAct2d(4),
    "timm RmsNorm": RmsNorm(4),
    "own": type("MyRMSNorm", (nn.Linear,), {})(4, 4),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_norm_layers_of_all_kinds_are_recognized_by_type(norm):
    model = nn.Sequential(nn.Linear(4, 4), norm)
    assert acted_on(model, param_groups(model, weight_decay=0.0)) == {"0.weight", "0.bias"}


def test_a_bare_parameter_of_the_root_module_is_named_and_selected():
    model = nn.Linear(3, 2)
    assert acted_on(model, param_groups(model, weight_decay=0.0, select="weight")) == {"weight"}


class Scaled(nn.Module):
    """A parametrization with a parameter of its own, which is no weight of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.scale.mean()


def with_own_parametrization(layer: nn.Module, name: str = "weight") -> nn.Module:
    parametrize.register_parametrization(layer, name, Scaled())
    return layer


ORIGINALS = {
    "own": (with_own_parametrization, ["parametrizations.weight.original"]),
    "own, of the bias": (
        lambda layer: with_own_parametrization(layer, "bias"),
        ["parametrizations.bias.original"],
    ),
    "weight_norm": (
        parametrizations.weight_norm,
        ["parametrizations.weight.original0", "parametrizations.weight.original1"],
    ),
    "spectral_norm": (parametrizations.spectral_norm, ["parametrizations.weight.original"]),
    "old weight_norm": (nn.utils.weight_norm, ["weight_g", "weight_v"]),
    "old spectral_norm": (nn.utils.spectral_norm, ["weight_orig"]),
}


@pytest.mark.parametrize("kind", ORIGINALS)
@pytest.mark.parametrize("is_norm", [False, True])
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_a_parametrized_weight_is_selected_by_its_layer(kind, is_norm):
    """In groups, for decay, by a function of the layer, and in a step of HAM with model=."""
    register, originals = ORIGINALS[kind]
    model = nn.Sequential(nn.Linear(4, 4), register(nn.LayerNorm((4, 4)) if is_norm else nn.Linear(4, 4)))
    names = {f"1.{name}" for name in originals}
    named = dict(model.named_parameters())
    scales = {name for name in named if name.endswith(".scale")}
    assert names < named.keys()
    expected = {"0.weight", "0.bias"} | (set() if is_norm else {n for n in named if n[0] == "1"} - scales)
    assert acted_on(model, param_groups(model, weight_decay=0.0)) == expected
    groups = param_groups(model, weight_decay=0.1, decay="not_norm")
    assert names_where(model, groups, lambda group: group["weight_decay"] == 0.1) == expected
    kinds = nn.LayerNorm if is_norm else nn.Linear
    by_layer = param_groups(model, weight_decay=0.0, select=lambda name, module, p: isinstance(module, kinds))
    assert names <= acted_on(model, by_layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=model, alpha=0.0, beta=1.0)
    before = {name: p.detach().double() for name, p in named.items()}
    for p in named.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in named.items():
        factor = math.exp(-0.1) if name in expected else 1.0
        torch.testing.assert_close(p.detach().double(), factor * before[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [(lambda m: m.parameters(), "generator"), (lambda m: [m], "list"), (lambda m: type(m), "type")],
    ids=["parameters", "list", "class"],
)
@pytest.mark.parametrize("select", ["not_norm", "*.weight", ["everything"], lambda name, module, p: True])
def test_what_is_not_a_model_is_named(wrong, kind, select):
    model = nn.Sequential(nn.Linear(2, 2))
    calls = (
        lambda: param_groups(wrong(model), weight_decay=0.1, select=select),
        lambda: HAM(torch.optim.SGD(model.parameters(), lr=0.1), model=wrong(model), select=select),
    )
    for call in calls:
        with pytest.raises(TypeError) as error:
            call()
        assert str(error.value) == (
            f"model must be a torch.nn.Module, got {kind}: pass the model itself, not its parameters"
        )


@pytest.mark.parametrize("weight_decay", [-1, -1e-9, float("nan")])
def test_a_negative_weight_decay_is_refused(weight_decay):
    with pytest.raises(ValueError, match=r"^weight_decay must not be negative, got "):
        param_groups(nn.Linear(2, 2), weight_decay=weight_decay)
