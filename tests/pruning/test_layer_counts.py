"""Counts where some layers have a sparsity of their own, for every method and any target."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from pruning import ACDC, GMP, SNIP, OneShotMagnitude, RandomPruning, SynFlow

MAKE = {
    "synflow": lambda s: SynFlow(sparsity=s, iterations=7),
    "snip": lambda s: SNIP(sparsity=s, batches=1),
    "gmp": lambda s: GMP(sparsity=s, interval=1),
    "gmp global": lambda s: GMP(sparsity=s, interval=1, scope="global"),
    "acdc": lambda s: ACDC(sparsity=s),
    "random": lambda s: RandomPruning(sparsity=s, allocation="uniform"),
    "one shot": lambda s: OneShotMagnitude(sparsity=s),
}
PERCENT = st.sampled_from([0, 1, 30, 50, 90, 99])


def kept_of(total: int, percent: int) -> int:
    return total - ceil(percent * total / 100)


def network(widths: list[int]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def masks_of_training(sparsifier, model: nn.Module, own: dict[str, int], steps: int = 8) -> list[dict]:
    """The masks after each step; ACDC's one epoch is sparse."""
    sparsities = {name: percent / 100 for name, percent in own.items()}
    sparsifier.attach(model, total_epochs=1, steps_per_epoch=steps, sparsities=sparsities)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = torch.randn(4, model[0].in_features), torch.randint(model[-1].out_features, (4,))
    sparsifier.initialize([(inputs, labels)], cross_entropy)
    sparsifier.hook(optimizer)
    sparsifier.on_epoch_start(0, optimizer)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        found.append(sparsifier.kept())
    return found


@pytest.mark.filterwarnings("ignore:all weights of")
@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=8)
@given(st.lists(st.integers(2, 9), min_size=3, max_size=5), PERCENT, st.data())
def test_each_layer_of_its_own_and_the_others_together_have_exact_counts(name, widths, percent, data):
    """On the way no pruned weight returns with GMP, and no count is below its final one."""
    model = network(widths)
    names = [f"{i}.weight" for i in range(len(model))]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(names) - 1, unique=True))
    own = {layer: data.draw(PERCENT) for layer in chosen}
    masks = masks_of_training(MAKE[name](percent / 100), model, own)
    size = {layer: model.get_parameter(layer).numel() for layer in names}
    final = {layer: int(mask.sum()) for layer, mask in masks[-1].items()}
    for layer, value in own.items():
        assert final[layer] == kept_of(size[layer], value)
    others = [layer for layer in names if layer not in own]
    if name == "random":  # as google-research/rigl rounds
        assert all(final[n] == size[n] - percent * size[n] // 100 for n in others)
    elif name == "gmp":
        assert all(final[n] == kept_of(size[n], percent) for n in others)
    else:
        assert sum(final[n] for n in others) == kept_of(sum(size[n] for n in others), percent)
    if name.startswith("gmp"):
        for before, after in pairwise(masks):
            assert all(not (after[n] & ~before[n]).any() for n in names)
            assert all(before[n].sum() >= final[n] for n in names)


def test_synflow_with_dense_other_layers_by_hand():
    """32 + 16 + 40 + 10 weights; the layer of 10 keeps 1, the others keep all 88."""
    model = network([16, 2, 8, 5, 2])
    final = masks_of_training(SynFlow(sparsity=0.0, iterations=7), model, {"3.weight": 90}, steps=1)[-1]
    assert [int(mask.sum()) for mask in final.values()] == [32, 16, 40, 1]


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_gmp_with_dense_other_layers_prunes_the_own_ones_along_its_ramp(scope):
    """By hand: linear, updates at steps 0, 2, 4, 6 of 8; 100 weights at .9 keep 100, 70, 40, 10."""
    model = network([10, 10, 10])
    sparsifier = GMP(sparsity=0.0, interval=2, scope=scope, schedule="linear")
    masks = masks_of_training(sparsifier, model, {"0.weight": 90})
    assert [int(step["0.weight"].sum()) for step in masks] == [100, 100, 70, 70, 40, 40, 10, 10]
    assert all(step["1.weight"].all() for step in masks)


def test_gmp_refuses_a_callable_schedule_that_gives_no_ramp():
    with pytest.raises(ValueError, match="gives no ramp for sparsities: use schedule=cubic"):
        GMP(sparsity=0.0, schedule=lambda time: 0.0).attach(
            network([4, 4, 4]), total_epochs=1, steps_per_epoch=4, sparsities={"0.weight": 0.5}
        )
