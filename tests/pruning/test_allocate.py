from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import floor, prod

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from pruning import RandomPruning, prunable_weights
from pruning.allocate import DENSITIES, Allocation, balanced, erk, kept_counts, random_masks, uniform

Shapes = dict[str, tuple[int, ...]]
TOTAL = 25_502_912


@cache
def resnet50() -> Shapes:
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.resnet50()
    return {name: tuple(weight.shape) for name, weight in prunable_weights(model).items()}


def without_conv1() -> Shapes:
    return {name: shape for name, shape in resnet50().items() if name != "conv1.weight"}


# ResNet50 at 90 %. Sides of the shape in ascending order: number of such layers, ERK density, weights kept
# by it, ERK density beside a dense first convolution, balanced density. In whole percents the ERK column is
# that of STR's SparsityDistributions_90_ResNet50.csv.
AT_90 = {
    (3, 7, 7, 64): (1, 0.420038, 3_952, None, 1),
    (1, 1, 64, 64): (1, 1, 4_096, 1, 1),
    (3, 3, 64, 64): (3, 0.177338, 6_538, 0.177548, 1),
    (1, 1, 64, 256): (6, 0.958819, 15_710, 0.959954, 1),
    (1, 1, 128, 256): (1, 0.574696, 18_832, 0.575376, 1),
    (3, 3, 128, 128): (4, 0.086684, 12_783, 0.086787, 0.370590),
    (1, 1, 128, 512): (7, 0.477921, 31_322, 0.478487, 0.833829),
    (1, 1, 256, 512): (2, 0.286603, 37_566, 0.286943, 0.416914),
    (3, 3, 256, 256): (6, 0.042846, 25_272, 0.042897, 0.092648),
    (1, 1, 256, 1024): (11, 0.238588, 62_545, 0.238871, 0.208457),
    (1, 1, 512, 1024): (2, 0.143116, 75_034, 0.143285, 0.104229),
    (3, 3, 512, 512): (3, 0.021299, 50_251, 0.021324, 0.023162),
    (1, 1, 512, 2048): (5, 0.119201, 124_992, 0.119342, 0.052114),
    (1, 1, 1024, 2048): (1, 0.071511, 149_971, 0.071596, 0.026057),
    (1000, 2048): (1, 0.072608, 148_702, 0.072694, 0.026683),
}

# sparsity: eps of ERK, eps with conv1 left out of the account, layers that ERK keeps dense
EPS = {
    0.8: (
        99.561666633,
        99.685833066,
        {
            "layer1.0.conv1.weight",
            *(f"layer1.{block}.conv3.weight" for block in range(3)),
            *(f"layer1.{block}.conv1.weight" for block in (1, 2)),
            "layer1.0.downsample.0.weight",
            "layer2.0.conv1.weight",
        },
    ),
    0.9: (48.786610718, 48.844386874, {"layer1.0.conv1.weight"}),
    0.95: (24.372125915, 24.400899694, set()),
}


def test_the_table_is_of_this_network():
    shapes = [tuple(sorted(shape)) for shape in resnet50().values()]
    assert {shape: shapes.count(shape) for shape in shapes} == {shape: row[0] for shape, row in AT_90.items()}
    assert sum(prod(shape) for shape in shapes) == TOTAL


@pytest.mark.parametrize(
    ("allocate", "shapes", "column"),
    [(erk, resnet50, 1), (erk, without_conv1, 3), (balanced, resnet50, 4)],
    ids=["erk", "erk-conv1-dense", "balanced"],
)
def test_densities_of_resnet50_at_90_percent(allocate, shapes, column):
    found = allocate(shapes(), 0.1)
    for name, shape in shapes().items():
        assert found[name] == pytest.approx(AT_90[tuple(sorted(shape))][column], abs=5.1e-7), name


def test_kept_weights_of_resnet50_at_90_percent():
    found = kept_counts(resnet50(), 0.9, "erk")
    assert found == {name: AT_90[tuple(sorted(shape))][2] for name, shape in resnet50().items()}


@pytest.mark.parametrize("sparsity", EPS)
@pytest.mark.parametrize("all_layers", [True, False])
def test_erk_of_resnet50_is_one_factor_below_its_dense_layers(sparsity, all_layers):
    shapes = resnet50() if all_layers else without_conv1()
    found = erk(shapes, 1 - sparsity)
    whole, rest, dense = EPS[sparsity]
    assert {name for name, density in found.items() if density == 1} == dense
    for name in found.keys() - dense:
        eps = found[name] * prod(shapes[name]) / sum(shapes[name])
        assert eps == pytest.approx(whole if all_layers else rest, abs=1e-9), name


@pytest.mark.parametrize(
    ("sparsity", "by_erk", "by_uniform", "conv1_dense", "conv1_and_fc_dense"),
    [
        (0.8, 5_100_630, 5_100_607, 5_108_133, 6_746_533),
        (0.9, 2_550_353, 2_550_318, 2_558_785, 4_401_985),
        (0.95, 1_275_200, 1_275_174, 1_284_111, 3_229_711),
    ],
)
def test_kept_weights_of_resnet50(sparsity, by_erk, by_uniform, conv1_dense, conv1_and_fc_dense):
    inner = {name: shape for name, shape in without_conv1().items() if name != "fc.weight"}
    conv1, fc = 64 * 3 * 7 * 7, 1000 * 2048
    assert sum(kept_counts(resnet50(), sparsity, "erk").values()) == by_erk
    assert sum(kept_counts(resnet50(), sparsity, "uniform").values()) == by_uniform
    assert conv1 + sum(kept_counts(without_conv1(), sparsity, "uniform").values()) == conv1_dense
    assert conv1 + fc + sum(kept_counts(inner, sparsity, "uniform").values()) == conv1_and_fc_dense


@pytest.mark.parametrize(
    ("sparsity", "level", "saturated"),
    [(0.8, 125_333.2114, 19), (0.9, 54_645.7905, 12), (0.95, 25_289.9478, 8)],
)
def test_balanced_keeps_as_many_in_every_layer_of_resnet50(sparsity, level, saturated):
    found = balanced(resnet50(), 1 - sparsity)
    sizes = {name: prod(shape) for name, shape in resnet50().items()}
    assert sum(density == 1 for density in found.values()) == saturated
    for name, size in sizes.items():
        assert found[name] * size == pytest.approx(min(size, level), abs=1e-4)
    assert sum(found[name] * size for name, size in sizes.items()) == pytest.approx(
        (1 - sparsity) * TOTAL, rel=1e-14
    )


def test_densities_by_hand():
    shapes = {"a": (2, 2), "b": (4, 4), "c": (10, 10)}  # 4 + 16 + 100 weights, sums of sides 4, 8, 20
    assert uniform(shapes, 0.5) == {"a": 0.5, "b": 0.5, "c": 0.5}
    # 60 in all: 20 each, but a has 4 and b 16, which leaves 40 for c
    assert balanced(shapes, 0.5) == {"a": 1.0, "b": 1.0, "c": 0.4}
    # eps = 60 / 32 makes a dense (1.875); 56 / 28 = 2 makes b just dense and gives c 2 * 20 / 100
    assert erk(shapes, 0.5) == {"a": 1.0, "b": 1.0, "c": pytest.approx(0.4)}
    assert kept_counts(shapes, 0.5, "erk") == {"a": 4, "b": 16, "c": 40}
    # at 10 %: 3 of 4, 14 of 16 and 90 of 100 are off, so 13 are on; eps = 13 / 32
    assert erk(shapes, 0.1) == {"a": 0.40625, "b": 0.203125, "c": 0.08125}
    # 4 - floor(2.375), 16 - floor(12.75), 100 - floor(91.875)
    assert kept_counts(shapes, 0.9, "erk") == {"a": 2, "b": 4, "c": 9}


@pytest.mark.parametrize("size", [10, 70, 100, 1_000, 10**6])
@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9])
def test_round_numbers_keep_round_numbers(size, sparsity):
    """In binary fractions (1 - (1 - .9)) * 70 is below 63."""
    expected = size * (10 - round(10 * sparsity)) // 10
    assert kept_counts({"w": (size,)}, sparsity, "uniform") == {"w": expected}


def test_a_fraction_that_is_just_below_a_whole_number_is_rounded_down():
    """Of 100 weights, 89.999998 are pruned: 89, as in floor(s * d), and not 90."""
    assert kept_counts({"w": (100,)}, 0.89999998, "uniform") == {"w": 11}


shapes_of_networks = st.lists(
    st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8
).map(lambda shapes: {f"layer{i}": shape for i, shape in enumerate(shapes)})
thousandths = st.integers(1, 1000)
ONE_BIG = {"layer0": (1, 1), "layer1": (1, 2), "layer2": (40, 40, 3, 3)}


@given(shapes_of_networks, thousandths)
@example(ONE_BIG, 1)
@example(ONE_BIG, 999)
@example(ONE_BIG, 1000)
def test_densities_add_up_to_the_budget(shapes, parts):
    density = Fraction(parts, 1000)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    # RigL's account rounds the zeros of each layer down
    rounded = sum(size - floor((1 - density) * size) for size in sizes.values())
    for allocation, budget in (("uniform", density * total), ("balanced", density * total), ("erk", rounded)):
        found = DENSITIES[Allocation(allocation)](shapes, float(density))
        assert list(found) == list(shapes)
        assert all(0 < d <= 1 for d in found.values())
        assert sum(found[n] * sizes[n] for n in sizes) == pytest.approx(float(budget), rel=1e-12)


@pytest.mark.parametrize(
    ("allocate", "share"),
    [(erk, lambda shape: sum(shape) / prod(shape)), (balanced, lambda shape: 1 / prod(shape))],
    ids=["erk", "balanced"],
)
@given(shapes_of_networks, thousandths)
@example(ONE_BIG, 500)
def test_densities_are_one_multiple_of_the_shares_or_full(allocate, share, shapes, parts):
    """With the budget this leaves no other solution: water runs to one level, over no rim."""
    found = allocate(shapes, parts / 1000)
    levels = {name: found[name] / share(shape) for name, shape in shapes.items()}
    open_levels = [level for name, level in levels.items() if found[name] < 1]
    level = max(open_levels, default=max(levels.values()))
    assert open_levels == pytest.approx([level] * len(open_levels), rel=1e-12)
    assert all(levels[name] <= level * (1 + 1e-12) for name in shapes)


@given(shapes_of_networks, thousandths, thousandths)
def test_densities_grow_with_the_total(shapes, one, other):
    low, high = sorted((one / 1000, other / 1000))
    for allocate in DENSITIES.values():
        less, more = allocate(shapes, low), allocate(shapes, high)
        assert all(less[name] <= more[name] * (1 + 1e-12) for name in shapes)


@given(shapes_of_networks, st.integers(0, 999))
def test_kept_counts_differ_from_the_budget_only_by_rounding(shapes, parts):
    sparsity = Fraction(parts, 1000)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    exact = {name: size - floor(sparsity * size) for name, size in sizes.items()}
    assert kept_counts(shapes, parts / 1000, "uniform") == exact
    for allocation in Allocation:
        kept = kept_counts(shapes, parts / 1000, allocation)
        assert all(1 <= kept[name] <= size for name, size in sizes.items())
        excess = sum(kept.values()) - (1 - sparsity) * sum(sizes.values())
        assert -1e-3 <= excess <= 2 * len(sizes)  # each layer is rounded up, ERK's account before it too
        dense = {n for n, d in DENSITIES[allocation](shapes, 1 - parts / 1000).items() if d == 1}
        assert all(kept[name] == sizes[name] for name in dense)


@pytest.mark.parametrize("allocate", DENSITIES.values(), ids=list(DENSITIES))
@pytest.mark.parametrize(
    ("density", "message"),
    [
        (0, r"density must be in \(0, 1\], got 0$"),
        (-0.1, r"density must be in \(0, 1\], got -0\.1$"),
        (10, r"density must be in \(0, 1\], got 10; did you mean 0\.1\?$"),
        (float("nan"), r"density must be in \(0, 1\], got nan$"),
    ],
)
def test_a_density_out_of_range_raises(allocate, density, message):
    with pytest.raises(ValueError, match=message) as raised:
        allocate({"w": (2, 2)}, density)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("allocate", DENSITIES.values(), ids=list(DENSITIES))
def test_no_shapes_raise(allocate):
    with pytest.raises(ValueError, match=r"^shapes is empty: .*$"):
        allocate({}, 0.5)


@pytest.mark.parametrize("wrong", ["ERK", "global", ""])
def test_an_unknown_allocation_raises(wrong):
    for make in (
        lambda: kept_counts({"w": (2, 2)}, 0.5, wrong),
        lambda: RandomPruning(0.5, allocation=wrong),
    ):
        with pytest.raises(
            ValueError, match=f"^allocation must be one of erk, balanced, uniform, got {wrong!r}$"
        ):
            make()


@given(shapes_of_networks, st.data(), st.integers(0, 2**32))
def test_random_masks_hold_the_exact_counts(shapes, data, seed):
    kept = {name: data.draw(st.integers(0, prod(shape))) for name, shape in shapes.items()}
    masks, again = (
        random_masks(shapes, kept, generator=torch.Generator().manual_seed(seed)) for _ in range(2)
    )
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == shapes
    assert {mask.dtype for mask in masks.values()} == {torch.bool}
    assert {name: int(mask.sum()) for name, mask in masks.items()} == kept
    assert all(torch.equal(masks[name], again[name]) for name in shapes)


def test_every_position_is_equally_likely():
    generator = torch.Generator().manual_seed(0)
    draws = [random_masks({"w": (4, 5)}, {"w": 6}, generator=generator)["w"] for _ in range(2_000)]
    mean, deviation = 2_000 * 0.3, (2_000 * 0.3 * 0.7) ** 0.5
    hits = torch.stack(draws).sum(0)
    assert (hits - mean).abs().max() < 4.5 * deviation
    assert (hits - mean).abs().max() > 0.5 * deviation  # and it is chance that chooses


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 10)
    )


def pruned(seed: int = 0, **options: object) -> tuple[nn.Module, RandomPruning]:
    model = small_model()
    sparsifier = RandomPruning(**{"sparsity": 0.9, **options})
    sparsifier.attach(model, total_epochs=1, seed=seed)
    return model, sparsifier


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 216, 1,152 and 640 weights; uniform: N - floor(.9 N)
        ({"allocation": "uniform"}, {"0.weight": 22, "3.weight": 116, "5.weight": 64}),
        ({"allocation": "uniform", "exclude": ["0.weight"]}, {"3.weight": 116, "5.weight": 64}),
        # 200.8 / 3 = 66.93 each
        ({"allocation": "balanced"}, {"0.weight": 67, "3.weight": 67, "5.weight": 67}),
        # 22 + 116 + 64 = 202 by sums of sides 17, 30 and 74: 28.38, 50.08, 123.54
        ({}, {"0.weight": 29, "3.weight": 51, "5.weight": 124}),
        ({"sparsity": 0.0}, {"0.weight": 216, "3.weight": 1_152, "5.weight": 640}),
    ],
)
def test_random_pruning_keeps_the_counts_and_the_values(options, expected):
    before = small_model().state_dict()
    model, sparsifier = pruned(**options)
    assert {name: kept for name, kept, _ in sparsifier.counts()} == expected
    on = sparsifier.kept()
    for name, now in model.state_dict().items():
        kept = on.get(name, torch.tensor(True))
        assert torch.equal(now, torch.where(kept, before[name], torch.zeros_like(now)))
        assert name not in on or int(now.count_nonzero()) == expected[name]
        assert not now[now == 0].signbit().any()


@pytest.mark.parametrize("allocation", Allocation)
def test_the_seed_changes_masks_and_not_counts(allocation):
    (_, one), (_, same), (_, other) = (pruned(seed, allocation=allocation) for seed in (3, 3, 4))
    assert list(one.counts()) == list(same.counts()) == list(other.counts())
    for name, mask in one.kept().items():
        assert torch.equal(mask, same.kept()[name])
        assert not torch.equal(mask, other.kept()[name])


def test_random_pruning_draws_from_its_own_generator():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = nn.Linear(8, 8)
    after_init = torch.get_rng_state()
    RandomPruning(0.5).attach(model, total_epochs=1, seed=5)
    assert torch.equal(torch.get_rng_state(), after_init)
    assert not torch.equal(state, after_init)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomPruning(90), r"sparsity must be in \[0, 1\), got 90; did you mean 0\.9\?"),
        (lambda: RandomPruning(1.0), r"sparsity must be in \[0, 1\), got 1"),
        (lambda: pruned(exclude=["conv.weight"]), r"exclude='conv\.weight' matches no prunable weight.*"),
        (lambda: pruned(exclude=["*"]), "nothing to prune: .*"),
    ],
)
def test_wrong_options_raise_in_one_line(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
