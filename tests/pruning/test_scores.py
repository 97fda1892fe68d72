from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.options import check_sparsity
from pruning.scores import magnitude
from pruning.topk import (
    _by_sorting,
    _by_threshold,
    global_topk,
    kept_count,
    kth_largest,
    layerwise_topk,
)

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("total", "sparsity", "kept"),
    [
        (25_502_912, 0.9, 2_550_291),  # ResNet50; AC/DC's authors keep as many
        (25_502_912, 0.8, 5_100_582),
        (25_502_912, 0.95, 1_275_145),
        (100, 0.9, 10),
        (100, 0.29, 71),  # in floats .29 * 100 is below 29
        (100, 0.07, 93),  # and .07 * 100 above 7
        (10, 0.85, 1),
        (8, 0.0, 8),
        (1, 0.5, 0),
        (10, 1e-9, 9),
    ],
)
def test_kept_count(total, sparsity, kept):
    assert kept_count(total, sparsity) == kept


@given(st.integers(1, 10**9), st.integers(0, 10**6 - 1))
@example(25_502_912, 900_000)
def test_kept_count_is_the_largest_that_is_sparse_enough(total, millionths):
    sparsity = Fraction(millionths, 10**6)
    kept = kept_count(total, float(sparsity))
    assert 0 <= kept <= total
    assert Fraction(total - kept, total) >= sparsity > Fraction(total - kept - 1, total)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2, 100, NAN, INF, -INF])
def test_sparsity_outside_zero_to_one_raises(sparsity):
    for check in (check_sparsity, lambda s: kept_count(8, s)):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got "):
            check(sparsity)


@pytest.mark.parametrize(("percent", "meant"), [(90, "0.9"), (99.5, "0.995"), (50.0, "0.5")])
def test_a_percentage_is_answered_with_the_fraction(percent, meant):
    with pytest.raises(ValueError, match=rf"got {percent:g}; did you mean {meant}\?"):
        kept_count(8, percent)


def test_magnitude_is_the_detached_absolute_value():
    weight = nn.Parameter(torch.tensor([[1.5, -2.0], [-0.0, 0.0]]))
    score = magnitude({"w": weight})["w"]
    assert score.tolist() == [[1.5, 2.0], [0.0, 0.0]]
    assert not score.requires_grad
    assert weight.tolist() == [[1.5, -2.0], [0.0, 0.0]]


@given(
    st.lists(st.sampled_from([-INF, -1.0, -0.0, 0.0, 1e-45, 0.5, 1.0, INF]), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_both_ways_to_find_the_largest_keep_the_same(values, kept):
    """By a threshold on a CPU, by sorting on other devices; Python's sort is stable, as ties need."""
    kept = min(kept, len(values))
    order = sorted(range(len(values)), key=lambda i: -values[i])[:kept]
    expected = [i in order for i in range(len(values))]
    flat = torch.tensor(values)
    assert _by_sorting(flat, kept).tolist() == expected
    if kept:
        assert _by_threshold(flat, kept).tolist() == expected


@pytest.mark.parametrize(
    ("kept", "a", "b"),
    [
        (0, [0, 0, 0, 0], [0, 0, 0, 0]),
        (1, [0, 0, 0, 0], [0, 1, 0, 0]),
        (2, [1, 0, 0, 0], [0, 1, 0, 0]),
        (3, [1, 0, 1, 0], [0, 1, 0, 0]),
        (4, [1, 0, 1, 1], [0, 1, 0, 0]),
        (5, [1, 0, 1, 1], [1, 1, 0, 0]),
        (6, [1, 0, 1, 1], [1, 1, 1, 0]),
        (7, [1, 1, 1, 1], [1, 1, 1, 0]),
        (8, [1, 1, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_global_topk_by_hand_with_ties_over_two_tensors(kept, a, b):
    scores = {"a": torch.tensor([[3.0, 1.0], [2.0, 2.0]]), "b": torch.tensor([2.0, 5.0, 2.0, 0.0])}
    masks = global_topk(scores, kept)
    assert masks["a"].shape == (2, 2) and masks["b"].shape == (4,)
    assert masks["a"].dtype == masks["b"].dtype == torch.bool
    assert masks["a"].flatten().int().tolist() == a
    assert masks["b"].int().tolist() == b


def test_ties_go_to_the_first_tensor_of_the_mapping():
    ones = torch.ones(2)
    masks = global_topk({"b": ones, "a": ones}, 3)
    assert masks["b"].tolist() == [True, True]
    assert masks["a"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("scores", "kept", "expected"),
    [
        ([7.0] * 8, 3, [1, 1, 1, 0, 0, 0, 0, 0]),
        ([-0.0, 0.0, -0.0, 0.0, 0.0, 0.0, 0.0, 1.0], 4, [1, 1, 1, 0, 0, 0, 0, 1]),
        ([-1.0, -3.0, -2.0, -4.0, 0.0, -0.5, -2.0, -9.0], 4, [1, 0, 1, 0, 1, 1, 0, 0]),
        ([INF, 1.0, -INF, INF, 2.0, 0.0, -INF, 3.0], 7, [1, 1, 1, 1, 1, 1, 0, 1]),
    ],
    ids=["all equal", "signed zeros", "negative", "infinite"],
)
def test_global_topk_by_hand(scores, kept, expected):
    assert global_topk({"w": torch.tensor(scores)}, kept)["w"].int().tolist() == expected


def test_float64_scores_are_not_rounded():
    scores = torch.tensor([1.0, 1.0 + 1e-12, 1.0], dtype=torch.float64)
    assert global_topk({"w": scores}, 1)["w"].tolist() == [False, True, False]


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_ties_follow_the_index_whatever_the_memory_layout(layout):
    scores = torch.ones(2, 3, 2, 2)
    scores = scores.to(memory_format=torch.channels_last) if layout == "channels_last" else scores.mT
    assert global_topk({"w": scores}, 7)["w"].flatten().int().tolist() == [1] * 7 + [0] * 17


@pytest.mark.parametrize("kept", [-1, 9])
def test_kept_out_of_range_raises(kept):
    with pytest.raises(ValueError, match=rf"\[0, 8\], got {kept}"):
        global_topk({"a": torch.ones(4), "b": torch.ones(4)}, kept)


@pytest.mark.parametrize("kept", [0, 3, 8])
def test_nan_scores_raise(kept):
    with pytest.raises(ValueError, match="scores of b contain nan"):
        global_topk({"a": torch.ones(4), "b": torch.tensor([1.0, NAN, 0.0, 2.0])}, kept)


def by_sorting(scores: dict[str, Tensor], kept: int) -> dict[str, Tensor]:
    places = [(name, i) for name, score in scores.items() for i in range(score.numel())]
    values = [value for score in scores.values() for value in score.flatten().tolist()]
    order = sorted(range(len(places)), key=lambda position: (-values[position], position))
    best = {places[position] for position in order[:kept]}
    return {
        name: torch.tensor([(name, i) in best for i in range(score.numel())]).reshape(score.shape)
        for name, score in scores.items()
    }


@st.composite
def scores_of_layers(draw: st.DrawFn) -> dict[str, Tensor]:
    dtype, width = draw(st.sampled_from([(torch.float32, 32), (torch.float64, 64)]))
    few = st.sampled_from([0.0, -0.0, 0.5, 0.5, 1.0, -1.0, INF])
    values = st.one_of(few, st.floats(allow_nan=False, width=width))
    shape = st.sampled_from([(1,), (3,), (2, 3), (4, 1), (2, 2, 1, 2)])
    shapes = draw(st.lists(shape, min_size=1, max_size=4))
    scores = {}
    for i, shape in enumerate(shapes):
        size = int(np.prod(shape))
        flat = draw(st.lists(values, min_size=size, max_size=size))
        scores[f"layer{i}"] = torch.tensor(flat, dtype=dtype).reshape(shape)
    return scores


@settings(max_examples=150)
@given(scores_of_layers(), st.data())
def test_topk_equals_a_plain_sort(scores, data):
    kept = data.draw(st.integers(0, sum(s.numel() for s in scores.values())))
    counts = {name: data.draw(st.integers(0, s.numel())) for name, s in scores.items()}
    together = global_topk(scores, kept)
    apart = layerwise_topk(scores, counts)
    assert sum(int(mask.sum()) for mask in together.values()) == kept
    for name, score in scores.items():
        assert torch.equal(together[name], by_sorting(scores, kept)[name])
        assert torch.equal(apart[name], by_sorting({name: score}, counts[name])[name])


def test_topk_of_many_ties_equals_numpys_stable_sort():
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=40_000).round(2)).astype(np.float32)
    expected = np.zeros(values.size, dtype=bool)
    expected[np.argsort(-values, kind="stable")[:4_000]] = True
    first, rest = torch.from_numpy(values).split([15_000, 25_000])
    masks = global_topk({"a": first.view(100, 150), "b": rest.view(250, 100)}, 4_000)
    assert np.array_equal(torch.cat([m.flatten() for m in masks.values()]).numpy(), expected)


LONG = 2**20 + 12_345  # above 2**20 entries a sample, here every 16th, brackets the threshold


@cache
def random_values() -> tuple[np.ndarray, ...]:
    """Uniform, normal, and 0, 1 or 2."""
    rng = np.random.default_rng(0)
    return rng.random(LONG), rng.normal(size=LONG), rng.integers(0, 3, size=LONG).astype(float)


def every_16th(value: np.ndarray | float, otherwise: np.ndarray) -> np.ndarray:
    return np.where(np.arange(LONG) % 16 == 0, value, otherwise)


# functions of u, x and n, the uniform, the normal and the whole numbers
LONG_VALUES = {
    "normal": lambda u, x, n: x,
    "heavy tails": lambda u, x, n: np.abs(x) ** 9,
    "ascending": lambda u, x, n: np.arange(LONG) / 8,
    "all equal": lambda u, x, n: np.full(LONG, 0.25),
    "three levels": lambda u, x, n: n,
    "few nonzero": lambda u, x, n: np.where(u < 1e-4, x, 0.0),
    "zeros of both signs": lambda u, x, n: np.choose(n.astype(int), [0.0, -0.0, 1.0]),
    "pruned": lambda u, x, n: np.where(u < 0.9, -1.0, np.abs(x)),
    "period of 16": lambda u, x, n: np.arange(LONG) % 16.0,
    "infinite": lambda u, x, n: np.choose(n.astype(int), [-INF, x, INF]),
    "few infinite": lambda u, x, n: np.where(u < 1e-5, INF, x),
    "sample is the middle level": lambda u, x, n: every_16th(1.0, n),
    "sample is zero": lambda u, x, n: every_16th(0.0, np.abs(x)),
    "sample is the largest": lambda u, x, n: every_16th(np.abs(x) + 10, x),
    "sample is the smallest": lambda u, x, n: every_16th(-np.abs(x) - 10, x),
    "sample is both ends": lambda u, x, n: every_16th(np.sign(x) * 9, x),
    "sample is shifted": lambda u, x, n: every_16th(x + 0.5, x),
    "sample is infinite": lambda u, x, n: every_16th(INF, x),
    "sample is minus infinite": lambda u, x, n: every_16th(-INF, x),
}


@pytest.mark.parametrize("case", LONG_VALUES)
def test_kth_largest_of_many_values(case):
    values = torch.from_numpy(LONG_VALUES[case](*random_values()))
    descending = np.sort(values.numpy())[::-1]
    ranks = [1, 2, 17, LONG // 10, LONG // 2, LONG - 1, LONG]
    levels, counts = np.unique(descending, return_counts=True)
    if len(levels) < 20:  # the last of each level and the first of the next
        ranks += [int(rank) + after for rank in np.cumsum(counts[::-1])[:-1] for after in (0, 1)]
    for k in ranks:
        found = kth_largest(values, k)
        assert found.shape == () and found.dtype == torch.float64
        assert found.item() == descending[k - 1], k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 2**20 - 1, 2**20, 2**20 + 1])
def test_kth_largest_where_sampling_begins(length, dtype):
    values = torch.from_numpy(np.random.default_rng(1).permutation(length)).to(dtype)
    for k in {1, (length + 1) // 2, length}:
        assert kth_largest(values, k).item() == length - k


@pytest.mark.parametrize(
    "case", ["normal", "all equal", "three levels", "pruned", "sample is zero", "infinite"]
)
@pytest.mark.parametrize("kept", [0, 1, LONG // 10, LONG // 2, LONG - 1, LONG])
def test_topk_of_long_tensors_is_exact_and_breaks_ties_by_index(case, kept):
    values = LONG_VALUES[case](*random_values()).astype(np.float32)
    first, second, third = torch.from_numpy(values).split([400_000, 12_345, 2**20 - 400_000])
    masks = global_topk({"a": first.view(400, 1000), "b": second, "c": third.view(-1, 16)}, kept)
    mask = np.concatenate([masks[name].numpy().ravel() for name in "abc"])
    assert mask.sum() == kept
    if 0 < kept < LONG:
        threshold = values[mask].min()
        assert threshold >= values[~mask].max()
        tied = mask[values == threshold]
        assert tied[: tied.sum()].all()


def test_layerwise_topk_by_hand():
    scores = {"a": torch.tensor([3.0, 1.0, 2.0, 2.0]), "b": torch.tensor([9.0, 8.0, 9.0, 9.0])}
    masks = layerwise_topk(scores, {"a": 2, "b": 1})
    assert masks["a"].int().tolist() == [1, 0, 1, 0]
    assert masks["b"].int().tolist() == [1, 0, 0, 0]


def test_layerwise_topk_checks_each_layer():
    scores = {"a": torch.ones(4), "b": torch.tensor([1.0, NAN])}
    with pytest.raises(ValueError, match="scores of b contain nan"):
        layerwise_topk(scores, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"\[0, 4\], got 5"):
        layerwise_topk(scores, {"a": 5, "b": 1})


def test_only_a_bracket_of_many_values_is_searched(monkeypatch):
    """Eight standard deviations of the sampled rank, here at most 8 * 256 of 65,536, to either side."""
    searched = []
    topk = Tensor.topk

    def counted(values: Tensor, k: int, **options: object) -> tuple:
        searched.append(len(values))
        return topk(values, k, **options)

    monkeypatch.setattr(Tensor, "topk", counted)
    values = torch.rand(1 << 21, generator=torch.Generator().manual_seed(0))
    descending = values.sort(descending=True).values
    for k in (100, len(values) // 2, len(values) - 100):
        assert kth_largest(values, k) == descending[k - 1]
    bracket = 8 * 256 / 65_536
    assert searched[0] / len(values) == pytest.approx(bracket, rel=0.05)
    assert searched[1] / len(values) == pytest.approx(2 * bracket, rel=0.05)
    assert searched[2] / len(values) == pytest.approx(bracket, rel=0.05)
    del searched[:]
    kth_largest(values[: 1 << 20], 5)
    assert searched == [1 << 20]


def test_a_sparsity_must_be_a_number():
    with pytest.raises(ValueError, match=r"^sparsity must be a number in \[0, 1\), got '0\.5'$"):
        check_sparsity("0.5")
    for sparsity, hint in ((1, ""), (1.5, "; did you mean 0.015?"), (99, "; did you mean 0.99?"), (100, "")):
        with pytest.raises(ValueError) as error:
            check_sparsity(sparsity)
        assert str(error.value) == f"sparsity must be in [0, 1), got {sparsity:g}{hint}"
