from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from pruning import Product, RandomPruning, prunable_weights
from pruning.allocate import kept_counts
from pruning.cost import Cost, cost, mask_bits

MEMBERS = 25_557_032  # parameters of torchvision's ResNet50, as published
MULTIPLY_ADDS = (
    4_089_184_256  # of its convolutions and fc at 224 pixels; "GFLOPS 4.09" in torchvision's table
)
OUTPUTS = 26_560  # channels of its convolutions


@cache
def resnet50() -> nn.Module:
    import torchvision

    with torch.device("meta"):
        return torchvision.models.resnet50()


def of_resnet50(sparsity: float, allocation: str, *dense: str) -> Cost:
    weights = prunable_weights(resnet50(), dense)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return cost(resnet50(), kept_counts(shapes, sparsity, allocation), (1, 3, 224, 224))


@pytest.mark.parametrize(
    ("sparsity", "allocation", "dense", "megabytes"),
    [
        # the README of google-research/rigl says 23.683, 13.499, 8.399, 13.532 and 8.433
        (0.8, "erk", [], 23.6837),
        (0.9, "erk", [], 13.4990),
        (0.95, "erk", [], 8.3989),
        (0.9, "uniform", ["conv1.weight"], 13.5321),
        (0.95, "uniform", ["conv1.weight"], 8.4334),
    ],
)
def test_model_sizes_are_those_published_with_rigl(sparsity, allocation, dense, megabytes):
    """RigL folds norms into a bias per output: their scale takes no byte."""
    assert of_resnet50(sparsity, allocation, *dense).megabytes == pytest.approx(megabytes, abs=5.1e-5)


def test_a_dense_resnet50():
    dense = cost(resnet50(), {}, (1, 3, 224, 224))
    assert dense.parameters == MEMBERS
    assert dense.megabytes == pytest.approx(4 * (MEMBERS - OUTPUTS) / 1e6)  # without a bit of mask
    assert dense.flops == dense.dense_flops == 2 * MULTIPLY_ADDS
    assert dense.flops_ratio == 1
    assert dense.dense_flops == pytest.approx(8.2e9, rel=5e-3)  # RigL's figure


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.8, 0.42), (0.9, 0.24)])
def test_flops_of_erk_are_those_published_with_rigl(sparsity, ratio):
    found = of_resnet50(sparsity, "erk")
    assert found.flops_ratio == pytest.approx(ratio, abs=0.01)
    assert found.flops == pytest.approx(found.flops_ratio * 2 * MULTIPLY_ADDS)


def test_uniform_densities_scale_every_layer_but_the_dense_one():
    conv1 = 2 * 64 * 3 * 7 * 7 * 112 * 112
    expected = conv1 + 0.1 * (2 * MULTIPLY_ADDS - conv1)
    assert of_resnet50(0.9, "uniform", "conv1.weight").flops == pytest.approx(expected, rel=1e-4)


class SelfAttention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        other = x[..., : self.attn.kdim]
        return self.attn(x, other, other)[0]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


BY_HAND = {
    # model, input, parameters, multiply-adds
    "linear": (nn.Linear(3, 4), (1, 3), 12 + 4, 12),
    "linear on 5 tokens": (nn.Linear(3, 4), (1, 5, 3), 12 + 4, 12 * 5),
    "convolution": (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 9, 9), 216 + 8, 216 * 5 * 5),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 7, 7), 6 * 2 * 9 + 6, 6 * 2 * 9 * 5 * 5),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (1, 4, 7, 7), 36, 36 * 5 * 5),
    "one dimension": (nn.Conv1d(2, 3, 4), (1, 2, 10), 24 + 3, 24 * 7),
    # each of 3x3 inputs is multiplied with the entire kernel of 2x3x2x2
    "transposed": (nn.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 3, 3), 24 + 3, 24 * 3 * 3),
    # 5 tokens through 12x4 into queries, keys and values and through 4x4 out
    "attention": (SelfAttention(), (1, 5, 4), 48 + 12 + 16 + 4, (48 + 16) * 5),
    # keys and values of width 3: 4x4, 4x3, 4x3 and 4x4 out
    "attention, other widths": (
        SelfAttention(kdim=3, vdim=3),
        (1, 5, 4),
        16 + 12 + 12 + 12 + 16 + 4,
        (16 + 12 + 12 + 16) * 5,
    ),
    "a layer used twice": (Twice(), (1, 3), 9 + 3, 9 * 2),
    "a weight of two layers": (Tied(), (1, 3), 9 + 3 + 3, 9 * 2),
    "an encoder layer": (
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        (1, 5, 4),
        48 + 12 + 16 + 4 + 32 + 8 + 32 + 4 + 4 * 4,
        (48 + 16 + 32 + 32) * 5,
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_dense_layers_by_hand(case):
    model, shape, parameters, multiply_adds = BY_HAND[case]
    found = cost(model, {}, shape)
    assert found == Cost(parameters, 4 * parameters / 1e6, 2 * multiply_adds, 2 * multiply_adds)


def test_a_sparse_network_by_hand():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3)
    )
    found = cost(model, {"0.weight": 7, "3.weight": 24}, (1, 1, 4, 4))
    assert found.parameters == 7 + 2 * 2 + 24 + 3 + 2 * 3
    # the second layer is dense and takes no mask, the first 18 bits; BatchNorm's scale is folded away
    assert found.megabytes == pytest.approx((4 * (7 + 2 + 24 + 3 + 6) + 3) / 1e6)
    assert found.dense_flops == 2 * (18 * 4 + 24)
    assert found.flops == 2 * (7 * 4 + 24)
    assert found.flops_ratio == (7 * 4 + 24) / (18 * 4 + 24)


def test_mask_bits_of_all_layers_are_packed_together():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    found = cost(model, {"0.weight": 1, "1.weight": 1}, (1, 3))
    assert found.megabytes == pytest.approx((4 * 2 + 3) / 1e6)  # 18 bits are 3 bytes


def test_an_empty_layer_costs_only_its_mask():
    found = cost(nn.Linear(8, 8, bias=False), {"weight": 0}, (1, 8))
    assert found == Cost(parameters=0, megabytes=8 / 1e6, flops=0.0, dense_flops=128.0)


def test_a_product_costs_what_its_weight_does():
    def pruned(parameterization: Product | None) -> Cost:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
        sparsifier = RandomPruning(0.5)
        sparsifier.attach(model, total_epochs=1, parameterization=parameterization)
        return cost(model, {name: kept for name, kept, _ in sparsifier.counts()}, (1, 1, 4, 4))

    assert pruned(Product()) == pruned(None)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).double().train(training)
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    found = cost(model, {}, (1, 4))
    assert [module.training for module in model.modules()] == [training, training, False, training]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert cost(model, {}, (1, 4)) == found


def test_a_failed_forward_pass_leaves_no_hook():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        cost(model, {}, (1, 5))
    assert model.training
    assert not model[0]._forward_hooks


def test_counts_of_an_unknown_weight_are_refused():
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError) as error:
        cost(model, {"0.weight": 1, "z": 1, "0.bias": 1}, (1, 3))
    assert str(error.value) == "kept names 0.bias, which is not a prunable weight of the model"


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_is_looked_up_and_counts_its_weights_alone(kind):
    model = nn.Sequential(kind(5, 4), nn.Linear(4, 2, bias=False))
    found = cost(model, {"0.weight": 6}, (1, 3), include=iter(["0.weight"]))
    positions = 1 if kind is nn.EmbeddingBag else 3
    assert found.parameters == 6 + 8 and found.dense_flops == 2 * 8 * positions
    assert found.megabytes == (4 * 14 + 3) / 1e6  # a bit for each of 20
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("kept", "bits"), [(0, 9), (8, 9), (9, 0)])
def test_a_dense_layer_needs_no_mask(kept, bits):
    assert mask_bits(kept, 9) == bits
