from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning import prunable_weights
from pruning.weights import ComputedWeight, NonzeroCounts, ProductWeight, Weight, weight_of


def names(model: nn.Module, *exclude: str) -> list[str]:
    return list(prunable_weights(model, exclude))


@pytest.mark.parametrize(
    ("name", "tensors", "entries", "some"),
    [
        # published parameter counts less two per BatchNorm channel and the 1000 biases of fc
        ("resnet18", 21, 11_689_512 - 2 * 4_800 - 1_000, "layer4.0.downsample.0.weight"),
        ("resnet50", 54, 25_502_912, "layer1.0.downsample.0.weight"),
    ],
)
def test_resnets_are_pruned_everywhere_but_in_norms_and_biases(name, tensors, entries, some):
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    weights = prunable_weights(model)
    assert len(weights) == tensors
    assert sum(w.numel() for w in weights.values()) == entries
    assert {"conv1.weight", some, "fc.weight"} <= weights.keys()
    assert list(weights) == [n for n, p in model.named_parameters() if p.ndim >= 2]
    assert all(weight.parameters == (model.get_parameter(n),) for n, weight in weights.items())


def test_vit_is_pruned_everywhere_but_in_norms_tokens_and_biases():
    import timm

    vit = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3
    )
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight"} <= dict(vit.named_parameters()).keys()
    assert names(vit) == [
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    ]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(2, 3), ["0.weight"]),
        (nn.Conv1d(2, 3, 3), ["0.weight"]),
        (nn.Conv3d(2, 4, 3, groups=2), ["0.weight"]),
        (nn.ConvTranspose2d(2, 3, 3), ["0.weight"]),
        (nn.MultiheadAttention(4, 2), ["0.in_proj_weight", "0.out_proj.weight"]),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            ["0.q_proj_weight", "0.k_proj_weight", "0.v_proj_weight", "0.out_proj.weight"],
        ),
        (nn.BatchNorm2d(3), []),
        (nn.LayerNorm(3), []),
        (nn.GroupNorm(1, 3), []),
        (nn.Embedding(5, 3), []),
    ],
    ids=lambda value: repr(value).split("(")[0] if isinstance(value, nn.Module) else None,
)
def test_which_layers_are_pruned(layer, expected):
    model = nn.Sequential(layer, nn.Linear(1, 1))
    assert sorted(names(model)) == sorted([*expected, "1.weight"])


def test_a_single_layer_is_a_model_too():
    assert names(nn.Linear(2, 2)) == ["weight"]


def test_a_shared_weight_appears_once_under_its_first_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    assert names(model) == ["0.weight", "1.weight"]


def test_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    assert names(model) == ["1.weight"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ((), ["0.weight", "1.0.weight", "1.1.weight"]),
        (("0.weight",), ["1.0.weight", "1.1.weight"]),
        (("1.*",), ["0.weight"]),
        (("?.weight", "*.1.weight"), ["1.0.weight"]),
    ],
)
def test_exclude_takes_globs(exclude, left):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert names(model, *exclude) == left


@pytest.mark.parametrize("pattern", ["conv1.weight", "0", "0.bias", "Weight"])
def test_a_glob_that_matches_nothing_raises(pattern):
    with pytest.raises(ValueError, match=f"'{pattern}' matches no prunable weight"):
        names(nn.Sequential(nn.Linear(2, 2)), pattern)


@pytest.mark.parametrize(
    ("model", "exclude"),
    [
        (nn.BatchNorm1d(2), ()),
        (nn.Sequential(), ()),
        (nn.Linear(2, 2).requires_grad_(False), ()),
        (nn.Linear(2, 2), ("*",)),
    ],
    ids=["norm", "empty", "frozen", "all excluded"],
)
def test_nothing_to_prune_raises(model, exclude):
    with pytest.raises(ValueError, match="nothing to prune"):
        names(model, *exclude)


# kinds of weights


def test_a_plain_weight_is_its_parameter():
    layer = nn.Linear(3, 2)
    weight = weight_of(layer, "weight")
    assert type(weight) is Weight and weight.parameters == (layer.weight,)
    assert (tuple(weight.shape), weight.numel(), weight.pruned_value) == ((2, 3), 6, (0.0,))
    assert weight.value.data_ptr() == layer.weight.data_ptr() and not weight.value.requires_grad
    assert weight.gradient is None
    layer.weight.grad = torch.ones(2, 3)
    assert weight.gradient is layer.weight.grad
    assert (weight.input_dim, weight.groups) == (1, 1)
    at = torch.tensor([[True, False, False], [False, False, True]])
    weight.assign_(torch.full((2, 3), 7.0), at)
    assert torch.equal(layer.weight == 7, at)
    weight.prune_(at)
    assert torch.equal(layer.weight == 0, at)
    weight.assign_(torch.full((2, 3), 7.0))
    assert (layer.weight == 7).all()


def test_a_product_is_written_and_pruned_by_its_factors():
    m, w = nn.Parameter(torch.tensor([2.0, 1.0, 3.0])), nn.Parameter(torch.tensor([-1.0, 0.0, 2.0]))
    weight = ProductWeight.of(m, w, scaling=4.0)
    assert weight.value.tolist() == [-2.0, 0.0, 6.0] and not weight.value.signbit()[1]
    assert weight.pruned_value == (2.0, 0.0)
    weight.prune_(torch.tensor([True, False, False]))
    assert (m.tolist(), w.tolist()) == ([2.0, 1.0, 3.0], [0.0, 0.0, 2.0])
    weight.assign_(torch.tensor([3.0, 0.0, 0.0]), at=torch.tensor([False, True, True]))
    assert (m.tolist(), w.tolist()) == ([2.0, 2.0, 2.0], [0.0, 0.0, 0.0])
    weight.assign_(torch.tensor([3.0, 3.0, 3.0]))  # m^2 - w^2 = 4 and m w = 3
    expected_m = ((4 + (16 + 36) ** 0.5) / 2) ** 0.5
    assert m.tolist() == pytest.approx([expected_m] * 3)
    assert w.tolist() == pytest.approx([3 / expected_m] * 3)


def test_the_gradient_of_a_product_is_that_of_theta():
    m, w = nn.Parameter(torch.tensor([2.0, 1.0, 0.0])), nn.Parameter(torch.tensor([-1.0, 0.0, 0.0]))
    weight = ProductWeight.of(m, w)
    (m * w * torch.tensor([3.0, 5.0, 7.0])).sum().backward()
    assert weight.gradient.tolist() == [3.0, 5.0, 0.0]  # where both factors are 0 nothing is known
    w.grad = None
    assert weight.gradient is None


def test_a_computed_weight_is_read_and_not_written():
    layer = nn.Linear(3, 2)
    nn.utils.parametrizations.weight_norm(layer)
    weight = weight_of(layer, "weight")
    assert isinstance(weight, ComputedWeight)
    assert weight.names == ("original0", "original1")
    assert torch.equal(weight.value, layer.weight) and not weight.value.requires_grad
    assert (tuple(weight.shape), weight.numel()) == ((2, 3), 6)
    message = r"^a weight computed by _WeightNorm cannot be masked: remove that parametrization first$"
    value = torch.zeros(2, 3)
    for act in (
        lambda: weight.assign_(value),
        lambda: weight.prune_(value == 0),
        lambda: weight.gradient_from([value]),
    ):
        with pytest.raises(ValueError, match=message):
            act()


def test_counts_of_entries_follow_the_weights():
    values = [nn.Parameter(torch.tensor([1.0, 0.0, -2.0])), nn.Parameter(torch.zeros(2))]
    weights = [Weight.of(value) for value in values]
    counts = NonzeroCounts()
    counts.refresh(weights)
    assert counts.read(iter(weights)) == [2, 0]
    with torch.no_grad():
        values[1][0] = 5.0
    assert counts.read(weights) == [2, 1]
