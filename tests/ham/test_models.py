"""Image networks: torchvision's and timm's layers, initial weights, and errors with the cure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ham.models import (
    GNN,
    MODELS,
    CausalLM,
    DeiT,
    GCNPlus,
    Init,
    Model,
    ResNet,
    Stem,
    base,
    build_model,
    register,
)
from pruning import prunable_weights


def build(model: Model, num_classes: int = 10, image_size: int = 8, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return build_model(model, num_classes=num_classes, image_size=image_size, generator=generator)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def torchvision_resnet(depth: int) -> nn.Module:
    import torchvision

    with torch.device("meta"):
        return torchvision.models.get_model(f"resnet{depth}")


def on_meta(model: Model, num_classes: int, image_size: int) -> nn.Module:
    with torch.device("meta"):
        return model.build(num_classes=num_classes, image_size=image_size)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnet_equals_torchvisions(depth):
    ours, reference = on_meta(ResNet(depth=depth), 1000, 224), torchvision_resnet(depth)
    assert list(shapes(ours).items()) == list(shapes(reference).items())
    assert str(ours) == str(reference)


def test_the_default_is_the_resnet50_of_the_paper():
    model = ResNet()
    assert (model.depth, model.stem, model.init, model.width) == (50, Stem.imagenet, Init.pytorch, 64)
    weights = prunable_weights(on_meta(model, 1000, 224))
    assert len(weights) == 54
    assert sum(weight.numel() for weight in weights.values()) == 25_502_912


@pytest.mark.parametrize("depth", [18, 50])
def test_the_cifar_stem_changes_only_the_first_layers(depth):
    ours, reference = on_meta(ResNet(depth=depth, stem="cifar"), 1000, 32), torchvision_resnet(depth)
    assert isinstance(ours.maxpool, nn.Identity)
    conv = ours.conv1
    assert (conv.in_channels, conv.out_channels, conv.bias) == (3, 64, None)
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    expected = {**shapes(reference), "conv1.weight": (64, 3, 3, 3)}
    assert list(shapes(ours).items()) == list(expected.items())


def convolutions(init: str) -> dict[str, tuple[torch.Tensor, int, int]]:
    """Weight, fan_in and fan_out of the convolutions large enough to estimate a standard deviation."""
    net = build(ResNet(depth=18, stem="cifar", init=init), image_size=32)
    weights = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
            area = math.prod(module.kernel_size)
            weights[name] = (module.weight.detach(), module.in_channels * area, module.out_channels * area)
    assert len(weights) == 18
    return weights


def test_pytorch_init_is_uniform_over_fan_in():
    for weight, fan_in, _ in convolutions("pytorch").values():
        bound = 1 / math.sqrt(fan_in)
        assert 0.999 * bound < weight.abs().max() <= bound
        assert weight.std() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.02)


def test_torchvision_init_is_normal_over_fan_out():
    for weight, _, fan_out in convolutions("torchvision").values():
        deviation = math.sqrt(2 / fan_out)
        assert weight.std() == pytest.approx(deviation, rel=0.02)
        assert (weight.abs() < deviation).float().mean() == pytest.approx(0.6827, abs=0.01)


@pytest.mark.parametrize("init", ["pytorch", "torchvision"])
def test_norms_start_at_one_and_zero(init):
    net = build(ResNet(depth=18, width=8, stem="cifar", init=init))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


@pytest.mark.parametrize("depth", [18, 50])
def test_half_the_width_halves_torchvisions_channels(depth):
    def half(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        keep = 3 if name == "conv1.weight" else 1000 if name.startswith("fc") else None
        channels = tuple(n if n == keep else n // 2 for n in shape[:2])
        return channels + shape[2:]

    reference = {name: half(name, shape) for name, shape in shapes(torchvision_resnet(depth)).items()}
    ours = on_meta(ResNet(depth=depth, width=32), 1000, 224)
    assert list(shapes(ours).items()) == list(reference.items())


def test_a_small_bottleneck_resnet_by_hand():
    from torchvision.models.resnet import Bottleneck

    net = build(ResNet(depth=50, width=4, layers=[1, 2, 1, 1], stem="cifar"), num_classes=7)
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)] == [1, 2, 1, 1]
    assert all(
        isinstance(block, Bottleneck) for block in (*net.layer1, *net.layer2, *net.layer3, *net.layer4)
    )
    expected = {
        "conv1.weight": (4, 3, 3, 3),
        "layer1.0.conv1.weight": (4, 4, 1, 1),
        "layer1.0.conv3.weight": (16, 4, 1, 1),
        "layer2.1.conv1.weight": (8, 32, 1, 1),
        "layer4.0.downsample.0.weight": (128, 64, 1, 1),
        "layer4.0.conv2.weight": (32, 32, 3, 3),
        "fc.weight": (7, 128),
    }
    assert {name: shapes(net)[name] for name in expected} == expected


TINY_RESNET = ResNet(depth=50, width=4, layers=[1, 1, 1, 1], stem="cifar")
TINY_DEIT = DeiT(patch_size=2, embed_dim=32, depth=2, num_heads=2)


@pytest.mark.parametrize(
    ("model", "image_size"),
    [
        (TINY_RESNET, 8),
        (TINY_RESNET, 32),
        (ResNet(depth=18, width=4), 64),
        (ResNet(depth=50, width=4, init="torchvision", layers=[1, 1, 1, 1]), 64),
        (TINY_DEIT, 8),
        (DeiT(patch_size=8, embed_dim=32, depth=1, num_heads=4, drop_path=0.1), 16),
    ],
    ids=["resnet", "resnet 32", "imagenet stem", "torchvision init", "deit", "deit 16"],
)
def test_logits_and_gradients_are_computed_for_every_network(model, image_size):
    net = build(model, num_classes=7, image_size=image_size)
    images = torch.randn(3, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    logits = net(images)
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("model", [TINY_RESNET, TINY_DEIT], ids=["resnet", "deit"])
def test_initial_weights_depend_only_on_the_generator(model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build(model, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same = build(model, seed=5).state_dict()
    other = build(model, seed=6).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    random = {name for name in one if not torch.equal(one[name], other[name])}
    assert {name for name, p in build(model).named_parameters() if p.ndim >= 2 and p.shape[0] > 1} <= random


def test_a_generator_gives_a_new_network_each_time():
    generator = torch.Generator().manual_seed(0)
    one, two = (
        build_model(TINY_RESNET, num_classes=7, image_size=8, generator=generator).conv1.weight
        for _ in range(2)
    )
    assert not torch.equal(one, two)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_building_does_not_advance_the_gpu_s_generator():
    torch.cuda.manual_seed(1)
    before = torch.cuda.get_rng_state()
    build(TINY_RESNET)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_default_is_deit_small():
    net = on_meta(DeiT(), 1000, 224)
    assert sum(p.numel() for p in net.parameters()) == 22_050_664
    assert len(net.blocks) == 12
    assert {block.attn.num_heads for block in net.blocks} == {6}
    assert {block.mlp.fc1.out_features for block in net.blocks} == {4 * 384}
    assert tuple(net.pos_embed.shape) == (1, 1 + 14 * 14, 384)  # a class token, no distillation token
    assert tuple(net.patch_embed.proj.weight.shape) == (384, 3, 16, 16)


def test_a_small_deit_has_the_given_sizes():
    net = build(TINY_DEIT, num_classes=7)
    assert tuple(net.pos_embed.shape) == (1, 1 + 4 * 4, 32)
    assert tuple(net.patch_embed.proj.weight.shape) == (32, 3, 2, 2)
    assert tuple(net.head.weight.shape) == (7, 32)
    assert len(net.blocks) == 2 and net.blocks[0].attn.num_heads == 2


@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_drop_path_reaches_the_last_block(drop_path):
    net = build(DeiT(patch_size=2, embed_dim=32, depth=3, num_heads=2, drop_path=drop_path))
    assert getattr(net.blocks[-1].drop_path1, "drop_prob", 0.0) == pytest.approx(drop_path)


@pytest.mark.parametrize(
    ("model", "image_size", "cure"),
    [
        (ResNet(), 8, r"model\.stem=cifar"),
        (ResNet(depth=18), 63, r"model\.stem=cifar"),
        (DeiT(), 8, r"model\.patch_size"),
        (DeiT(), 16, r"model\.patch_size"),
        (DeiT(), 100, r"model\.patch_size"),
    ],
)
def test_images_of_an_unsupported_size_raise_with_the_cure(model, image_size, cure):
    for check in (model.check, lambda size: build(model, image_size=size)):
        with pytest.raises(ValueError, match=rf"{image_size} px .*{cure}.*\+demo=digits"):
            check(image_size)


@pytest.mark.parametrize(
    ("model", "image_size"),
    [(ResNet(), 64), (ResNet(stem="cifar"), 8), (DeiT(), 224), (DeiT(patch_size=2), 8), (Model(), 8)],
)
def test_images_of_a_supported_size_pass(model, image_size):
    assert model.check(image_size) is None


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        (ResNet, {"depth": 20}),
        (ResNet, {"width": 0}),
        (ResNet, {"layers": [1, 1, 1]}),
        (ResNet, {"layers": [1, 0, 1, 1]}),
        (ResNet, {"stem": "imagenette"}),
        (ResNet, {"init": "xavier"}),
        (DeiT, {"patch_size": 0}),
        (DeiT, {"embed_dim": -384}),
        (DeiT, {"depth": 0}),
        (DeiT, {"num_heads": 0}),
        (DeiT, {"num_heads": 5}),
        (DeiT, {"drop_path": 1.0}),
        (DeiT, {"drop_path": -0.1}),
    ],
    ids=str,
)
def test_wrong_fields_raise_an_error_with_the_value(family, fields):
    ((name, value),) = fields.items()
    shown = str(value).replace("[", r"\[")
    with pytest.raises(ValueError, match=shown) as error:
        family(**fields)
    assert name in str(error.value).lower()


def test_every_model_is_registered_with_its_minimal_batch():
    networks = {"resnet": ResNet, "deit": DeiT, "gnn": GNN, "gcn_plus": GCNPlus, "causal_lm": CausalLM}
    assert networks == MODELS
    assert {name: model.min_batch_size for name, model in MODELS.items()} == {
        "resnet": 2,
        "deit": 1,
        "gnn": 1,
        "gcn_plus": 2,
        "causal_lm": 1,
    }


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(base, "MODELS", dict(MODELS))
    with pytest.raises(ValueError, match=r"^'deit' is already registered for DeiT: choose another name$"):
        register("deit")(ResNet)
    assert register("own")(ResNet) is ResNet and base.MODELS["own"] is ResNet


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        (ResNet, {"width": 1, "layers": [1, 1, 1, 1]}),
        (DeiT, {"patch_size": 1, "embed_dim": 1, "depth": 1, "num_heads": 1, "drop_path": 0.0}),
    ],
)
def test_the_smallest_sizes_are_possible(family, fields):
    assert family(**fields) == family(**fields)
    with pytest.raises(ValueError, match="layers must give the blocks of four stages"):
        ResNet(layers=[1] * 5)


def test_a_model_without_sizes_of_images_is_checked_for_graphs():
    generator = torch.Generator().manual_seed(0)
    network = build_model(GNN(hidden=2), num_classes=3, num_features=4, generator=generator)
    assert network.classifier.out_features == 3
    assert (DeiT().drop_path, Model.min_batch_size, Model().demo) == (0.0, 1, {})


@pytest.mark.parametrize(
    "model",
    [ResNet(depth=18), ResNet(depth=50, stem="cifar"), ResNet(depth=34, layers=[1, 1, 1, 1])],
    ids=["torchvision's", "cifar stem", "fewer blocks"],
)
def test_building_lines_are_of_the_same_network(model):
    imports, statements = model.building_lines(num_classes=7, image_size=64)
    names: dict = {}
    with torch.device("meta"):
        exec("\n".join([*imports, *statements]), names)
    ours = on_meta(model, 7, 64)
    assert str(names["model"]) == str(ours) and shapes(names["model"]) == shapes(ours)
    assert any("ham" in line for line in imports) == bool(model.layers), "torchvision alone where it can"


def test_the_base_class_cannot_be_built():
    with pytest.raises(TypeError, match="configs/model"):
        Model().build(num_classes=2, image_size=8)


@pytest.mark.parametrize(
    "model",
    [DeiT(patch_size=4, embed_dim=12, depth=1, num_heads=2), ResNet(depth=18, stem=Stem.cifar, width=8)],
)
def test_loading_lines_build_the_network_from_a_file(model: Model, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = build(model)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    names: dict = {}
    exec(model.loading_lines(tmp_path / "model.safetensors", num_classes=10, image_size=8), names)
    loaded = names["model"].state_dict()
    assert not names["model"].training and loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_networks_of_graphs_have_no_loading_lines() -> None:
    with pytest.raises(ValueError, match="GNN cannot be exported"):
        GNN().loading_lines(Path("model.safetensors"), num_classes=10, image_size=0)
