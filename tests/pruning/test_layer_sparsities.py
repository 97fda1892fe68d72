"""`attach(sparsities={glob: s})` and `attach(masks=...)`: targets and masks of single layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning import ACDC, GMP, SET, SNIP, STR, Dense, RandomPruning, RigL, SynFlow


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


BATCHES = [(torch.randn(16, 8), torch.randint(10, (16,))) for _ in range(2)]
MAKE = {
    "acdc": lambda: ACDC(sparsity=0.9),
    "acdc layerwise": lambda: ACDC(sparsity=0.9, scope="layerwise"),
    "gmp": lambda: GMP(sparsity=0.9, interval=2),
    "gmp global": lambda: GMP(sparsity=0.9, interval=2, scope="global"),
    "random": lambda: RandomPruning(sparsity=0.9),
    "rigl": lambda: RigL(sparsity=0.9, interval=3),
    "set": lambda: SET(sparsity=0.9),
    "snip": lambda: SNIP(sparsity=0.9, batches=2),
    "synflow": lambda: SynFlow(sparsity=0.9, iterations=5),
}


def train(sparsifier, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier.initialize(BATCHES, nn.functional.cross_entropy)
    sparsifier.hook(optimizer)
    for epoch in range(6):
        sparsifier.on_epoch_start(epoch, optimizer)
        for inputs, labels in BATCHES:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()


@pytest.mark.filterwarnings("ignore:all weights of")
@pytest.mark.parametrize("name", MAKE)
def test_a_layer_has_its_own_sparsity_and_the_others_share_the_target(name):
    """By hand: 160 + 600 + 300 weights; the last layer keeps half of 300, the others a tenth of 760."""
    model, sparsifier = network(), MAKE[name]()
    sparsifier.attach(model, total_epochs=6, steps_per_epoch=2, sparsities={"4.*": 0.5})
    train(sparsifier, model)
    kept = {name: int(mask.sum()) for name, mask in sparsifier.kept().items()}
    assert kept["4.weight"] == 150
    exact = name not in ("random", "rigl", "set")  # these round each layer up by itself
    assert (
        kept["0.weight"] + kept["2.weight"] == 76
        if exact
        else 76 <= kept["0.weight"] + kept["2.weight"] <= 78
    )


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ({"conv*": 0.5}, "the glob 'conv\\*' of sparsities matches no prunable weight"),
        ({"4.*": 90}, "did you mean 0.9"),
        ({"*": 0.5}, "matches every weight"),
    ],
)
def test_sparsities_that_make_no_sense_are_refused(sparsities, message):
    with pytest.raises(ValueError, match=message):
        RandomPruning(sparsity=0.9).attach(network(), total_epochs=1, sparsities=sparsities)


@pytest.mark.parametrize("sparsifier", [Dense(), STR(sparsity=0.9, initial=-8.0)], ids=["dense", "str"])
def test_methods_without_targets_per_layer_refuse_them(sparsifier):
    with pytest.raises(ValueError, match="omit sparsities"):
        sparsifier.attach(network(), total_epochs=1, sparsities={"4.*": 0.5})


def own_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"{i}.weight": torch.rand(model[i].weight.shape, generator=generator) < 0.3 for i in (0, 2, 4)}


@pytest.mark.parametrize(
    "make", [Dense, lambda: RandomPruning(sparsity=0.7), lambda: RigL(sparsity=0.7, until=0)]
)
def test_masks_of_ones_own_are_trained_as_they_are(make):
    model, sparsifier = network(), make()
    masks = own_masks(model)
    sparsifier.attach(model, total_epochs=6, steps_per_epoch=2, masks=masks)
    train(sparsifier, model)
    for name, mask in masks.items():
        assert torch.equal(sparsifier.kept()[name], mask)
        assert torch.equal(model.get_parameter(name) != 0, mask)


def test_a_method_that_finds_its_masks_later_refuses_masks():
    model = network()
    with pytest.raises(ValueError, match="ACDC computes its masks during training"):
        ACDC(sparsity=0.9).attach(model, total_epochs=6, masks=own_masks(model))
