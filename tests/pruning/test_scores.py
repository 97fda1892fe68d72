from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.scores import check_sparsity, global_topk, kept_count, layerwise_topk, magnitude

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
def test_a_percentage_is_answered_with_the_share(percent, meant):
    with pytest.raises(ValueError, match=rf"got {percent:g}; did you mean {meant}\?"):
        kept_count(8, percent)


def test_magnitude_is_the_detached_absolute_value():
    weight = nn.Parameter(torch.tensor([[1.5, -2.0], [-0.0, 0.0]]))
    score = magnitude({"w": weight})["w"]
    assert score.tolist() == [[1.5, 2.0], [0.0, 0.0]]
    assert not score.requires_grad
    assert weight.tolist() == [[1.5, -2.0], [0.0, 0.0]]


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
    with pytest.raises(ValueError, match="scores of b hold nan"):
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


@settings(deadline=None, max_examples=150)
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


def test_layerwise_topk_by_hand():
    scores = {"a": torch.tensor([3.0, 1.0, 2.0, 2.0]), "b": torch.tensor([9.0, 8.0, 9.0, 9.0])}
    masks = layerwise_topk(scores, {"a": 2, "b": 1})
    assert masks["a"].int().tolist() == [1, 0, 1, 0]
    assert masks["b"].int().tolist() == [1, 0, 0, 0]


def test_layerwise_topk_checks_each_layer():
    scores = {"a": torch.ones(4), "b": torch.tensor([1.0, NAN])}
    with pytest.raises(ValueError, match="scores of b hold nan"):
        layerwise_topk(scores, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"\[0, 4\], got 5"):
        layerwise_topk(scores, {"a": 5, "b": 1})
